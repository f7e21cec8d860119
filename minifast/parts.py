"""Batches, taken apart for several processes and put together again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor


def share(n: int, rank: int, size: int) -> int:
    """How many of n rows a process has, as `tensor_split` deals them.

    Examples:
        >>> [share(10, rank, 4) for rank in range(4)]
        [3, 3, 2, 2]
    """
    return n // size + (rank < n % size)


def rows_in(batch: Any) -> int:
    """How many rows a batch has: its first tensor, array or list of values tells.

    Examples:
        >>> rows_in((torch.zeros(5, 2), torch.zeros(5))), rows_in(["a", "b"])
        (5, 2)
    """
    if isinstance(batch, Tensor | np.ndarray) or _is_column(batch):
        return len(batch)
    parts = batch.values() if isinstance(batch, dict) else batch
    return rows_in(next(iter(parts)))


def joined(batches: Sequence[Any]) -> Any:
    """Several batches as one.

    Raises:
        ValueError, RuntimeError: if their rows differ in shape.

    Examples:
        >>> joined([(torch.zeros(2, 3), ["a", "b"]), (torch.ones(1, 3), ["c"])])[1]
        ['a', 'b', 'c']
    """
    one = batches[0]
    if isinstance(one, Tensor):
        return torch.cat(list(batches))
    if isinstance(one, np.ndarray):
        return np.concatenate(batches)
    if isinstance(one, dict):
        return {key: joined([b[key] for b in batches]) for key in one}
    if _is_column(one):
        return [value for b in batches for value in b]
    return tuple(joined(parts) for parts in zip(*batches, strict=True))


def taken(batch: Any, rows: Tensor) -> Any:
    """Some rows of a batch."""
    if isinstance(batch, Tensor):
        return batch[rows]
    if isinstance(batch, np.ndarray):
        return batch[rows.numpy()]
    if isinstance(batch, dict):
        return {key: taken(part, rows) for key, part in batch.items()}
    if _is_column(batch):
        return [batch[i] for i in rows.tolist()]
    return tuple(taken(part, rows) for part in batch)


def dealt(group: Sequence[Any], rank: int, size: int) -> tuple[int, int, Any]:
    """A process's part of some batches that are one: its rows, all rows, and the part.

    As many batches of one length as there are processes go one to each. Others are put together and
    dealt out by rows, unless their rows differ in shape. A part has a row to step with, at least,
    though it may count for nothing.

    Examples:
        >>> dealt([torch.arange(3), torch.arange(2)], 1, 2)
        (2, 5, tensor([0, 1]))
        >>> dealt([torch.arange(1)], 1, 2)
        (0, 1, tensor([0]))
    """
    lengths = [rows_in(batch) for batch in group]
    n = sum(lengths)
    whole = group[0]
    if len(group) > 1:
        try:
            whole = None if lengths == [lengths[0]] * size else joined(group)
        except (RuntimeError, ValueError):  # rows of other shapes, as where each batch is padded
            whole = None
    if whole is None:
        none = rank >= len(group)
        return 0 if none else lengths[rank], n, group[0 if none else rank]
    places = torch.arange(n).tensor_split(size)[rank]
    return len(places), n, taken(whole, places if len(places) else torch.tensor([0]))


def _is_column(value: Any) -> bool:
    """Whether it is a list of values, one a row, rather than of parts of a batch."""
    sequence = isinstance(value, list | tuple) and len(value) > 0
    return sequence and isinstance(value[0], str | int | float)
