"""Several processes that train one net: what `fit` and `predict` do under `torchrun`.

Each process takes its part of each batch's rows; gradients are averaged by torch's
DistributedDataParallel, everything else that must be the same in all is agreed upon here.
"""

from __future__ import annotations

import atexit
import gc
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from itertools import count, islice
from threading import Thread
from typing import Any

import torch
from torch import Tensor, nn

from .agreement import (
    Group,
    are_same_rows,
    check_not_dealt,
    ended,
    left_others,
    not_as_many,
    other_rows,
    rows_told,
)
from .batches import concat, map_structure, scatter, shard_size
from .callback import Callback, Run
from .core import device_of, explain
from .dataloader import ArrayLoader
from .draws import Draws, mixed
from .losses import weighted
from .metrics import WeightedMean
from .process_group import begin_group, is_helper, world_size
from .rng import random_state, set_random_state
from .sharded import is_sharded
from .stepper import Stepper
from .together import Agree, Averaging, Together
from .trained import Trained, others

__all__ = ["Team", "join"]


class Team(Group):
    """The processes that `torchrun` started, seen from one of them.

    Attributes:
        rows: Of the batch that is learned from: this process's rows, and those of all.
        draws: What this process draws random numbers from, in the fit under way.
    """

    def __init__(self, store: Any = None, timeout: float = 600) -> None:
        super().__init__(store, timeout)
        self.rows = self.looked_at = (1, 1)
        self.draws, self.fits = Draws(), 0

    # ---- drawing the same ----------------------------------------------------------------

    def order(self, run: Run) -> dict[str, Any]:
        """The generators from which all processes draw the epoch's order: the first one's.

        Raises:
            RuntimeError: if the processes have different rows.
        """
        loader = run.data.trn_dl
        ours = rows_told(loader)
        state, theirs = self.from_first(lambda: (random_state(loader), ours))
        if not are_same_rows(ours, theirs):
            raise RuntimeError(other_rows(self.rank, ours[:-1], theirs[:-1]))
        set_random_state(state, loader)
        self._set_key(run.order, state)
        return {**state, "draws": self.draws.key}

    def _set_key(self, order: dict[str, Any], state: dict[str, Any]) -> None:
        """Seeds the fit's streams as those of the epoch before; of the first by its generators.

        Those may be where they were in the fit before, if neither loader nor callbacks draw.
        """
        if "draws" in order:
            self.draws.key = order["draws"]
        else:
            self.draws.key = mixed(self.fits, state["torch"].numpy().tobytes())

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
        check_not_dealt(loader, self.size)
        batches = iter(batches)
        while True:
            group = list(islice(batches, self.size))
            counts = self.total(len(group), len(group) ** 2)
            if counts != [len(group) * self.size, len(group) ** 2 * self.size]:
                raise RuntimeError(not_as_many(loader, len(group)))
            if not group:
                return
            mine, n, part = scatter(group, self.rank, self.size)
            yield (mine, n), part

    def batches(self, loader: Any, n: int) -> int:
        """How many batches of all processes n of the loader's are."""
        return n if isinstance(loader, ArrayLoader) else -(-n // self.size)

    def training_parts(
        self, run: Run, loader: Any, batches: Iterable[Any]
    ) -> Iterator[tuple[tuple[int, int], Any]]:
        """The parts of the batches that are left of an epoch, with their rows.

        Batches that a loader draws as it goes are the same in all processes. What the `tfm` of an
        `ArrayLoader` draws, for rows of this process only, is not.
        """
        done = run.step - run.epoch_start
        if done:  # resumed
            self._set_key(run.order, run.order)
            run.order["draws"] = self.draws.key
        self.draws.loader_draws = not isinstance(loader, ArrayLoader)
        if not isinstance(loader, ArrayLoader):
            return self._drawn(self.parts(loader, batches))
        parts = self.parts(loader, batches, loader.batch_rows(done))
        return parts if loader.tfm is None else self._changed(parts, run.step)

    def _drawn(self, parts: Iterator[Any]) -> Iterator[Any]:
        """The parts, drawn from the stream that all processes have in common."""
        end = object()
        while True:
            with self.draws.common():
                part = next(parts, end)
            if part is end:
                return
            yield part

    def _changed(self, parts: Iterator[Any], step: int) -> Iterator[Any]:
        """The parts, each of them drawn from a stream of its own."""
        end = object()
        for number in count(step):
            with self.draws.of_batch(number):
                part = next(parts, end)
            if part is end:
                return
            yield part

    def taken(self, run: Run, parts: Iterator[Any]) -> Iterator[Any]:
        """The parts, each of which is the one that is learned from until the next is taken.

        As long the process draws from its own stream, or until the gradients are there.
        """
        draws = self.draws
        try:
            for self.rows, batch in parts:
                draws.begin(run.step)
                yield batch
                draws.end()
        except GeneratorExit:  # training stops within the epoch
            draws.end()
            raise

    def in_order(self, loader: Any, bs: int) -> Iterator[Any]:
        """The parts of all rows in their own order, `bs` of them (of all processes) at a time."""
        if isinstance(loader, ArrayLoader):
            n, rest = divmod(loader.n_rows, bs)
            mine = loader.view(shard=(self.rank, self.size)).in_order(bs)
            parts = self.parts(loader, mine, [bs] * n + [rest] * (rest > 0))
        else:
            with self.draws.common():
                self.same_random(loader)  # it may shuffle
                drawn = iter(loader)
            parts = self._drawn(self.parts(loader, drawn))
        for rows, part in parts:
            self.looked_at = rows
            yield part

    def update(self, meter: Any, preds: Any, y: Any) -> None:
        """Adds a batch to a metric: this process's part to a mean, all rows to any other."""
        if not isinstance(meter, WeightedMean):
            meter.update(self.whole(preds), self.whole(y))
            return
        mine = self.looked_at[0]
        value = meter.function(preds, y)
        if meter.function.sums:  # the value of the batch is the sum over its parts
            value = self.total(float(value) if mine else 0.0)[0]
        if mine:
            meter.add(value, mine, meter.function.divisor)

    def computed(self, meter: Any) -> Any:
        """A metric's value over the rows of all processes."""
        if not isinstance(meter, WeightedMean):
            return meter.compute()
        return meter.mean_of(self.total(*meter.totals()))

    def skipped(self, loader: Any, batches: int) -> int:
        """How many of the loader's own batches so many of all processes are."""
        return batches if isinstance(loader, ArrayLoader) else batches * self.size

    @contextmanager
    def checking(self) -> Iterator[None]:
        """What one process refuses before anything has begun, all refuse; connections stay."""
        mine: Exception | None = None
        try:
            yield
        except Exception as error:
            mine = error
        if self.total(mine is not None)[0]:
            told = self.gathered(None if mine is None else f"{type(mine).__name__}: {mine}")
            if mine is not None:
                raise mine
            rank = next(rank for rank, text in enumerate(told) if text is not None)
            raise RuntimeError(ended(rank, told[rank]))

    def each_taken(self, items: Iterator[Any]) -> Iterator[Any]:
        """The items, of which all processes take each, or stop at the same one.

        Raises:
            RuntimeError: if another process stopped and this one goes on; connections stay.
        """
        for number in count():
            with self.failing_together():
                item = next(items, self)
            if item is self:
                return
            try:
                yield item
            except GeneratorExit:
                if self.is_connected():
                    with suppress(RuntimeError):  # the others have ended
                        self.gathered(True)
                raise
            left = [rank for rank, leaves in enumerate(self.gathered(False)) if leaves]
            if left:
                raise RuntimeError(left_others(left[0], number))

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
        outer = self.draws, self.rows  # of a fit that this one is within
        with ExitStack() as stack:
            stack.enter_context(self.failing_together())
            stack.enter_context(self.draws.common())
            self.draws, self.fits = Draws(self.rank, device_of(run.net)), self.fits + 1
            run.crit = weighted(run.crit)
            self.same_random(run.data.trn_dl)
            self.same_net(run.net)
            trained = Trained(run.net, run.crit, run.opt)
            self.same(*others(run.net, run.opt), *trained.buffers())
            averaging = None
            if not is_sharded(run.net):  # fully_shard has hooks of its own
                averaging = stack.enter_context(Averaging(self.group).of(run.net))
            yield Together(self, stepper, averaging)
            self.same(*trained.buffers())
            self.same_random(run.data.trn_dl)
            self.total(0.0)  # whoever ends otherwise has said so by now
            self.draws, self.rows = outer

    @contextmanager
    def failing_together(self) -> Iterator[None]:
        """An error in one process ends all with that error.

        The others may wait for this one in the midst of a step. That it left is told in the store
        that all can read; then the connections are closed, which wakes them.
        """
        try:
            yield
        except BaseException as error:
            if not self.is_connected():  # they have parted, in a call within this one
                raise
            mine = f"{self.rank}:{type(error).__name__}: {error}"
            store, told = self.store, None
            if store is not None:
                told = answered(lambda: store.compare_set("minifast/error", "", mine).decode())
            self.store = store = None
            _part(mine.partition(":")[2])
            if told is None:  # the store went with the process that had it, or is cut off
                raise
            rank, _, text = told.partition(":")
            if text == mine.partition(":")[2] or _is_own(error, text):
                raise
            raise RuntimeError(ended(int(rank), text)) from error


def _is_own(error: BaseException, told: str) -> bool:
    """Whether it is an error that this process has made itself, as others did, in its words."""
    closed = isinstance(error, RuntimeError)  # as when another has closed its connections
    return not closed and told.startswith(f"{type(error).__name__}:")


def failing_together() -> AbstractContextManager[None]:
    """`Team.failing_together`, where there are several processes."""
    team = join()
    return nullcontext() if team is None else team.failing_together()


def checking() -> AbstractContextManager[None]:
    """`Team.checking`, where there are several processes."""
    team = join()
    return nullcontext() if team is None else team.checking()


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


# ---- joining -----------------------------------------------------------------------------

_team: Team | None = None
_parted: str | None = None


def join(timeout: float = 600) -> Team | None:
    """The team, if `torchrun` (or the like) has started several processes; else None.

    The process group is made at the first call, for the CPU and for GPUs, and is taken down when
    the program ends, or after an error. Where the program has made one itself it stays the
    program's, and another one is made beside it. `fit` and `predict` call it. Processes
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
    if _team is not None and made and _team.is_connected():
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
    store = None
    if not made:
        store = begin_group(timeout)
        atexit.register(_leave)
    _team = Team(store, timeout)
    return _team


def _leave() -> None:
    global _team
    team, _team = _team, None
    gc.collect()  # what still refers to the group would keep its connections and threads
    if team is not None:
        team.leave()
    gc.collect()


def _part(reason: str) -> None:
    global _parted
    _parted = reason
    _leave()
