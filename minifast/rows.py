"""Rows that stay where they are until a batch needs them, and the orders in which they are read."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .core import as_tensor, explain

__all__ = ["Rows"]

CHUNK_BYTES = 2**24  # read at a time: enough to hide the reading, little beside a net
MAPPED_ROWS = 1024  # the kernel maps 64 KB around each row: let go of them before they add up
NEARBY = 16  # rows so close together are read in one slice
MOST_LISTED = 2**22  # rows whose order may lie in memory: 32 MB

Slice = Callable[[Any, int, int], Any]
Order = Callable[[int, int], Tensor]


class Rows:
    """An array on a disk, or anything with a length and slices, read a chunk at a time.

    Memory maps, and the arrays of h5py and zarr, are wrapped by themselves where a loader is given
    one. For anything else say how some rows are read.

    Args:
        source: Its `len` is the number of rows.
        read: `read(source, begin, end)` gives the rows from `begin` to before `end` as an array;
            without it `source[begin:end]` does.

    Attributes:
        shape, dtype: As of a tensor.

    Examples:
        >>> class Squares:  # a table, a file, an address: whatever has rows
        ...     def __len__(self): return 1000
        >>> rows = Rows(Squares(), lambda source, begin, end: np.arange(begin, end) ** 2)
        >>> rows.shape, rows[5], rows.index_select(0, torch.tensor([30, 2]))
        (torch.Size([1000]), tensor(25), tensor([900,   4]))
    """

    device = torch.device("cpu")

    def __init__(self, source: Any, read: Slice | None = None, name: str = "the rows") -> None:
        self.source, self.name = source, name
        self.mapped, self.may_let_go = _mapping(source)
        self.slice = read or _sliced
        first = self.between(0, min(1, len(source)))
        self.shape, self.dtype = torch.Size([len(source), *first.shape[1:]]), first.dtype
        self.ndim = first.ndim
        self.row_bytes = max(first.numel() * first.element_size(), 1)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, i: int) -> Tensor:
        i = range(len(self))[i]
        return self.between(i, i + 1)[0]

    def between(self, begin: int, end: int) -> Tensor:
        """A copy of the rows from `begin` to before `end`."""
        read = np.array(self.slice(self.source, begin, end))
        self._let_go()
        if len(read) != end - begin:
            raise ValueError(
                explain(
                    f"{self.name} gives another number of rows than was asked for",
                    got=f"{len(read)} rows from {begin} to before {end}",
                    wanted=f"{end - begin}",
                    fix="read(source, begin, end) gives source's rows begin, ..., end - 1",
                    entry="larger-than-memory",
                )
            )
        return as_tensor(read, self.name)

    def index_select(self, axis: int, rows: Tensor) -> Tensor:
        """A copy of the rows of these numbers, in their order; read from the first to the last."""
        assert axis == 0
        ordered, places = rows.cpu().sort()
        found = self.ascending(ordered.numpy())
        return found.index_select(0, places.argsort())

    def ascending(self, rows: np.ndarray) -> Tensor:
        """The rows of these numbers, which rise."""
        if self.mapped is None:
            return torch.cat([self._near(part) for part in _parts(rows)])
        array = np.asarray(self.source)
        found = np.empty((len(rows), *array.shape[1:]), array.dtype)
        for begin in range(0, len(rows), MAPPED_ROWS):
            part = slice(begin, begin + MAPPED_ROWS)
            np.take(array, rows[part], axis=0, out=found[part], mode="clip")
            self._let_go()
        return as_tensor(found, self.name)

    def _near(self, rows: np.ndarray) -> Tensor:
        first = int(rows[0])
        found = self.between(first, int(rows[-1]) + 1)
        if len(found) == len(rows):
            return found
        return found.index_select(0, torch.from_numpy(rows - first))

    def _let_go(self) -> None:
        """Unmaps what was read: it stays in the system's cache, and is not counted as ours."""
        if self.may_let_go and hasattr(mmap, "MADV_DONTNEED"):
            self.mapped.madvise(mmap.MADV_DONTNEED)


def stays_away(a: Any) -> bool:
    """Whether an array is to be read a chunk at a time: a memory map, h5py's, zarr's, `Rows`."""
    if isinstance(a, np.ndarray):
        return _mapping(a)[0] is not None
    return isinstance(a, Rows) or (hasattr(a, "chunks") and hasattr(a, "shape"))


def _mapping(a: Any) -> tuple[Any, bool]:
    """The mapping behind an array, and whether it may be unmapped in between.

    One that is shared with its file may; what was written to a copy-on-write one is nowhere else.
    """
    shared = False
    while isinstance(a, np.ndarray):
        shared = shared or getattr(a, "mode", None) in ("r", "r+", "w+")
        a = a.base
    return (a, shared) if isinstance(a, mmap.mmap) else (None, False)


def _sliced(source: Any, begin: int, end: int) -> Any:
    return source[begin:end]


def _parts(rows: np.ndarray) -> list[np.ndarray]:
    """Rising row numbers, in pieces of those that are close together."""
    return np.split(rows, np.flatnonzero(np.diff(rows) > NEARBY) + 1)


# ---- orders ------------------------------------------------------------------------------


def in_order(begin: int, end: int) -> Tensor:
    """The rows' own order.

    Examples:
        >>> in_order(2, 5)
        tensor([2, 3, 4])
    """
    return torch.arange(begin, end)


def shuffled(n: int, generator: torch.Generator | None, block: int = 0) -> Order:
    """An order drawn now: `order(begin, end)` are the rows at those places of it.

    Up to some four million rows it is `torch.randperm`, as for arrays in memory; above, where that
    would grow with the rows, a keyed permutation, of which any part can be computed. With `block`
    whole blocks of so many rows are drawn, and rows are shuffled among some of those.

    Examples:
        >>> order = shuffled(10, torch.Generator().manual_seed(0))
        >>> sorted(order(0, 10).tolist()) == list(range(10))
        True
    """
    if block:
        return Blocks(n, block, _key(generator))
    if n <= MOST_LISTED:
        listed = torch.randperm(n, generator=generator)
        return lambda begin, end: listed[begin:end]
    return Keyed(n, _key(generator))


def _key(generator: torch.Generator | None) -> int:
    return int(torch.randint(2**62, (1,), generator=generator))


class Keyed:
    """A permutation that is computed where it is asked for, from a key: a Feistel network.

    Luby & Rackoff 1988, [doi:10.1137/0217022](https://doi.org/10.1137/0217022): a few rounds that
    mix one half of a number's bits into the other are a permutation, and look like one drawn at
    random. Numbers that come out beyond the last row are put in again until they do not (cycle
    walking; Black & Rogaway 2002, [doi:10.1007/3-540-45760-7_9]
    (https://doi.org/10.1007/3-540-45760-7_9)).
    """

    ROUNDS = 8

    def __init__(self, n: int, key: int) -> None:
        bits = max((n - 1).bit_length(), 2)
        self.n, self.low = n, np.uint64(bits // 2)
        self.masks = [np.uint64(2 ** (bits // 2) - 1), np.uint64(2 ** (bits - bits // 2) - 1)]
        self.keys = np.random.default_rng(key).integers(2**64, size=self.ROUNDS, dtype=np.uint64)

    def __call__(self, begin: int, end: int) -> Tensor:
        """The rows at the places from `begin` to before `end`."""
        rows = self._once(np.arange(begin, end, dtype=np.uint64))
        beyond = np.flatnonzero(rows >= self.n)
        while len(beyond):
            rows[beyond] = self._once(rows[beyond])
            beyond = beyond[rows[beyond] >= self.n]
        return torch.from_numpy(rows.astype(np.int64))

    def _once(self, rows: np.ndarray) -> np.ndarray:
        right, left = rows & self.masks[0], rows >> self.low
        for i, key in enumerate(self.keys):
            if i % 2:
                right ^= _mixed(left ^ key) & self.masks[0]
            else:
                left ^= _mixed(right ^ key) & self.masks[1]
        return left << self.low | right


def _mixed(bits: np.ndarray) -> np.ndarray:
    """Bits in which each depends on all (the finaliser of SplitMix64)."""
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = bits ^ (bits >> np.uint64(31))
    return mixed


class Blocks:
    """Runs of rows that lie together on the disk, in an order drawn at random, shuffled in groups.

    A disk that turns reads a block about as fast as a row. Rows of one block stay in one group of
    some blocks, so the order is less random than a true shuffle.
    """

    GROUP = 16

    def __init__(self, n: int, block: int, key: int) -> None:
        self.n, self.block, self.key = n, block, key
        blocks = np.random.default_rng(key).permutation(-(-n // block))
        sizes = np.where(blocks == len(blocks) - 1, n - (len(blocks) - 1) * block, block)
        self.groups = [blocks[i : i + self.GROUP] for i in range(0, len(blocks), self.GROUP)]
        starts = np.concatenate([[0], np.cumsum(sizes)])
        self.starts = [*starts[: -1 : self.GROUP].tolist(), n]

    def __call__(self, begin: int, end: int) -> Tensor:
        """The rows at the places from `begin` to before `end`."""
        found = []
        for i, start in enumerate(self.starts[:-1]):
            if start < end and self.starts[i + 1] > begin:
                found.append(self._group(i)[max(begin - start, 0) : end - start])
        return torch.from_numpy(np.concatenate([np.empty(0, np.int64), *found]))

    def _group(self, i: int) -> np.ndarray:
        firsts = self.groups[i] * self.block
        rows = np.concatenate([np.arange(f, min(f + self.block, self.n)) for f in firsts])
        order: np.ndarray = np.random.default_rng([self.key, i]).permutation(rows)
        return order


# ---- reading ahead -----------------------------------------------------------------------


def ahead(read: Callable[[Any], Any], asked: Iterator[Any]) -> Iterator[Any]:
    """`map(read, asked)`, each read by a thread while the one before is used.

    Examples:
        >>> list(ahead(abs, iter([-1, 2, -3])))
        [1, 2, 3]
    """
    with ThreadPoolExecutor(1, "minifast-reader") as pool:
        coming = None
        for each in asked:
            now, coming = coming, pool.submit(read, each)
            if now is not None:
                yield now.result()
        if coming is not None:
            yield coming.result()
