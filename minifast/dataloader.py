"""Batches of arrays, taken whole by index: no row is ever touched by Python."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .arrays import as_tensor, batch_dtypes, narrowed
from .chunks import ChunkedBatches, drawn_order, shard_of
from .core import explain, whole_number
from .rows import Rows, in_order, stays_away

__all__ = ["ArrayLoader"]

Batch = tuple[Tensor, ...]


class ArrayLoader:
    """Batches of one or more arrays of the same length: `(x, y)`, or `(x1, ..., xn, y)`.

    `len(loader)` is the number of batches. Each `iter(loader)` stands for itself, starts anew, and
    has the loader's length, so that `batches = iter(loader); range(len(batches)); next(batches)`
    works. Every batch is a copy: writing to it leaves the arrays as they were.

    In memory floats become float32 and integers int64, once; uint8 arrays (images) stay as they
    are and are converted a batch at a time, to float32 without scaling. Booleans become numbers,
    except among several inputs: there they are masks and stay bool. If one of the arrays
    stays on a disk (a memory map, h5py's, zarr's, `minifast.rows.Rows`), so do all: the rows of
    some batches are read at a time, by a thread if that waits, and memory does not grow.

    Args:
        *arrays: NumPy arrays, tensors, lists or memory maps; the first axis counts the rows. Of
            several, the last is the target.
        bs: Rows in a batch; the last one may have fewer.
        shuffle: A new order each time it is iterated. Otherwise rows come in their own order.
            `"blocks"`, for disks that turn and files that are compressed: whole stretches of the
            file, shuffled among some. What is in memory is shuffled as ever.
        seed: Draw the orders from a generator of the loader's own; without one they come from
            torch's global generator, so that `torch.manual_seed` governs them.
        tfm: Called with the `x` of each batch (all but the last array, if there are several);
            gives the `x` to be used.
        names: What errors call the arrays.

    Attributes:
        arrays: The arrays as they are kept, a tuple: tensors, or what stays on a disk.
        bs: Rows in a batch.

    Raises:
        TypeError: if an array does not hold numbers or is a net's parameter, or `bs` is not an
            integer.
        ValueError: if the arrays differ in length or have no rows, some of their entries are
            masked, or `bs` is below 1.

    Examples:
        >>> loader = ArrayLoader([[1.0], [2.0], [3.0]], [0, 1, 0], bs=2)
        >>> for x, y in loader:
        ...     print(x.tolist(), y.tolist())
        [[1.0], [2.0]] [0, 1]
        [[3.0]] [0]
    """

    def __init__(
        self,
        *arrays: Any,
        bs: int = 64,
        shuffle: bool | str = False,
        seed: int | None = None,
        tfm: Callable[..., Any] | None = None,
        names: tuple[str, ...] = (),
    ) -> None:
        names = names or tuple(f"array {i}" for i in range(len(arrays)))
        self.bs = whole_number("bs", bs, 1, fix="bs=64", entry="batch-size")
        self.shuffle = _checked_shuffle(shuffle)
        self.tfm = tfm
        self.generator = None if seed is None else torch.Generator().manual_seed(seed)
        self.out_of_core = any(map(stays_away, arrays))
        rows = [_rows(a, name) for a, name in zip(arrays, names, strict=True)]
        self.arrays = rows if self.out_of_core else _converted(rows, names)
        _check_lengths(self.arrays, names)
        self.n_rows = len(self.arrays[0])
        self.shard = (0, 1)  # rank and number of the processes that share each batch
        self.merge_last_row = False

    def __len__(self) -> int:
        return -(-self.n_rows // self.global_batch_size) - self.merges_last_row

    @property
    def global_batch_size(self) -> int:
        """Rows in a batch of all processes: `bs` for each."""
        return self.bs * self.shard[1]

    @property
    def last_batch_is_single(self) -> bool:
        """Whether the last batch would have a single row (in one of the processes)."""
        bs, fewest = self.global_batch_size, 2 * self.shard[1] - 1
        return self.bs > 1 and bs < self.n_rows and 0 < self.n_rows % bs <= fewest

    @property
    def merges_last_row(self) -> bool:
        """Whether a single last row joins the batch before it."""
        return self.merge_last_row and self.last_batch_is_single

    def __iter__(self) -> Batches | ChunkedBatches:
        bs, merge = self.global_batch_size, self.merges_last_row
        if self.out_of_core:
            return ChunkedBatches(self, drawn_order(self), bs, merge)
        if self.shuffle:
            return Batches(self, torch.randperm(self.n_rows, generator=self.generator), bs, merge)
        return Batches(self, range(self.n_rows), bs, merge)

    def view(
        self,
        *,
        arrays: list[Any] | None = None,
        shard: tuple[int, int] | None = None,
        merge_last: bool | None = None,
    ) -> ArrayLoader:
        """A loader of the same rows that gives other batches; this one stays as it is.

        Both draw their orders from the same generator. What is None stays the same.

        Args:
            arrays: Copies of the arrays, such as those on another device.
            shard: `(rank, size)`: the part of each batch for one of `size` processes. The batches
                of all have `size * bs` rows.
            merge_last: Whether a single last row joins the batch before it.

        Examples:
            >>> loader = ArrayLoader(range(9), bs=4)
            >>> [len(x) for (x,) in loader.view(merge_last=True)], [len(x) for (x,) in loader]
            ([4, 5], [4, 4, 1])
            >>> [x.tolist() for (x,) in loader.view(shard=(1, 2))]
            [[4, 5, 6, 7], [8]]
        """
        view = copy.copy(self)
        view.arrays = self.arrays if arrays is None else arrays
        view.shard = self.shard if shard is None else shard
        view.merge_last_row = self.merge_last_row if merge_last is None else merge_last
        return view

    def batch_rows(self, first: int = 0) -> list[int]:
        """How many rows each batch has, in all processes together, without the first so many.

        Examples:
            >>> ArrayLoader(range(10), bs=4).batch_rows()
            [4, 4, 2]
        """
        n, bs = len(self), self.global_batch_size
        return [self.n_rows - i * bs if i == n - 1 else bs for i in range(first, n)]

    def in_order(self, bs: int) -> Batches | ChunkedBatches:
        """Copies of all rows in their own order, whether the loader shuffles or not.

        A single last row is a batch. A view for one of several processes gives its part of each.

        Args:
            bs: Rows in a batch (of all processes).

        Examples:
            >>> [len(x) for x, in ArrayLoader(range(10), shuffle=True).in_order(4)]
            [4, 4, 2]
        """
        if self.out_of_core:
            return ChunkedBatches(self, in_order, bs)
        return Batches(self, range(self.n_rows), bs)

    def gatherer(
        self, arrays: list[Any] | None = None, adjacent: bool = False
    ) -> Callable[[Any], Batch]:
        """`gather(rows)`: a copy of the rows of these numbers, as a batch.

        Made once per pass and not for each batch: a step of a small net costs less than 20 calls.

        Args:
            arrays: A part of each array, instead of all of it.
            adjacent: Row numbers come as ranges; otherwise as int64 on the arrays' device.

        Examples:
            >>> ArrayLoader([5, 6, 7], [0, 1, 0]).gatherer()(torch.tensor([2, 0]))
            (tensor([7, 5]), tensor([0, 0]))
        """
        arrays, tfm = self.arrays if arrays is None else arrays, self.tfm
        take = _copied if adjacent else _selected
        gather = [take(a, dtype) for a, dtype in zip(arrays, batch_dtypes(arrays), strict=True)]
        if tfm is not None:
            return lambda rows: _transformed(tfm, tuple([each(rows) for each in gather]))
        if len(gather) == 2:
            x, y = gather
            return lambda rows: (x(rows), y(rows))
        return lambda rows: tuple([each(rows) for each in gather])


class Batches:
    """One pass over an `ArrayLoader`: an iterator with a length."""

    __slots__ = ("_batches", "_length")

    def __init__(
        self, loader: ArrayLoader, rows: Tensor | range, bs: int, merge_last: bool = False
    ) -> None:
        """Batches of rows in a drawn order, or in their own: a range."""
        n, rest = divmod(len(rows), bs)
        sizes = [bs] * n + [rest] * (rest > 0)
        if merge_last:
            sizes[-2:] = [bs + rest]
        parts: Sequence[Any]
        if isinstance(rows, Tensor):
            parts = rows.to(loader.arrays[0].device).split(sizes)
        else:
            ends = accumulate(sizes)
            parts = [rows[end - size : end] for size, end in zip(sizes, ends, strict=True)]
        if loader.shard[1] > 1:
            parts = [shard_of(each, loader.shard) for each in parts]
        self._length = len(parts)
        self._batches = map(loader.gatherer(adjacent=isinstance(rows, range)), parts)

    def __len__(self) -> int:
        """The batches of the whole pass, those already taken included."""
        return self._length

    def __iter__(self) -> Iterator[Batch]:
        return self._batches  # a `for` then calls no Python for a batch but `take`

    def __next__(self) -> Batch:
        return next(self._batches)


def _checked_shuffle(shuffle: Any) -> bool | str:
    if shuffle == "blocks" or isinstance(shuffle, bool | int | np.bool_):
        return shuffle if shuffle == "blocks" else bool(shuffle)
    raise ValueError(
        explain(
            "shuffle is none of the ways to shuffle",
            got=repr(shuffle),
            wanted="True, False or 'blocks'",
            fix="shuffle=True",
            entry="larger-than-memory",
        )
    )


def _rows(a: Any, name: str) -> Any:
    """The array as a tensor, or as `Rows`."""
    if stays_away(a):
        return a if isinstance(a, Rows) else Rows(a, name=name)
    t = as_tensor(a, name)
    if t.ndim == 0:
        raise TypeError(
            explain(
                f"{name} has no rows",
                got="a single number",
                wanted="an array whose first axis counts the rows",
                fix=f"np.array([{t.item()}])",
                entry="lengths-differ",
            )
        )
    return t


def _converted(arrays: list[Tensor], names: tuple[str, ...]) -> list[Tensor]:
    """The arrays in the dtypes in which they stay in memory."""
    return [
        a if a.dtype == torch.uint8 and a.ndim > 1 else narrowed(a, dtype, name)
        for a, dtype, name in zip(arrays, batch_dtypes(arrays), names, strict=True)
    ]


def _selected(a: Tensor | Rows, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    """Copies rows by their numbers."""
    select: Callable[[Tensor], Tensor] = partial(a.index_select, 0)
    return select if dtype == a.dtype else lambda rows: select(rows).to(dtype)


def _copied(a: Tensor, dtype: torch.dtype) -> Callable[[range], Tensor]:
    """Copies rows that are next to each other: what `_selected` gives, in less time."""
    if a.layout != torch.strided or not a.is_contiguous():
        select = _selected(a, dtype)
        return lambda rows: select(torch.arange(rows.start, rows.stop, device=a.device))
    if dtype == a.dtype:
        return lambda rows: torch.narrow_copy(a, 0, rows.start, len(rows))
    return lambda rows: a[rows.start : rows.stop].to(dtype)


def _transformed(tfm: Callable[..., Any], batch: Batch) -> Batch:
    if len(batch) == 1:
        return (tfm(*batch),)
    *xs, y = batch
    x = tfm(*xs)
    return (*x, y) if isinstance(x, tuple) else (x, y)


def _check_lengths(arrays: list[Any], names: tuple[str, ...]) -> None:
    lengths = [len(a) for a in arrays]
    if len(set(lengths)) == 1 and lengths[0] > 0:
        return
    got = ", ".join(f"{name} has {n:,} rows" for name, n in zip(names, lengths, strict=True))
    raise ValueError(
        explain(
            " and ".join(names) + (" differ in length" if len(set(lengths)) > 1 else ": no rows"),
            got=got or "no arrays",
            wanted="the same number of rows in each, at least one: row i of one belongs to row i "
            "of the other",
            fix="print the len() of each where it is made, and cut or join them alike",
            entry="lengths-differ",
        )
    )
