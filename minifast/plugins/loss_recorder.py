"""What happened in each batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..callback import Callback, Run
from ..dataloader import ArrayLoader
from ..dataset import ModelData
from ..model import fit
from ..team import join

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class LossRecorder(Callback):
    """Notes the loss, the learning rate and the momentum of each batch.

    `history.plot(recorder.losses)` draws the losses of the batches below those of the epochs.

    Attributes:
        losses: The criterion's loss of each batch of the fit, read when an epoch or the fit ends.
        lrs: The learning rate with which each batch was learned: the last parameter group's, as in
            fastai.
        momentums: Its momentum, or Adam's first beta; 0 where there is none.

    Examples:
        >>> from minifast.testing import example_fit
        >>> recorder = LossRecorder()
        >>> history = example_fit([recorder], epochs=2)
        >>> len(recorder.losses), recorder.lrs[0]
        (16, 0.05)
    """

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.lrs: list[float] = []
        self.momentums: list[float] = []
        self._unread: list[Any] = []
        self._used: tuple[float, float] | None = None

    def on_train_begin(self, run: Run) -> None:
        """Forgets an earlier fit."""
        self.losses, self.lrs, self.momentums, self._unread = [], [], [], []

    def on_backward_end(self, run: Run) -> None:
        """Notes what the step is made with: when the batch has ended, `Warmup` has restored it."""
        self._used = _settings(run)

    def on_batch_end(self, run: Run) -> None:
        """Notes the batch."""
        lr, momentum = self._used or _settings(run)  # a stepper may fire no event in its step
        self._used = None
        self._unread.append(run.running_loss.last)
        self.lrs.append(lr)
        self.momentums.append(momentum)

    def on_epoch_end(self, run: Run) -> None:
        """Reads the losses: only here does anything wait for a GPU."""
        self.read()

    def on_train_end(self, run: Run) -> None:
        """Reads those of an interrupted epoch."""
        self.read()

    def read(self) -> None:
        """Reads the losses noted since it was last called."""
        self.losses += [float(loss) for loss in self._unread]
        self._unread = []

    def state_dict(self) -> dict[str, Any]:
        """The three lists."""
        self.read()
        return {"losses": self.losses, "lrs": self.lrs, "momentums": self.momentums}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes them back."""
        self.losses, self.lrs = list(state["losses"]), list(state["lrs"])
        self.momentums = list(state["momentums"])

    def plot_loss(self) -> Figure:
        """Draws the loss over the batches."""
        from ..plots import plot_lines

        return plot_lines({"": {"loss": self.losses}}, "batch")

    def plot_lr(self) -> Figure:
        """Draws learning rate and momentum over the batches."""
        from ..plots import plot_schedule

        return plot_schedule(self.lrs, self.momentums if any(self.momentums) else None)


def _settings(run: Run) -> tuple[float, float]:
    group = run.opt.param_groups[-1]
    return float(group["lr"]), float(group.get("betas", (group.get("momentum", 0.0),))[0])


class _OneWeight(nn.Module):
    def __init__(self, groups: Sequence[Sequence[nn.Parameter]]) -> None:
        super().__init__()
        self.weights = nn.ParameterList(p for group in groups for p in group)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return sum((p.sum() for p in self.weights), x.sum())


def preview(
    callbacks: Sequence[Callback],
    opt: torch.optim.Optimizer,
    batches: int,
    epochs: int = 1,
) -> LossRecorder:
    """The learning rates and momenta that schedules would give, without the training.

    A net of one weight for each parameter group is fitted with them; `opt` itself and its net are
    not touched. Only schedules make sense here: what looks at losses or the net would see others.

    Args:
        callbacks: The schedules, in their order.
        opt: The optimizer that they would schedule: its class, groups, learning rates and momenta
            count.
        batches: How many batches an epoch would have, such as `len(md.trn_dl)`.
        epochs: How many epochs there would be.

    Examples:
        >>> from minifast.plugins import OneCycle
        >>> opt = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1, momentum=0.9)
        >>> course = preview([OneCycle(max_lr=1.0)], opt, batches=100)
        >>> len(course.lrs), round(max(course.lrs), 3)
        (100, 1.0)
        >>> figure = course.plot_lr()
    """
    groups = [[nn.Parameter(torch.zeros(1))] for _ in opt.param_groups]
    settings = [
        {**{k: v for k, v in group.items() if k != "params"}, "params": weights}
        for group, weights in zip(opt.param_groups, groups, strict=True)
    ]
    team = join()
    x = torch.zeros(batches * (1 if team is None else team.size), 1)  # of all processes
    md = ModelData(".", ArrayLoader(x, x, bs=1))
    recorder = LossRecorder()
    fit(
        _OneWeight(groups),
        md,
        epochs,
        lambda preds, y: preds * 0,  # no gradient: nothing can diverge
        type(opt)(settings),  # type: ignore[call-arg]  # the base wants defaults, its heirs have them
        callbacks=[*callbacks, recorder],
        progress=False,
        checks="off",
    )
    return recorder
