"""Several processes that train one net: what `fit` and `predict` do under `torchrun`.

Each process takes its part of each batch's rows; gradients are averaged by torch's
DistributedDataParallel, everything else that must be the same in all is agreed upon here.
"""

from __future__ import annotations

import atexit
import gc
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from itertools import islice
from threading import Thread
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from .batches import concat, map_structure, scatter, shard_size
from .callback import Callback, Run
from .core import explain
from .dataloader import ArrayLoader
from .losses import weighted
from .metrics import WeightedMean
from .process_group import begin_group, is_helper, world_size
from .rng import random_state, set_random_state
from .sharded import is_sharded
from .stepper import Stepper
from .together import Agree, Averaging, Together
from .trained import Trained, others

__all__ = ["Team", "join"]


class Team:
    """The processes that `torchrun` started, seen from one of them.

    Attributes:
        rank: The number of this process, from 0.
        size: How many there are.
        rows: Of the batch that is learned from: this process's rows, and those of all.
    """

    def __init__(self) -> None:
        import torch.distributed as dist

        self.dist = dist
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        gpu_only = dist.get_backend() == "nccl"  # as a program's own group may be
        self.device = torch.device("cuda" if gpu_only else "cpu")
        self.rows = self.looked_at = (1, 1)

    # ---- the same in all -----------------------------------------------------------------

    def total(self, *values: float) -> list[float]:
        """The sums over all processes, the same to the bit in each."""
        t = torch.tensor(values, dtype=torch.float64, device=self.device)
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

    @torch.no_grad()
    def same(self, *tensors: Tensor) -> None:
        """The first process's numbers, for all: weights, running averages."""
        for t in tensors:
            if is_lazy(t) or t.numel() == 0:
                continue
            if t.layout != torch.strided:
                t.copy_(self.from_first(t.detach))
                continue
            if any(n > 1 and not step for n, step in zip(t.shape, t.stride(), strict=True)):
                continue  # a number that stands for many cannot be written many times
            # As bytes, since not every kind of number can be sent.
            whole = (t.detach() if t.is_cuda else t.detach().to(self.device)).contiguous()
            self.dist.broadcast(whole.reshape(-1).view(torch.uint8), 0)
            if whole.data_ptr() != t.data_ptr():
                t.copy_(whole)

    def same_net(self, net: nn.Module) -> None:
        """The first process's weights and buffers, for all.

        Raises:
            RuntimeError: if the processes have different nets.
        """
        if is_sharded(net):  # its parts differ, as they should
            return
        ours = [(name, str(t.dtype), tuple(t.shape)) for name, t in net.state_dict().items()
                if isinstance(t, Tensor) and not is_lazy(t)]  # fmt: skip
        for rank, theirs in enumerate(self.gathered(ours)):
            if theirs != ours:
                raise RuntimeError(_other_nets(rank, theirs, self.rank, ours))
        self.same(*net.parameters(), *net.buffers())

    # ---- each its part -------------------------------------------------------------------

    def parts(
        self, loader: Any, batches: Iterable[Any], sizes: Iterable[int] = ()
    ) -> Iterator[tuple[tuple[int, int], Any]]:
        """The rows of this process and of all, and this process's part, of each batch.

        A view of an `ArrayLoader` gives parts itself, of batches of `sizes`. Of another loader's
        batches as many as there are processes are one, and every process's loader gives the same
        ones. A batch with fewer rows than processes leaves some without: they get a row that counts
        nothing, since all must take each step.
        """
        if isinstance(loader, ArrayLoader):
            for n, batch in zip(sizes, batches, strict=False):
                yield (shard_size(n, self.rank, self.size), n), batch
            return
        _check_not_dealt(loader, self.size)
        batches = iter(batches)
        while True:
            group = list(islice(batches, self.size))
            counts = self.total(len(group), len(group) ** 2)
            if counts != [len(group) * self.size, len(group) ** 2 * self.size]:
                raise RuntimeError(_not_as_many(loader, len(group)))
            if not group:
                return
            mine, n, part = scatter(group, self.rank, self.size)
            yield (mine, n), part

    def batches(self, loader: Any, n: int) -> int:
        """How many batches of all processes n of the loader's are."""
        return n if isinstance(loader, ArrayLoader) else -(-n // self.size)

    def training_parts(
        self, loader: Any, batches: Iterable[Any], done: int
    ) -> Iterator[tuple[tuple[int, int], Any]]:
        """The parts of an epoch of which so many batches were taken before, with their rows."""
        sizes = loader.batch_rows(done) if isinstance(loader, ArrayLoader) else ()
        return self.parts(loader, batches, sizes)

    def taken(self, part: tuple[tuple[int, int], Any]) -> Any:
        """The part of a batch, which is the one that is learned from now."""
        self.rows, batch = part
        return batch

    def in_order(self, loader: Any, bs: int) -> Iterator[Any]:
        """The parts of all rows in their own order, `bs` of them (of all processes) at a time."""
        if isinstance(loader, ArrayLoader):
            n, rest = divmod(loader.n_rows, bs)
            mine = loader.view(shard=(self.rank, self.size)).in_order(bs)
            parts = self.parts(loader, mine, [bs] * n + [rest] * (rest > 0))
        else:
            self.same_random(loader)  # it may shuffle
            parts = self.parts(loader, loader)
        for rows, part in parts:
            self.looked_at = rows
            yield part

    def update(self, meter: Any, preds: Any, y: Any) -> None:
        """Adds a batch to a metric: this process's part to a mean, all rows to any other."""
        if not isinstance(meter, WeightedMean):
            meter.update(self.whole(preds), self.whole(y))
        elif self.looked_at[0]:
            meter.update(preds, y, self.looked_at[0])

    def computed(self, meter: Any) -> Any:
        """A metric's value over the rows of all processes."""
        if not isinstance(meter, WeightedMean):
            return meter.compute()
        return meter.mean_of(self.total(*meter.totals()))

    def skipped(self, loader: Any, batches: int) -> int:
        """How many of the loader's own batches so many of all processes are."""
        return batches if isinstance(loader, ArrayLoader) else batches * self.size

    def whole(self, value: Any) -> Any:
        """The rows that all processes have of a batch, in their order, on the CPU."""
        mine = map_structure(
            lambda leaf: leaf.detach().cpu() if isinstance(leaf, Tensor) else leaf, value
        )
        return concat([part for rows, part in self.gathered((self.looked_at[0], mine)) if rows])

    # ---- training ------------------------------------------------------------------------

    @contextmanager
    def training(self, run: Run, stepper: Stepper) -> Iterator[Stepper]:
        """A stepper for all processes in the place of the one for each."""
        with ExitStack() as stack:
            stack.enter_context(self.failing_together())
            run.crit = weighted(run.crit)
            self.same_net(run.net)
            trained = Trained(run.net, run.crit, run.opt)
            self.same(*others(run.net, run.opt), *trained.buffers())
            averaging = None
            if not is_sharded(run.net):  # fully_shard has hooks of its own
                averaging = stack.enter_context(Averaging().of(run.net))
            yield Together(self, stepper, averaging)
            self.same(*trained.buffers())
            self.total(0.0)  # whoever ends otherwise has said so by now

    @contextmanager
    def failing_together(self) -> Iterator[None]:
        """An error in one process ends all with that error.

        The others may wait for this one in the midst of a step. That it left is told in the store
        that all can read; then the connections are closed, which wakes them.
        """
        try:
            yield
        except BaseException as error:
            if not self.dist.is_initialized():  # they have parted, in a call within this one
                raise
            mine = f"{self.rank}:{type(error).__name__}: {error}"
            store = self.dist.distributed_c10d._get_default_store()
            told = answered(lambda: store.compare_set("minifast/error", "", mine).decode())
            del store
            _part(mine.partition(":")[2])
            if told is None:  # the store went with the process that had it, or is cut off
                raise
            rank, _, text = told.partition(":")
            if text == mine.partition(":")[2] or _is_own(error, text):
                raise
            raise RuntimeError(f"process {rank} ended with {text}") from error


def _is_own(error: BaseException, told: str) -> bool:
    """Whether it is an error that this process has made itself, as others did, in its words."""
    closed = isinstance(error, RuntimeError)  # as when another has closed its connections
    return not closed and told.startswith(f"{type(error).__name__}:")


def failing_together() -> AbstractContextManager[None]:
    """`Team.failing_together`, where there are several processes."""
    team = join()
    return nullcontext() if team is None else team.failing_together()


def same_net(net: nn.Module) -> None:
    """`Team.same_net`, where there are several processes."""
    team = join()
    if team is not None:
        team.same_net(net)


def heard(run: Run, callbacks: Sequence[Callback]) -> list[Callback]:
    """Who is told of events in this process."""
    if run.team is None:
        return list(callbacks)
    ours = [c for c in callbacks if run.rank == 0 or not c.first_process_only]
    return [*ours, Agree(run.team)]


def together(run: Run, stepper: Stepper) -> AbstractContextManager[Stepper]:
    """The stepper to train with: the given one, or one of several processes."""
    return nullcontext(stepper) if run.team is None else run.team.training(run, stepper)


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


# ---- what cannot be ----------------------------------------------------------------------


def _other_nets(rank: int, theirs: list[Any], here: int, ours: list[Any]) -> str:
    differ = [each for each in ours if each not in theirs] or ours[len(theirs) :]
    return explain(
        "the processes have different nets",
        got=f"process {here} has {len(ours)} weights, {rank} {len(theirs)}; first: {differ[:1]}",
        wanted="the same layers in each",
        fix="build the net by the same code in each process",
        entry="several-processes",
    )


def _check_not_dealt(loader: Any, size: int) -> None:
    sampler = getattr(loader, "sampler", None)
    if isinstance(sampler, torch.utils.data.DistributedSampler) and sampler.num_replicas > 1:
        raise ValueError(
            explain(
                "the loader's rows were dealt out already, and fit deals them again",
                got=f"a DistributedSampler of {sampler.num_replicas}, in {size} processes",
                wanted="a loader of all rows in each process",
                fix="DataLoader(data, batch_size, shuffle=True), without the sampler",
                entry="several-processes",
            )
        )


def _not_as_many(loader: Any, here: int) -> str:
    return explain(
        "the processes' loaders do not give the same batches",
        got=f"{here} of {type(loader).__name__} here, and another number elsewhere",
        wanted="the same batches in each process, of which fit takes each its part",
        fix="give each process's loader the same rows; a stream that differs needs steps=",
        entry="several-processes",
    )


# ---- joining -----------------------------------------------------------------------------

_team: Team | None = None
_parted: str | None = None


def join(timeout: float = 600) -> Team | None:
    """The team, if `torchrun` (or the like) has started several processes; else None.

    The process group is made at the first call, for the CPU and for GPUs, unless the program has
    made one itself, and is taken down when the program ends. `fit` and `predict` call it. Processes
    that one of the team starts by `multiprocessing`, such as a pool's, belong to none (on Linux).

    Args:
        timeout: Seconds, of the first call: who is silent for longer while others wait is lost.

    Raises:
        RuntimeError: after an error that has parted the processes.
        ValueError: if the environment is none that a launcher makes.
    """
    global _team
    dist = torch.distributed
    made = dist.is_available() and dist.is_initialized()
    if is_helper() and (_team is not None or not made):  # a fork has its parent's team, too
        return None
    if _team is not None and made:
        return _team
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
    if (dist.get_world_size() if made else world_size()) < 2:
        return None
    if not made:
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
