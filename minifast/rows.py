"""Rows that stay where they are until a batch needs them, and the orders in which they are read."""

from __future__ import annotations

import mmap
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .arrays import as_array, as_tensor, by_position, length
from .errors import explain

__all__ = ["Rows"]

CHUNK_BYTES = 2**24  # read at a time: enough to hide the reading, little beside a net
NEARBY = 2**9  # a gap in a file that is read over: a call of the system costs as much
NEARBY_SLICED = 2**16  # the same for slices of a library's array, each of which costs far more
WAITING = 0.25  # the part of a reading's time without a processor, from which on a thread reads
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
        name: What errors call them.
        quantity: Give them as float32, whatever they are stored as.
        threads: Whether another thread may call `read`, while the net learns from the rows before.
            Never two at once. False for what belongs to the thread that opened it, such as a
            connection of `sqlite3`.

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

    def __init__(
        self,
        source: Any,
        read: Slice | None = None,
        name: str = "the rows",
        quantity: bool = False,
        threads: bool = True,
    ) -> None:
        self.source, self.name, self.quantity, self.threads = source, name, quantity, threads
        # One for each process, as a process that is forked while another thread reads would find
        # it locked forever.
        self.locks: dict[int, threading.Lock] = {}
        self.slice = read or _part
        self.file = _File.behind(source) if read is None else None
        n = length(source) or 0
        self.row = as_array(self.slice(source, 0, min(1, n)), name)
        t = self._tensor(self.row.copy())
        self.shape, self.dtype, self.ndim = torch.Size([n, *t.shape[1:]]), t.dtype, t.ndim
        self.row_bytes = max(self.row.nbytes, 1)
        self.stored = stored_together(source) if read is None else 1

    def __len__(self) -> int:
        return self.shape[0]

    def __deepcopy__(self, memo: Any) -> Rows:
        return self  # nothing in it changes

    def __reduce__(self) -> Any:
        """In another process it is read from the same file, by a descriptor of that process."""
        if self.file is None:
            read = None if self.slice is _part else self.slice
            return Rows, (self.source, read, self.name, self.quantity, self.threads)
        mapping = self.row.dtype, "r", self.file.offset, (len(self), *self.row.shape[1:])
        return _mapped_again, (self.file.path, mapping, self.name, self.quantity)

    def __getitem__(self, i: int) -> Tensor:
        i = range(len(self))[i]
        return self.between(i, i + 1)[0]

    def between(self, begin: int, end: int) -> Tensor:
        """A copy of the rows from `begin` to before `end`."""
        if self.file is None:  # whoever reads may give a part of itself, or fill one array anew
            with self._alone():
                read = self._sliced(begin, end).copy()
            return self._tensor(read)
        return self._tensor(self._from_file(np.array([begin]), np.array([end])))

    def index_select(self, axis: int, rows: Tensor) -> Tensor:
        """A copy of the rows of these numbers, in their order; read from the first to the last."""
        assert axis == 0
        ordered, places = rows.cpu().sort()
        return self.ascending(ordered.numpy()).index_select(0, places.argsort())

    def ascending(self, rows: np.ndarray) -> Tensor:
        """A copy of the rows of these numbers, which rise; those close together in one reading."""
        firsts = np.concatenate([[0], np.flatnonzero(self._apart(rows)) + 1])
        begins, ends = rows[firsts], rows[np.append(firsts[1:], len(rows)) - 1] + 1
        if self.file is None:
            stretches = zip(np.split(rows, firsts[1:]), begins.tolist(), ends.tolist(), strict=True)
            # Each is cut down to what is wanted before the next is read: memory holds no more.
            with self._alone():
                parts = [self._sliced(b, e)[wanted - b] for wanted, b, e in stretches]
            read = np.concatenate(parts)
        else:
            read = self._from_file(begins, ends)
            if len(firsts) < len(rows):  # several in one stretch, of which some were read over
                shifts = np.cumsum(ends - begins) - ends
                read = read[rows + np.repeat(shifts, np.diff(np.append(firsts, len(rows))))]
        return self._tensor(read)

    def _tensor(self, read: np.ndarray) -> Tensor:
        t = as_tensor(read, self.name)
        return t.float() if self.quantity and not t.is_complex() else t

    def _apart(self, rows: np.ndarray) -> np.ndarray:
        """Whether each row is read by another call than the one before it."""
        gaps = (np.diff(rows) - 1) * self.row_bytes  # of rows that nobody wants
        apart: np.ndarray = gaps > NEARBY
        if self.file is not None:
            return apart
        # What is stored together is unpacked together, whatever part of it is asked for.
        most = max(CHUNK_BYTES // self.row_bytes // self.stored, 1) * self.stored
        together = (gaps <= NEARBY_SLICED) | (np.diff(rows // self.stored) == 0)
        apart = ~together | (np.diff(rows // most) > 0)
        return apart

    def _from_file(self, begins: np.ndarray, ends: np.ndarray) -> np.ndarray:
        """The rows of several stretches of the file, one behind the other."""
        assert self.file is not None
        read = np.frombuffer(self.file.read(begins, ends), self.row.dtype)
        return read.reshape(-1, *self.row.shape[1:])

    def _alone(self) -> threading.Lock:
        """Held while the source is read: `read` need not be thread-safe."""
        return self.locks.setdefault(os.getpid(), threading.Lock())

    def _sliced(self, begin: int, end: int) -> np.ndarray:
        """The rows of one stretch of the source."""
        read = as_array(self.slice(self.source, begin, end), self.name)
        if len(read) != end - begin:
            raise ValueError(
                explain(
                    f"{self.name} gives another number of rows than was asked for",
                    got=f"{len(read)} rows between {begin} and {end}",
                    wanted=f"{end - begin}",
                    fix="read(source, begin, end) gives source's rows begin, ..., end - 1",
                    entry="larger-than-memory",
                )
            )
        return read


class _File:
    """The file behind a memory map, read by its descriptor.

    A page that is touched through the mapping is mapped with all around it, up to megabytes, and
    counts as ours; what is read by the descriptor is copied from the same cache and does not.
    """

    def __init__(self, path: str, offset: int, row_bytes: int) -> None:
        self.path = str(Path(path).absolute())
        self.descriptor, self.offset, self.row_bytes = os.open(path, FLAGS), offset, row_bytes
        weakref.finalize(self, os.close, self.descriptor)

    @classmethod
    def behind(cls, a: Any) -> _File | None:
        """That of an array of whole rows; None if there is none, or the mapping is not the file.

        What was written to a copy-on-write mapping is nowhere else, and a file may have been
        replaced since: the first row and the last are compared.
        """
        root = mapped = a
        while isinstance(root, np.ndarray) and not isinstance(root, mmap.mmap):
            mapped, root = root, root.base
        shared = isinstance(mapped, np.memmap) and mapped.mode in ("r", "r+", "w+")
        if not (shared and mapped.filename and hasattr(os, "pread")):
            return None
        if not (a.flags.c_contiguous and a.size):
            return None
        offset = mapped.offset + a.ctypes.data - mapped.ctypes.data
        try:
            file = cls(str(mapped.filename), offset, a[0].nbytes)
            for i in (0, len(a) - 1):
                if file.read(np.array([i]), np.array([i + 1])) != a[i].tobytes():
                    return None
        except OSError:
            return None
        return file

    def read(self, begins: np.ndarray, ends: np.ndarray) -> bytes:
        """The bytes of some stretches of rows."""
        sizes = ((ends - begins) * self.row_bytes).tolist()
        places = (begins * self.row_bytes + self.offset).tolist()
        parts = list(map(os.pread, repeat(self.descriptor), sizes, places))
        if sum(map(len, parts)) < sum(sizes):
            parts = [self._rest(*each) for each in zip(parts, sizes, places, strict=True)]
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _rest(self, part: bytes, size: int, place: int) -> bytes:
        """The whole part: one call gives two gigabytes at most."""
        while len(part) < size:
            more = os.pread(self.descriptor, size - len(part), place + len(part))
            if not more:
                row = (place + len(part) - self.offset) // self.row_bytes
                raise OSError(f"the file ends before row {row}")
            part += more
        return part


FLAGS = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0)


def _mapped_again(path: str, mapping: Any, name: str, quantity: bool) -> Rows:
    return Rows(np.memmap(path, *mapping), name=name, quantity=quantity)


def stays_away(a: Any) -> bool:
    """Whether an array is to be read a chunk at a time: a memory map, h5py's, zarr's, `Rows`."""
    if isinstance(a, np.ndarray):
        base: Any = a
        while isinstance(base, np.ndarray):
            base = base.base
        return isinstance(base, mmap.mmap)
    return isinstance(a, Rows) or (hasattr(a, "chunks") and hasattr(a, "shape"))


def stored_together(source: Any) -> int:
    """How many rows an array of h5py, zarr or dask keeps in one chunk; 1 where there are none.

    Examples:
        >>> stored_together(np.zeros(3))
        1
    """
    chunks = getattr(source, "chunks", None)
    if not chunks:
        return 1
    first = chunks[0]
    return max(int(max(first)) if isinstance(first, tuple) else int(first), 1)


def _part(source: Any, begin: int, end: int) -> Any:
    return by_position(source)[begin:end]


# ---- orders ------------------------------------------------------------------------------


def in_order(begin: int, end: int) -> Tensor:
    """The rows' own order.

    Examples:
        >>> in_order(2, 5)
        tensor([2, 3, 4])
    """
    return torch.arange(begin, end)


def shuffled(
    n: int, generator: torch.Generator | None, blocks: tuple[int, int] | None = None
) -> Order:
    """An order drawn now: `order(begin, end)` are the rows at those places of it.

    Up to some four million rows it is `torch.randperm`, as for arrays in memory; above, where that
    would grow with the rows, a keyed permutation, of which any part can be computed. With `blocks`
    whole blocks of so many rows are drawn, and rows are shuffled among so many of those.

    Examples:
        >>> order = shuffled(10, torch.Generator().manual_seed(0))
        >>> sorted(order(0, 10).tolist()) == list(range(10))
        True
    """
    if blocks is not None:
        return Blocks(n, *blocks, _key(generator))
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

    A disk that turns reads a block about as fast as a row, and a library unpacks one about as fast.
    Rows of one block stay in one group of some blocks, which is read at once, so the order is less
    random than a true shuffle.
    """

    def __init__(self, n: int, block: int, group: int, key: int) -> None:
        self.n, self.block, self.key = n, block, key
        blocks = np.random.default_rng(key).permutation(-(-n // block))
        sizes = np.where(blocks == len(blocks) - 1, n - (len(blocks) - 1) * block, block)
        self.groups = [blocks[i : i + group] for i in range(0, len(blocks), group)]
        starts = np.concatenate([[0], np.cumsum(sizes)])
        self.starts = [*starts[:-1:group].tolist(), n]

    def __call__(self, begin: int, end: int) -> Tensor:
        """The rows at the places from `begin` to before `end`."""
        found = []
        for i, start in enumerate(self.starts[:-1]):
            if start < end and self.starts[i + 1] > begin:
                found.append(self._group(i)[max(begin - start, 0) : end - start])
        return torch.from_numpy(np.concatenate([np.empty(0, np.int64), *found]))

    def cuts(self, bs: int) -> list[int]:
        """The numbers of the batches with which groups begin: read up to there, each block once.

        Examples:
            >>> Blocks(100, block=2, group=16, key=0).cuts(bs=10)  # groups of 32 rows
            [0, 4, 7, 10]
        """
        return [-(-start // bs) for start in self.starts[:-1]]

    def _group(self, i: int) -> np.ndarray:
        firsts = self.groups[i] * self.block
        rows = np.concatenate([np.arange(f, min(f + self.block, self.n)) for f in firsts])
        order: np.ndarray = np.random.default_rng([self.key, i]).permutation(rows)
        return order


# ---- reading ahead -----------------------------------------------------------------------


def ahead(read: Callable[[Any], Any], asked: Iterable[Any], threads: bool = True) -> Iterator[Any]:
    """`map(read, asked)`; where that waits for a disk, each is read while the one before is used.

    What lies in the system's cache is read at once: it takes a processor, which torch has in use
    anyhow, and a thread that asks for the interpreter row by row costs the loop more than it saves.

    Examples:
        >>> list(ahead(abs, iter([-1, 2, -3])))
        [1, 2, 3]
    """

    def timed(each: Any) -> tuple[Any, bool]:
        wall, busy = time.perf_counter(), time.thread_time()
        found = read(each)
        wall, busy = time.perf_counter() - wall, time.thread_time() - busy
        return found, wall - busy > WAITING * wall

    with ThreadPoolExecutor(1, "minifast-reader") as pool:
        coming, waits = None, False
        for each in asked:
            now = coming
            coming = pool.submit(timed, each) if waits and threads else None
            if now is not None:
                found, waits = now.result()
                yield found
            if coming is None:
                found, waits = timed(each)
                yield found
        if coming is not None:
            yield coming.result()[0]
