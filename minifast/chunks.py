"""Batches of rows that stay on a disk: read in chunks, of which each is then like arrays."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from .batches import shard_size
from .rows import CHUNK_BYTES, Blocks, Order, Rows, ahead, in_order, shuffled

if TYPE_CHECKING:
    from .dataloader import ArrayLoader, Batch

AnyRows = TypeVar("AnyRows", Tensor, range)
TOGETHER = 16  # blocks that are read at once


def chunk_rows(loader: ArrayLoader) -> int:
    """How many rows are read at a time."""
    sizes = [a.row_bytes for a in loader.arrays if isinstance(a, Rows)]
    return max(CHUNK_BYTES // max(sum(sizes), 1), 1)


def blocks(loader: ArrayLoader) -> tuple[int, int]:
    """How many rows are a block, whole chunks of the source; and how many are read at once."""
    stored = max((a.stored for a in loader.arrays if isinstance(a, Rows)), default=1)
    most = chunk_rows(loader)
    block = max(-(-most // TOGETHER // stored), 1) * stored
    return block, max(min(TOGETHER, 4 * most // block), 2)  # fewer, where chunks are large


def drawn_order(loader: ArrayLoader) -> Order:
    """The order of a pass: the rows' own, or one drawn now."""
    if not loader.shuffle:
        return in_order
    found = blocks(loader) if loader.shuffle == "blocks" else None
    return shuffled(loader.n_rows, loader.generator, found)


def shard_of(rows: AnyRows, shard: tuple[int, int]) -> AnyRows:
    """The rows of a batch that one of several processes takes: at least one, to step with.

    Examples:
        >>> shard_of(torch.tensor([5, 6, 7]), (1, 2)), shard_of(range(5, 6), (1, 2))
        (tensor([7]), range(5, 6))
    """
    (rank, size), n = shard, len(rows)
    begin = rank * (n // size) + min(rank, n % size)
    mine = rows[begin : begin + shard_size(n, rank, size)]
    return mine if len(mine) else rows[:1]


class ChunkedBatches:
    """One pass over arrays of which some are read from elsewhere: an iterator with a length.

    The thread that reads ahead, if there is one, ends with the pass or when this is dropped.
    """

    def __init__(
        self, loader: ArrayLoader, order: Order, bs: int, merge_last: bool = False
    ) -> None:
        self._length = -(-loader.n_rows // bs) - merge_last
        # Without `self`: a generator that held it would be freed late, and its thread with it.
        self._from = partial(_chunked, loader, order, bs, self._length)
        self._batches = self._from(0)

    def __len__(self) -> int:
        """The batches of the whole pass, those already taken included."""
        return self._length

    def __iter__(self) -> Iterator[Batch]:
        return self._batches

    def __next__(self) -> Batch:
        return next(self._batches)

    def skip(self, batches: int) -> None:
        """Goes on behind the first so many, which are not read."""
        self._batches = self._from(batches)


def _chunked(
    loader: ArrayLoader, order: Order, bs: int, length: int, skipped: int
) -> Iterator[Batch]:
    """The batches after those skipped; a chunk in memory is taken apart like any arrays."""
    shard = loader.shard
    skipped = min(skipped, length)
    step = max(chunk_rows(loader) // bs, 1)
    cuts = order.cuts(bs) if isinstance(order, Blocks) else range(skipped, length, step)
    cuts = sorted({skipped, length, *(cut for cut in cuts if skipped < cut < length)})

    def read(batches: tuple[int, int]) -> tuple[list[Tensor], tuple[Tensor, ...]]:
        """The rows of some batches in the order of the file, and where each batch's are."""
        first, last = batches
        begin, end = first * bs, loader.n_rows if last == length else last * bs
        if order is in_order and shard[1] == 1:
            places = torch.arange(end - begin)
            arrays = [
                a.between(begin, end) if isinstance(a, Rows) else a[begin:end]
                for a in loader.arrays
            ]
            return arrays, places.tensor_split([i * bs for i in range(1, last - first)])
        rows_of = order(begin, end).tensor_split([i * bs for i in range(1, last - first)])
        mine = [shard_of(rows, shard) for rows in rows_of]
        rows, ranks = torch.cat(mine).sort()
        arrays = [
            a.ascending(rows.numpy()) if isinstance(a, Rows) else a.index_select(0, rows)
            for a in loader.arrays
        ]
        return arrays, ranks.argsort().split([len(batch) for batch in mine])

    threads = all(a.threads for a in loader.arrays if isinstance(a, Rows))
    for arrays, places in ahead(read, pairwise(cuts), threads):
        yield from map(loader.gatherer(arrays), places)
