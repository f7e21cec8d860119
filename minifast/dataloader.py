"""Batches of arrays, taken whole by index: no row is ever touched by Python."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .core import as_tensor, explain, training_dtype, whole_number

__all__ = ["ArrayLoader"]

Batch = tuple[Tensor, ...]


class ArrayLoader:
    """Batches of one or more arrays of the same length: `(x, y)`, or `(x1, ..., xn, y)`.

    `len(loader)` is the number of batches. Each `iter(loader)` stands for itself, starts anew, and
    has the loader's length, so that `batches = iter(loader); range(len(batches)); next(batches)`
    works. Every batch is a copy: writing to it leaves the arrays as they were.

    In memory floats become float32 and whole numbers int64, once. uint8 arrays (images) and memory
    maps stay as they are and are converted a batch at a time, uint8 to float32 without scaling.

    Args:
        *arrays: numpy arrays, tensors, lists or memory maps; the first axis counts the rows.
        bs: Rows in a batch; the last one may have fewer.
        shuffle: A new order each time it is iterated. Otherwise rows come in their own order.
        seed: Draw the orders from a generator of the loader's own; without one they come from
            torch's global generator, so that `torch.manual_seed` governs them.
        tfm: Called with the `x` of each batch (all but the last array, if there are several);
            gives the `x` to be used.
        names: What errors call the arrays.

    Raises:
        TypeError: if an array does not hold numbers, or `bs` is no whole number.
        ValueError: if the arrays differ in length or have no rows, or `bs` is below 1.

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
        shuffle: bool = False,
        seed: int | None = None,
        tfm: Callable[..., Any] | None = None,
        names: tuple[str, ...] = (),
    ) -> None:
        names = names or tuple(f"array {i}" for i in range(len(arrays)))
        self.bs = whole_number("bs", bs, 1, fix="bs=64", entry="batch-size")
        self.shuffle = shuffle
        self.tfm = tfm
        self.generator = None if seed is None else torch.Generator().manual_seed(seed)
        self.arrays = [_rows(a, name) for a, name in zip(arrays, names, strict=True)]
        _check_lengths(self.arrays, names)
        self.n_rows = len(self.arrays[0])
        self.take = self._taker()
        self.joins_lone_row = False
        self._writable = not any(
            isinstance(a, np.ndarray) and not a.flags.writeable for a in arrays
        )

    def __len__(self) -> int:
        return -(-self.n_rows // self.bs) - self.joined

    @property
    def ends_in_lone_row(self) -> bool:
        """Whether the last batch would have a single row, and others more."""
        return 1 < self.bs < self.n_rows and self.n_rows % self.bs == 1

    @property
    def joined(self) -> bool:
        """Whether that row goes with the batch before it: set `joins_lone_row`, as `fit` does."""
        return self.joins_lone_row and self.ends_in_lone_row

    def __iter__(self) -> Batches:
        if self.shuffle:
            rows = torch.randperm(self.n_rows, generator=self.generator)
        else:
            rows = torch.arange(self.n_rows)
        return Batches(self, rows, self.bs, self.joined)

    def in_order(self, bs: int) -> Batches:
        """All rows in their own order, whether the loader shuffles or not, `bs` in a batch.

        Examples:
            >>> [len(x) for x, in ArrayLoader(range(10), shuffle=True).in_order(4)]
            [4, 4, 2]
        """
        return Batches(self, torch.arange(self.n_rows), bs)

    def read(self, bs: int) -> Iterator[Batch]:
        """All rows in their own order, to be read only: not copied where it can be helped.

        The first `loader.bs` rows are copied all the same, to see whether they are written to, as
        by a net that begins with `ReLU(inplace=True)`; if so, all are. Then come `bs` in a batch.
        """
        first = self.take(torch.arange(min(self.bs, self.n_rows), device=self.arrays[0].device))
        versions = [t._version for t in first if isinstance(t, Tensor)]
        yield first
        written = versions != [t._version for t in first if isinstance(t, Tensor)]
        rest = [a[self.bs :] for a in self.arrays]
        if written or self.tfm is not None or not self._writable:
            rows = torch.arange(self.bs, self.n_rows, device=self.arrays[0].device)
            yield from Batches(self, rows, bs) if len(rows) else ()
            return
        for parts in zip(*(a.split(bs) for a in rest), strict=True):
            if len(parts[0]):  # torch splits nothing into one part of nothing
                yield tuple(part.to(_dtype(part)) for part in parts)

    def _taker(self) -> Callable[[Tensor], Batch]:
        """`take(rows)`: the batch of these row numbers (int64, on the arrays' device).

        Chosen once and not for each batch: a step of a small net costs less than twenty calls.
        """
        gather = [_gatherer(a) for a in self.arrays]
        tfm = self.tfm
        if tfm is not None:
            return lambda rows: _transformed(tfm, tuple([each(rows) for each in gather]))
        if len(gather) == 2:
            x, y = gather
            return lambda rows: (x(rows), y(rows))
        return lambda rows: tuple([each(rows) for each in gather])


class Batches:
    """One pass over an `ArrayLoader`: an iterator with a length."""

    __slots__ = ("_batches", "_length")

    def __init__(self, loader: ArrayLoader, rows: Tensor, bs: int, joined: bool = False) -> None:
        parts = rows.to(loader.arrays[0].device).split(bs)
        if joined:
            parts = (*parts[:-2], rows[-bs - 1 :].to(parts[0].device))
        self._length = len(parts)
        self._batches = map(loader.take, parts)

    def __len__(self) -> int:
        """The batches of the whole pass, those already taken included."""
        return self._length

    def __iter__(self) -> Iterator[Batch]:
        return self._batches  # a `for` then calls no Python for a batch but `take`

    def __next__(self) -> Batch:
        return next(self._batches)


def _rows(a: Any, name: str) -> Tensor:
    """The array as a tensor, in the dtype in which it stays in memory."""
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
    stays = isinstance(a, np.memmap) or (t.dtype == torch.uint8 and t.ndim > 1)
    return t if stays else t.to(_dtype(t))


def _dtype(t: Tensor) -> torch.dtype:
    """What a batch of `t` is made of; bytes and truth values are numbers, or labels if 1-D."""
    if t.dtype in (torch.uint8, torch.bool):
        return torch.float32 if t.ndim > 1 else torch.int64
    return training_dtype(t.dtype)


def _gatherer(a: Tensor) -> Callable[[Tensor], Tensor]:
    dtype, select = _dtype(a), partial(a.index_select, 0)
    return select if dtype == a.dtype else lambda rows: select(rows).to(dtype)


def _transformed(tfm: Callable[..., Any], batch: Batch) -> Batch:
    if len(batch) == 1:
        return (tfm(*batch),)
    *xs, y = batch
    x = tfm(*xs)
    return (*x, y) if isinstance(x, tuple) else (x, y)


def _check_lengths(arrays: list[Tensor], names: tuple[str, ...]) -> None:
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
