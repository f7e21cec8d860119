"""What several processes must have in common, and what is said where they have not."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from .core import explain
from .dataloader import ArrayLoader
from .process_group import store_of_program
from .rng import random_state, set_random_state
from .sharded import is_sharded

__all__: list[str] = []  # of use to `team` alone


class Group:
    """Processes that tell each other what they have.

    Attributes:
        rank: The number of this process, from 0.
        size: How many there are.
        group: The group whose connections are used, and closed after an error: the default group,
            or one of our own beside that of a program that made it.
        store: Where an error is told that has closed the connections; None if there is no place.
    """

    def __init__(self, store: Any = None, timeout: float = 600) -> None:
        import torch.distributed as dist

        self.dist = dist
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        gpu_only = dist.get_backend() == "nccl"  # as a program's own group may be
        self.device = torch.device("cuda" if gpu_only else "cpu")
        self.is_default = store is not None
        most = timedelta(seconds=timeout)
        self.group: Any = dist.group.WORLD if self.is_default else dist.new_group(timeout=most)
        self.store = store if self.is_default else store_of_program()

    def is_connected(self) -> bool:
        """Whether the group is still there."""
        try:
            there = self.group is not None and self.dist.is_initialized()
            return there and self.dist.get_rank(self.group) >= 0
        except ValueError:  # the program has closed it, and perhaps made another
            return False

    def leave(self) -> None:
        """Closes the connections, which wakes the processes that wait for this one."""
        group, self.group = self.group, None
        if not self.dist.is_initialized():
            return
        with suppress(ValueError, AssertionError):  # the program has closed them already
            self.dist.destroy_process_group(None if self.is_default else group)

    def total(self, *values: float) -> list[float]:
        """The sums over all processes, the same to the bit in each."""
        t = torch.tensor(values, dtype=torch.float64, device=self.device)
        self.dist.all_reduce(t, group=self.group)
        found: list[float] = t.tolist()
        return found

    def gathered(self, value: Any) -> list[Any]:
        """The values of all processes, by their numbers."""
        found: list[Any] = [None] * self.size
        self.dist.all_gather_object(found, value, group=self.group)
        return found

    def from_first(self, make: Callable[[], Any]) -> Any:
        """What the first process makes, in all; its error is the others' too."""
        told: list[Any] = [None, None]
        if self.rank == 0:
            try:
                told = [make(), None]
            except Exception as error:
                told = [None, error]
        self.dist.broadcast_object_list(told, group=self.group)
        if told[1] is not None:
            raise told[1]
        return told[0]

    def same_random(self, loader: Any) -> None:
        """Puts all generators where the first process's are."""
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
            self.dist.broadcast(whole.reshape(-1).view(torch.uint8), 0, group=self.group)
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
                raise RuntimeError(other_nets(rank, theirs, self.rank, ours))
        self.same(*net.parameters(), *net.buffers())


# ---- what must not differ ----------------------------------------------------------------


def other_nets(rank: int, theirs: list[Any], here: int, ours: list[Any]) -> str:
    """That the nets of two processes have not the same weights."""
    differ = [each for each in ours if each not in theirs] or ours[len(theirs) :]
    return explain(
        "the processes have different nets",
        got=f"process {here} has {len(ours)} weights, {rank} {len(theirs)}; first: {differ[:1]}",
        wanted="the same layers in each",
        fix="build the net by the same code in each process",
        entry="several-processes",
    )


def rows_told(loader: Any) -> tuple[Any, ...]:
    """What tells whether processes have the same rows: sizes, kinds, and some of the targets."""
    if not isinstance(loader, ArrayLoader):
        return type(loader).__name__, None
    kinds = [(str(a.dtype).removeprefix("torch."), tuple(a.shape)) for a in loader.arrays]
    y, some = loader.arrays[-1], None
    if isinstance(y, Tensor) and y.layout == torch.strided and not y.is_complex():
        rows = y[:: max(len(y) // 1000, 1)]
        some = rows.reshape(len(rows), -1)[:, :4].double().cpu()
    return type(loader).__name__, loader.bs, loader.shuffle, kinds, some


def are_same_rows(ours: tuple[Any, ...], theirs: tuple[Any, ...]) -> bool:
    """Whether two processes that tell this have the same rows, as far as it shows."""
    if ours[:-1] != theirs[:-1]:
        return False
    a, b = ours[-1], theirs[-1]
    return a is None or torch.allclose(a, b, rtol=1e-3, atol=1e-3, equal_nan=True)


def other_rows(here: int, ours: tuple[Any, ...], theirs: tuple[Any, ...]) -> str:
    """That two processes have not the same rows."""
    both = f"process {here} has {ours}, 0 {theirs}"
    return explain(
        "the processes have different rows to train on",
        got=both if ours != theirs else "other targets, or in another order, than in process 0",
        wanted="the same rows in the same order in each process: fit takes each its part of them",
        fix="a fixed seed where rows are split or shuffled before fit; no rows[rank::size]",
        entry="several-processes",
    )


def ended(rank: int, text: str) -> str:
    """That another process has ended, and by which error."""
    return f"process {rank} ended with {text}"


def left_others(rank: int, batch: int) -> str:
    """That another process takes no more batches."""
    return explain(
        "a process has stopped to take predictions, and this one goes on",
        got=f"process {rank} stopped after batch {batch}",
        wanted="all processes to take each batch, or to stop at the same one",
        fix="break out of the loop over iter_predict in all processes; look for the other's error",
        entry="several-processes",
    )


def check_not_dealt(loader: Any, size: int) -> None:
    """Refuses a loader that gives this process its part only."""
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


def not_as_many(loader: Any, here: int) -> str:
    """That the loaders of the processes end at different batches."""
    return explain(
        "the processes' loaders do not give the same batches",
        got=f"{here} of {type(loader).__name__} here, and another number elsewhere",
        wanted="the same batches in each process, of which fit takes each its part",
        fix="give each process's loader the same rows; a stream that differs needs steps=",
        entry="several-processes",
    )
