"""Several processes that train one net: what `fit` and `predict` do under `torchrun`.

Each process takes its part of each batch's rows; gradients are averaged by torch's
DistributedDataParallel, everything else that must be the same in all is agreed upon here.
"""

from __future__ import annotations

import atexit
import gc
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from itertools import islice
from threading import Thread
from typing import Any

import torch
from torch import Tensor, nn

from .callback import Callback, Events, Run
from .checkpoint import random_state, set_random_state, size_of
from .core import device_of, explain
from .dataloader import ArrayLoader
from .metrics import RowMean
from .process_group import begin_group
from .stepper import Stepper

__all__ = ["Team", "join"]


class Team:
    """The processes that `torchrun` started, seen from one of them.

    Attributes:
        rank: The number of this process, from 0.
        size: How many there are.
    """

    def __init__(self) -> None:
        import torch.distributed as dist

        self.dist = dist
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.rows = (1, 1)  # of the batch under way: this process's, and all

    # ---- the same in all -----------------------------------------------------------------

    def total(self, *values: float) -> list[float]:
        """The sums over all processes, the same to the bit in each."""
        t = torch.tensor(values, dtype=torch.float64)
        self.dist.all_reduce(t)
        found: list[float] = t.tolist()
        return found

    def gathered(self, value: Any) -> list[Any]:
        """The values of all processes, by their numbers."""
        found: list[Any] = [None] * self.size
        self.dist.all_gather_object(found, value)
        return found

    def from_first(self, make: Callable[[], Any]) -> Any:
        """What the first process makes, in all; its error is the others' too."""
        told: list[Any] = [None, None]
        if self.rank == 0:
            try:
                told = [make(), None]
            except Exception as error:
                told = [None, error]
        self.dist.broadcast_object_list(told)
        if told[1] is not None:
            raise told[1]
        return told[0]

    def same_random(self, loader: Any) -> None:
        """Puts all generators where the first process's are: an epoch's order is one for all."""
        set_random_state(self.from_first(lambda: random_state(loader)), loader)

    def same_buffers(self, net: nn.Module) -> None:
        """The first process's running averages, for all."""
        for buffer in net.buffers():
            self.dist.broadcast(buffer, 0)

    # ---- each its part -------------------------------------------------------------------

    @contextmanager
    def sharing(self, *loaders: Any) -> Iterator[None]:
        """While it lasts, arrays hand out this process's part of each batch of all."""
        before = [(dl, dl.part) for dl in loaders if isinstance(dl, ArrayLoader)]
        for dl, _ in before:
            dl.part = (self.rank, self.size)
        try:
            yield
        finally:
            for dl, part in before:
                dl.part = part

    def parts(
        self, loader: Any, batches: Iterable[Any], sizes: Iterable[int] = ()
    ) -> Iterator[Any]:
        """This process's part of each batch; `rows` says how many rows it has, and all have.

        An `ArrayLoader` gives parts itself, of batches of `sizes`. Of another loader's batches as
        many as there are processes are one. A batch with fewer rows than processes leaves some
        without: they get a row that counts nothing, since all must take each step.
        """
        if isinstance(loader, ArrayLoader):
            for n, batch in zip(sizes, batches, strict=False):
                self.rows = share(n, self.rank, self.size), n
                yield batch
            return
        batches = iter(batches)
        while group := list(islice(batches, self.size)):
            whole = joined(group)
            n = len(first_tensor(whole))
            self.rows = share(n, self.rank, self.size), n
            places = torch.arange(n).tensor_split(self.size)[self.rank]
            yield taken(whole, places if len(places) else torch.zeros(1, dtype=torch.int64))

    def batches(self, loader: Any, n: int) -> int:
        """How many batches of all processes n of the loader's are."""
        return n if isinstance(loader, ArrayLoader) else -(-n // self.size)

    def training_parts(self, loader: Any, batches: Iterable[Any], done: int) -> Iterator[Any]:
        """`parts` of an epoch of which so many batches were taken before."""
        sizes = loader.batch_rows(done) if isinstance(loader, ArrayLoader) else ()
        return self.parts(loader, batches, sizes)

    def in_order(self, loader: Any, bs: int) -> Iterator[Any]:
        """`parts` of all rows in their own order, `bs` of them (of all processes) at a time."""
        if not isinstance(loader, ArrayLoader):
            return self.parts(loader, loader)
        n, rest = divmod(loader.n_rows, bs)
        with self.sharing(loader):
            return self.parts(loader, loader.in_order(bs), [bs] * n + [rest] * (rest > 0))

    def update(self, meter: Any, preds: Any, y: Any) -> None:
        """Lets a metric take a batch: a mean over rows its part, any other all of it."""
        if not isinstance(meter, RowMean):
            meter.update(self.whole(preds), self.whole(y))
        elif self.rows[0]:
            meter.update(preds, y)

    def computed(self, meter: Any) -> Any:
        """A metric's value over the rows of all."""
        if not isinstance(meter, RowMean):
            return meter.compute()
        values = [float(v) * n for v, n in zip(meter.values, meter.rows, strict=True)]
        total, rows = self.total(math.fsum(values), sum(meter.rows))
        return total / rows if rows else math.nan

    def skipped(self, loader: Any, batches: int) -> int:
        """How many of the loader's own batches so many of all processes are."""
        return batches if isinstance(loader, ArrayLoader) else batches * self.size

    def whole(self, value: Any) -> Any:
        """The rows that all processes have of a batch, in their order, on the CPU."""
        mine = self.rows[0]
        if value is None:
            return None
        return torch.cat([t for t in self.gathered(value.detach().cpu()[:mine]) if len(t)])

    # ---- nets that lie in parts on several processes ---------------------------------------

    def shards(self, net: nn.Module) -> bool:
        """Whether the net's parameters lie in parts on several processes (`fully_shard`)."""
        from torch.distributed.tensor import DTensor

        return any(isinstance(p, DTensor) for p in net.parameters())

    def whole_state(self, net: nn.Module, opt: torch.optim.Optimizer) -> tuple[Any, Any]:
        """The states of a sharded net and its optimizer as of one that is not, on the CPU.

        The first process has them whole, the others may have less.
        """
        from torch.distributed.checkpoint import state_dict as dcp

        options = dcp.StateDictOptions(full_state_dict=True, cpu_offload=True)
        weights = dcp.get_model_state_dict(net, options=options)
        parts: Any = dcp.get_optimizer_state_dict(net, opt, options=options).get("state", {})
        names, groups = _names_and_groups(net, opt)
        state = {i: parts[name] for i, name in enumerate(names) if name in parts}
        return weights, {"state": state, "param_groups": groups}

    def put_whole_state(
        self, net: nn.Module, opt: torch.optim.Optimizer, weights: Any, state: Any
    ) -> None:
        """Gives each process its part of what `whole_state` gave, or an ordinary net's state."""
        from torch.distributed.checkpoint import state_dict as dcp

        options = dcp.StateDictOptions(full_state_dict=True)
        dcp.set_model_state_dict(net, weights, options=options)
        names, _ = _names_and_groups(net, opt)
        named: Any = {
            "state": {names[i]: part for i, part in state["state"].items()},
            "param_groups": [
                {**group, "params": [names[i] for i in group["params"]]}
                for group in state["param_groups"]
            ],
        }
        dcp.set_optimizer_state_dict(net, opt, named, options=options)

    # ---- training ------------------------------------------------------------------------

    @contextmanager
    def training(self, run: Run, stepper: Stepper) -> Iterator[Stepper]:
        """A stepper for all processes in the place of the one for each."""
        with ExitStack() as stack:
            stack.enter_context(self.failing_together())
            stack.enter_context(self.sharing(run.data.trn_dl, run.data.val_dl))
            if not self.shards(run.net):  # fully_shard has hooks of its own
                stack.enter_context(gradients_averaged(run.net))
            yield Together(self, stepper)

    @contextmanager
    def failing_together(self) -> Iterator[None]:
        """An error in one process ends all with that error.

        The others may wait for this one in the midst of a step. That it left is told in the store
        that all can read; then the connections are closed, which wakes them.
        """
        try:
            yield
        except BaseException as error:
            mine = f"{self.rank}:{type(error).__name__}: {error}"
            store = self.dist.distributed_c10d._get_default_store()
            told = answered(lambda: store.compare_set("minifast/error", "", mine).decode())
            del store
            _part(mine.partition(":")[2])
            if told is None:  # the store went with the process that had it, or is cut off
                raise
            rank, _, text = told.partition(":")
            if text == mine.partition(":")[2]:
                raise
            raise RuntimeError(f"process {rank} ended with {text}") from error


class Together(Stepper):
    """A step that all processes take, each on its part of the batch."""

    def __init__(self, team: Team, stepper: Stepper) -> None:
        self.team, self.inner = team, stepper

    def forward(self, net: nn.Module, x: Any) -> Any:
        """The inner stepper's."""
        return self.inner.forward(net, x)

    def step(self, run: Run, events: Events) -> Tensor:
        """The inner stepper's step; gives the loss over all rows of the batch."""
        mine, all_rows = self.team.rows
        # Averaged over processes, the gradients are then those of the mean over rows.
        loss = self.inner.step(run, Weighing(events, mine * self.team.size / all_rows))
        (total,) = self.team.total(float(loss.detach()) * mine if mine else 0.0)
        return torch.tensor(total / all_rows)


class Weighing(Events):
    """The events of a step; behind all who listen the loss is weighed by the part's rows."""

    def __init__(self, events: Events, weight: float) -> None:
        self.events, self.weight = events, weight
        for name in ("on_batch_begin", "on_backward_end", "on_batch_end"):
            setattr(self, name, getattr(events, name))

    def on_backward_begin(self, run: Run) -> None:
        self.events.on_backward_begin(run)
        if self.weight != 1:
            run.loss = run.loss * self.weight


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
        self.team.same_buffers(run.net)

    def on_epoch_end(self, run: Run) -> None:
        self.team.same_buffers(run.net)  # without validation it was not done yet
        self._agree(run)

    def _agree(self, run: Run) -> None:
        if self.team.total(run.asked is not None)[0]:
            self.team.same_buffers(run.net)
            told = [asked for asked in self.team.gathered(run.asked) if asked is not None]
            run.stopped = run.stopped or told[0][0]
            run.paused = all(paused for _, paused in told)
            run.asked = None


@contextmanager
def gradients_averaged(net: nn.Module) -> Iterator[None]:
    """While it lasts a backward pass through the net averages the gradients over all processes.

    torch's DistributedDataParallel wants to be called in the net's place. Its two halves are hooked
    to the net instead, as torch's own `replicate` does, so that the net stays the user's: names in
    its state, type, attributes, and any stepper that calls it.
    """
    held: dict[str, Any] = {"learns": None, "ddp": None, "now": False}

    def before(module: nn.Module, args: Any, kwargs: Any) -> Any:
        learns = [p.requires_grad for p in module.parameters()]
        held["now"] = module.training and torch.is_grad_enabled() and any(learns)
        if not held["now"]:
            return args, kwargs
        if learns != held["learns"]:  # the first time, and where a callback has frozen some
            held["learns"], held["ddp"] = learns, None
            # A parameter that a batch leaves out has no gradient then, as in one process. torch
            # warns if there is none such, so there is one.
            both = nn.Module()
            both.net, both.unused = module, nn.Parameter(torch.zeros(1, device=device_of(module)))
            held["ddp"] = nn.parallel.DistributedDataParallel(both, find_unused_parameters=True)
        return held["ddp"]._pre_forward(*args, **kwargs)

    def after(module: nn.Module, args: Any, output: Any) -> Any:
        return held["ddp"]._post_forward(output) if held["now"] else output

    hooks = [
        net.register_forward_pre_hook(before, prepend=True, with_kwargs=True),
        net.register_forward_hook(after),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        held.clear()  # an error's traceback keeps this frame, and must not keep the connections


def heard(run: Run, callbacks: Sequence[Callback]) -> list[Callback]:
    """Who is told of events in this process."""
    if run.team is None:
        return list(callbacks)
    ours = [c for c in callbacks if run.rank == 0 or not c.first_process_only]
    return [*ours, Agree(run.team)]


@contextmanager
def together(run: Run, stepper: Stepper) -> Iterator[Stepper]:
    """The stepper to train with: the given one, or one of several processes."""
    with nullcontext(stepper) if run.team is None else run.team.training(run, stepper) as shared:
        run.given = size_of(run)  # in batches of all processes
        yield shared


def answered(ask: Callable[[], str], seconds: float = 10) -> str | None:
    """What torch's store says; None if it is gone or silent: behind a cut link it waits for ever.

    Examples:
        >>> answered(lambda: "yes")
        'yes'
    """
    found: list[str] = []

    def asks() -> None:
        with suppress(RuntimeError):
            found.append(ask())

    thread = Thread(target=asks, daemon=True)
    thread.start()
    thread.join(seconds)
    return found[0] if found else None


# ---- batches and their parts -------------------------------------------------------------


def share(n: int, rank: int, size: int) -> int:
    """How many of n rows a process has, as `tensor_split` deals them.

    Examples:
        >>> [share(10, rank, 4) for rank in range(4)]
        [3, 3, 2, 2]
    """
    return n // size + (rank < n % size)


def first_tensor(batch: Any) -> Tensor:
    """One of a batch's tensors."""
    if isinstance(batch, Tensor):
        return batch
    parts = batch.values() if isinstance(batch, dict) else batch
    return first_tensor(next(iter(parts)))


def joined(batches: list[Any]) -> Any:
    """Several batches as one.

    Examples:
        >>> joined([(torch.zeros(2, 3), torch.zeros(2)), (torch.ones(1, 3), torch.ones(1))])[1]
        tensor([0., 0., 1.])
    """
    one = batches[0]
    if isinstance(one, Tensor):
        return torch.cat(batches)
    if isinstance(one, dict):
        return {key: joined([b[key] for b in batches]) for key in one}
    return tuple(joined(list(parts)) for parts in zip(*batches, strict=True))


def taken(batch: Any, rows: Tensor) -> Any:
    """Some rows of a batch."""
    if isinstance(batch, Tensor):
        return batch[rows]
    if isinstance(batch, dict):
        return {key: taken(part, rows) for key, part in batch.items()}
    return tuple(taken(part, rows) for part in batch)


def _names_and_groups(net: nn.Module, opt: torch.optim.Optimizer) -> tuple[list[str], Any]:
    """The optimizer's parameters by name, in the order of its own state, and its groups."""
    of = {id(p): name for name, p in net.named_parameters()}
    names = [of[id(p)] for group in opt.param_groups for p in group["params"]]
    return names, opt.state_dict()["param_groups"]


# ---- joining -----------------------------------------------------------------------------

_team: Team | None = None
_parted: str | None = None


def join(timeout: float = 600) -> Team | None:
    """The team, if `torchrun` (or the like) has started several processes; else None.

    The process group is made at the first call, for the CPU and for GPUs, unless the program has
    made one itself, and is taken down when the program ends. `fit` and `predict` call it.

    Args:
        timeout: Seconds, of the first call: who is silent for longer while others wait is lost.

    Raises:
        RuntimeError: after an error that has parted the processes.
    """
    global _team
    if _team is None and int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ:
        if _parted is not None:
            raise RuntimeError(
                explain(
                    "the processes have parted",
                    got=f"a call after: {_parted}",
                    wanted="all of them, from the start",
                    fix="torchrun --max-restarts 3 with a Checkpoint, or start again",
                    entry="several-processes",
                )
            )
        if not torch.distributed.is_initialized():
            begin_group(timeout)
            atexit.register(_leave)
        _team = Team()
    return _team


def _leave() -> None:
    global _team
    _team = None
    gc.collect()  # what still refers to the group would keep its connections and threads
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    gc.collect()


def _part(reason: str) -> None:
    global _parted
    _parted = reason
    _leave()
