"""How rows come to the device on which the net is."""

from __future__ import annotations

import weakref
from functools import cache
from typing import Any

import torch
from torch import Tensor

from .dataloader import ArrayLoader

SHARE = 0.5  # of a device's free memory that rows may take; the net needs the rest


class DeviceCache:
    """Copies on a device of the arrays of loaders, made once and kept as long as those.

    Batches are gathered there then, and uint8 rows become floats there. What is not copied: arrays
    that are out of core or on that device, those whose batches a `tfm` changes (it may want them on
    the CPU), those for which there is not enough room, and loaders of other kinds.

    Examples:
        >>> cache = DeviceCache(torch.device("meta"), room=100)
        >>> small, large = ArrayLoader(torch.zeros(10, 2)), ArrayLoader(torch.zeros(99, 2))
        >>> cache.near(small).arrays[0].device, cache.near(large) is large
        (device(type='meta'), True)
    """

    def __init__(self, device: torch.device, room: int) -> None:
        self.device, self.room = device, room
        self.copies: list[tuple[list[weakref.ref[Tensor]], list[Tensor]]] = []

    @classmethod
    def of_free_memory(cls, device: torch.device) -> DeviceCache:
        """One that takes a share of the memory that is free now."""
        return cls(device, round(free_memory(device) * SHARE))

    @property
    def size(self) -> int:
        """Bytes of all copies."""
        return sum(a.nbytes for _, copies in self.copies for a in copies)

    def near(self, loader: Any) -> Any:
        """A view of the loader with its arrays on the device; itself, where they are not."""
        if self.room <= 0 or not isinstance(loader, ArrayLoader):
            return loader
        arrays = self._found(loader.arrays)
        if arrays is None:
            size = sum(a.nbytes for a in loader.arrays if isinstance(a, Tensor) and a.is_cpu)
            is_ours = not loader.out_of_core and loader.tfm is None
            if not (is_ours and 0 < size <= self.room - self.size):
                return loader
            arrays = [a.to(self.device) for a in loader.arrays]
            self.copies.append(([weakref.ref(a) for a in loader.arrays], arrays))
        return loader.view(arrays=arrays)

    def _found(self, arrays: list[Tensor]) -> list[Tensor] | None:
        """The copies of these very arrays; those of arrays that are gone are let go."""
        self.copies = [each for each in self.copies if all(ref() is not None for ref in each[0])]
        for refs, copies in self.copies:
            if [id(ref()) for ref in refs] == [id(a) for a in arrays]:
                return copies
        return None

    def clear(self) -> None:
        """Lets all copies go."""
        self.copies.clear()


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
