"""A step that several processes take together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .batches import leaves
from .callback import Callback, Events, Run
from .core import device_of, explain
from .losses import weighted
from .stepper import Stepper
from .trained import Trained, others

if TYPE_CHECKING:
    from .team import Team

__all__: list[str] = []  # of use to `team` alone


class Together(Stepper):
    """A step that all processes take, each on its part of the batch."""

    def __init__(self, team: Team, stepper: Stepper, averaging: Averaging | None) -> None:
        self.team, self.inner, self.averaging = team, stepper, averaging

    def forward(self, net: nn.Module, x: Any) -> Any:
        """The inner stepper's."""
        return self.inner.forward(net, x)

    def step(self, run: Run, events: Events) -> Tensor:
        """The inner stepper's step; gives the loss over all rows of the batch."""
        calls = self.averaging.calls if self.averaging else -1
        shared = Weighting(events, self.team, self._average_others)
        run.crit = crit = weighted(run.crit)  # a callback may have assigned another
        crit.divisor, crit.sums = None, False  # and a stepper may compute its loss without it
        loss = self.inner.step(run, shared)
        self.team.draws.end()  # a stepper may have told nothing of its gradients
        if self.averaging and self.averaging.calls == calls:
            raise RuntimeError(_not_called(run.stepper))
        return loss if shared.loss is None else shared.loss

    def _average_others(self, run: Run) -> None:
        """Averages the gradients that the net's averaging does not know: those of a loss."""
        for p in others(run.net, run.opt):
            if p.grad is None:
                p.grad = torch.zeros_like(p)
            self.team.dist.all_reduce(p.grad, group=self.team.group)
            p.grad /= self.team.size


class Weighting(Events):
    """The events of a step; after all handlers the loss is weighted by what this part counts."""

    def __init__(self, events: Events, team: Team, average: Callable[[Run], None]) -> None:
        self.events, self.team, self.average = events, team, average
        self.loss: Tensor | None = None
        for name in ("on_batch_begin", "on_batch_end"):
            setattr(self, name, getattr(events, name))

    def on_backward_begin(self, run: Run) -> None:
        share = self._share(run)
        self.events.on_backward_begin(run)
        if not self.team.rows[0]:  # the row that is there to step with counts nothing
            run.loss = _zero(run)
        else:  # a part whose labels are all ignored has the loss nan, and counts nothing
            run.loss = torch.where(share > 0, run.loss, 0.0) * share

    def _share(self, run: Run) -> Tensor:
        """The factor with which gradients, averaged over processes, are those of the whole batch.

        The loss over all rows is summed on the way, where it is: on a GPU nothing waits for it.
        """
        crit: Any = run.crit
        loss, (mine, rows) = run.loss.detach(), self.team.rows
        divisor = 1.0 if crit.sums else crit.divisor
        weight = torch.zeros((), dtype=torch.float64, device=loss.device)
        if mine and divisor is not None:
            weight += divisor
        value = loss.double().reshape(()) if mine else weight
        unknown = torch.full_like(weight, mine > 0 and divisor is None)
        weighted = torch.where(weight > 0, value * weight, 0.0)  # nan, where all labels are ignored
        parts = torch.stack([weighted, weight, value * mine, unknown])
        self.team.dist.all_reduce(parts, group=self.team.group)
        by_divisor, divisors, by_rows, unknowns = parts.unbind()
        known = unknowns == 0
        total = torch.where(known, by_divisor, by_rows)
        count = torch.where(known, torch.ones_like(divisors) if crit.sums else divisors, rows)
        self.loss = (total / count).to(loss.dtype)
        crit.known = known
        crit.total = float(rows) if crit.sums else count  # among batches a sum counts by its rows
        own = torch.where(known, weight, float(mine))
        share: Tensor = own * self.team.size / count.clamp(min=1e-300)
        return share.to(loss.dtype)

    def on_backward_end(self, run: Run) -> None:
        self.average(run)
        self.team.draws.end()  # what changes gradients and weights must be the same in all
        self.events.on_backward_end(run)


def _zero(run: Run) -> Tensor:
    """A loss whose gradients are 0, for which the other processes wait."""
    tensors = [t for t in leaves(run.preds) if isinstance(t, Tensor) and t.requires_grad]
    return torch.stack([t.sum() * 0 for t in tensors]).sum() if tensors else run.loss * 0


class Agree(Callback):
    """Lets a stop that one process asked for be everybody's, at the same batch.

    Running averages are the first process's wherever a net is looked at: each has seen other rows.
    """

    def __init__(self, team: Team) -> None:
        self.team = team

    def on_epoch_begin(self, run: Run) -> None:
        self._agree(run)

    def on_batch_end(self, run: Run) -> None:
        self._agree(run)

    def on_validate_begin(self, run: Run) -> None:
        self.team.same(*_buffers(run))

    def on_epoch_end(self, run: Run) -> None:
        self.team.same(*_buffers(run))  # without validation it was not done yet
        self._agree(run)
        self.team.same_random(run.data.trn_dl)  # the first process may have drawn for itself

    def _agree(self, run: Run) -> None:
        if self.team.total(run.asked is not None)[0]:
            self.team.same(*_buffers(run))
            told = [asked for asked in self.team.gathered(run.asked) if asked is not None]
            run.stopped = run.stopped or told[0][0]
            run.paused = all(paused for _, paused in told)
            run.asked = None


def _buffers(run: Run) -> list[Tensor]:
    return Trained(run.net, run.crit, run.opt).buffers()


class Averaging:
    """Lets a backward pass through the net average the gradients over all processes.

    DistributedDataParallel is made to be called in the net's place. Here it is given the net's
    output instead, by a hook: it finds in the output's graph the gradients that will come. So the
    net stays the user's: names in its state, type, attributes, and any stepper that calls it.

    Attributes:
        calls: How often the net was called to learn.
    """

    def __init__(self, group: Any = None) -> None:
        self.calls, self.group = 0, group
        self.ddp: Any = None
        self.learns: list[bool] = []

    @contextmanager
    def of(self, net: nn.Module) -> Iterator[Averaging]:
        """While it lasts."""
        hook = net.register_forward_hook(_Hook(self.after))
        try:
            yield self
        finally:
            hook.remove()
            # An error's traceback keeps this, and must not keep the connections.
            self.ddp = self.group = None

    def after(self, module: nn.Module, args: Any, output: Any) -> Any:
        """The output, from which a backward pass averages the gradients."""
        learns = [p.requires_grad for p in module.parameters()]
        self.calls += torch.is_grad_enabled()
        if not (torch.is_grad_enabled() and any(learns)):
            return output
        if self.ddp is None or learns != self.learns:  # a callback has frozen some
            self.learns, self.ddp = learns, None
            # A parameter that a batch leaves out has no gradient then, as in one process. torch
            # warns if there is none such, so there is one.
            both = _Output()
            both.net, both.unused = module, nn.Parameter(torch.zeros(1, device=device_of(module)))
            self.ddp = nn.parallel.DistributedDataParallel(
                both, process_group=self.group, find_unused_parameters=True, init_sync=False
            )
            self.ddp.broadcast_buffers = False  # `Agree` sends them when they are looked at
        return self.ddp(output)


class _Output(nn.Module):
    """Holds the parameters of a net whose output was computed already."""

    def forward(self, output: Any) -> Any:
        return output


class _Hook:
    """A hook on a net, of which a copy of the net, or one in a file, has a blank."""

    def __init__(self, call: Callable[..., Any] | None = None) -> None:
        self.call = call

    def __call__(self, *args: Any) -> Any:
        return self.call(*args) if self.call is not None else None

    def __reduce__(self) -> Any:
        return _Hook, ()


def _not_called(stepper: Stepper) -> str:
    return explain(
        "several processes do not learn together: the stepper did not call the net",
        got=f"a step of {type(stepper).__name__} without a call of net(...)",
        wanted="net(x), in which the processes' gradients are averaged",
        fix="call the net as a whole in forward, not its layers one by one; or use one process",
        entry="several-processes",
    )
