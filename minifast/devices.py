"""How rows come to the device on which the net is."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor

from .callback import Run
from .core import device_of
from .dataloader import ArrayLoader

SHARE = 0.5  # of a device's free memory that rows may take; the net needs the rest

_told: weakref.WeakSet[ArrayLoader] = weakref.WeakSet()


@contextmanager
def kept_on_device(run: Run) -> Iterator[None]:
    """While it lasts `run.near(loader)` gives one whose rows lie on the net's device, if they fit.

    The loaders themselves are left alone: iterated by hand they give batches from where their
    arrays are.
    """
    device = device_of(run.net)
    kept = Kept(device, round(free_memory(device) * SHARE))
    found = [dl for dl in (run.data.trn_dl, run.data.val_dl) if kept.near(dl) is not dl]
    if not _told.issuperset(found):
        run.kept = f"rows kept on {device}: {kept.size / 1e6:,.0f} MB"
        _told.update(found)
    before, run.near = run.near, kept.near
    try:
        yield
    finally:
        run.near = before
        kept.copies.clear()  # whoever still has the run must not keep the memory


class Kept:
    """Copies on a device of the arrays of loaders, made once.

    Batches are gathered there then, and uint8 rows become floats there. What is not copied: arrays
    that lie on a disk or on that device, those whose batches a `tfm` changes (it may want them on
    the CPU), those for which there is no room, and loaders of other kinds.

    Examples:
        >>> kept = Kept(torch.device("meta"), room=100)
        >>> small, large = ArrayLoader(torch.zeros(10, 2)), ArrayLoader(torch.zeros(99, 2))
        >>> kept.near(small).arrays[0].device, kept.near(large) is large
        (device(type='meta'), True)
    """

    def __init__(self, device: torch.device, room: int) -> None:
        self.device, self.room, self.size = device, room, 0
        self.copies: list[tuple[list[Tensor], list[Tensor]]] = []

    def near(self, loader: Any) -> Any:
        """A loader like this one with its arrays on the device; itself, where they are not."""
        if self.room <= 0 or not isinstance(loader, ArrayLoader):
            return loader
        arrays = self._found(loader.arrays)
        if arrays is None:
            size = sum(a.nbytes for a in loader.arrays if isinstance(a, Tensor) and a.is_cpu)
            if loader.away or loader.tfm is not None or not 0 < size <= self.room - self.size:
                return loader
            arrays = [a.to(self.device) for a in loader.arrays]
            self.copies.append((loader.arrays, arrays))
            self.size += size
        return loader.over(arrays)

    def _found(self, arrays: list[Tensor]) -> list[Tensor] | None:
        return next((there for here, there in self.copies if here is arrays), None)


def free_memory(device: torch.device) -> int:
    """The bytes that are free on a GPU; 0 for the CPU, where rows are already."""
    if device.type == "cuda":  # what torch keeps for later is free, too
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    return 0


def sent(t: Tensor, device: torch.device) -> Tensor:
    """The tensor on another device.

    To an NVIDIA GPU memory of the host goes by a pinned copy, on a stream of its own: nothing waits
    for it, and the GPU computes meanwhile what it was told before.

    Examples:
        >>> sent(torch.ones(2), torch.device("meta"))
        tensor(..., device='meta', size=(2,))
    """
    if device.type != "cuda":  # elsewhere the copy must be whole before `t` is let go
        return t.to(device)
    if not t.is_cpu or t.layout != torch.strided:
        return t.to(device, non_blocking=True)
    if any(n > 1 and not step for n, step in zip(t.shape, t.stride(), strict=True)):
        t = t.contiguous()  # of an expanded one each number is pinned once, and written often
    now, own = torch.cuda.current_stream(device), _stream(device)
    with torch.cuda.stream(own):
        there = t.pin_memory().to(device, non_blocking=True)
    now.wait_stream(own)
    there.record_stream(now)  # its memory is not given away before the net is done with it
    return there


@cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)
