"""Batches of any structure: their number of rows, and how to map, copy, join and split them.

A batch is a tensor, an array, or a tuple, list, mapping or dataclass of such parts. This module is
the one home of what counts as a row.
"""

from __future__ import annotations

import copy
import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

# ---- structure ---------------------------------------------------------------------------


def map_structure(
    function: Callable[..., Any],
    value: Any,
    *others: Any,
    is_leaf: Callable[[Any], bool] = lambda part: False,
) -> Any:
    """Applies a function to each leaf; containers keep their type.

    Tuples (also named ones), lists, mappings and dataclasses are containers unless `is_leaf` says
    otherwise; all else is a leaf. `others` are values of the same structure, whose leaves are
    further arguments.

    Raises:
        ValueError: if the structures differ.

    Examples:
        >>> map_structure(lambda t: t + 1, {"a": (1, [2])})
        {'a': (2, [3])}
    """

    def each(*parts: Any) -> Any:
        return map_structure(function, *parts, is_leaf=is_leaf)

    values = (value, *others)
    if is_leaf(value):
        return function(*values)
    if isinstance(value, Mapping):
        if any(type(v) is not type(value) or set(v) != set(value) for v in values):
            raise ValueError(_differ(values))
        like = {} if type(value) is dict else copy.copy(value)
        for key in value:
            like[key] = each(*(v[key] for v in values))  # type: ignore[index]
        return like
    if isinstance(value, tuple | list):
        if any(type(v) is not type(value) or len(v) != len(value) for v in values):
            raise ValueError(_differ(values))
        parts = list(map(each, *values))
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in dataclasses.fields(value) if field.init]
        fields = {name: each(*(getattr(v, name) for v in values)) for name in names}
        return dataclasses.replace(value, **fields)
    return function(*values)


def _differ(values: Sequence[Any]) -> str:
    kinds = ", ".join(
        f"{type(v).__name__} of {len(v)}" if isinstance(v, Sized) else type(v).__name__
        for v in values[:4]
    )
    return f"batches differ in structure: {kinds}"


def leaves(value: Any) -> Iterator[Any]:
    """The leaves of a structure, in order."""
    if isinstance(value, Tensor):  # asked first, as it is nearly always one
        yield value
        return
    if isinstance(value, Mapping):
        parts: Iterable[Any] = value.values()
    elif isinstance(value, tuple | list):
        parts = value
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        parts = [getattr(value, field.name) for field in dataclasses.fields(value)]
    else:
        yield value
        return
    for part in parts:
        yield from leaves(part)


def cloned(value: Any, device: torch.device | None = None) -> Any:
    """A copy of a batch, without gradients: what writes into it leaves the batch as it is.

    Examples:
        >>> one = torch.zeros(2)
        >>> cloned([one])[0].add_(1), one
        (tensor([1., 1.]), tensor([0., 0.]))
    """

    def copied(leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            return leaf.detach().to(device or leaf.device, copy=True)
        return leaf.copy() if isinstance(leaf, np.ndarray) else leaf

    return map_structure(copied, value)


def seen(value: Any) -> str:
    """A batch's part in a word: dtype and shape.

    Examples:
        >>> seen(torch.zeros(2, 3)), seen((torch.zeros(2), 1))
        ('float32 of shape (2, 3)', 'a tuple of float32 of shape (2,), int')
    """
    if isinstance(value, Tensor):
        where = "" if value.is_cpu else f" on {value.device}"
        return f"{str(value.dtype).removeprefix('torch.')} of shape {tuple(value.shape)}{where}"
    if isinstance(value, tuple | list):
        more = ", ..." if len(value) > 8 else ""
        return f"a {type(value).__name__} of {', '.join(map(seen, value[:8]))}{more}"
    if isinstance(value, Mapping):
        return f"a {type(value).__name__} with {', '.join(map(str, value))}"
    return type(value).__name__


# ---- rows --------------------------------------------------------------------------------


def batch_size(x: Any, y: Any = None) -> int:
    """The number of rows of a batch with the input `x` and the target `y`.

    - A target that is one tensor or array tells: the length of its first axis.
    - A list of strings or numbers, or of mappings (the boxes of an image), has one entry per row.
    - Otherwise the target has several parts. If one of them has as many rows as the input, or if
      there are as many parts, that is the number: several targets, or one tensor per row. If none
      has, it is the length that most of the parts share.
    - Without a target the input tells, in the same way.

    Examples:
        >>> batch_size(torch.zeros(4, 3), torch.zeros(4))
        4
        >>> boxes = [torch.ones(9, 4), torch.ones(1, 4)]
        >>> batch_size(torch.zeros(2, 3, 8, 8), boxes), batch_size(None, {"kind": torch.zeros(5)})
        (2, 5)
    """
    if y is None:
        return _rows(x, None)
    if isinstance(y, Tensor | np.ndarray):
        return len(y) if y.ndim else 1
    return _rows(y, None if x is None else _rows(x, None))


def _rows(value: Any, rows_of_input: int | None) -> int:
    if isinstance(value, Tensor | np.ndarray):
        return len(value) if value.ndim else 1
    if is_column(value):
        return len(value)
    lengths = [len(leaf) for leaf in leaves(value) if getattr(leaf, "ndim", 0)]
    parts = len(value) if isinstance(value, tuple | list) else 0
    if rows_of_input is not None and rows_of_input in (parts, *lengths):
        return rows_of_input
    columns = [part for part in _parts(value) if is_column(part)]
    lengths += [len(column) for column in columns]
    return Counter(lengths).most_common(1)[0][0] if lengths else max(parts, 1)


def _parts(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        yield from value.values()
    elif isinstance(value, tuple | list):
        yield from value


def is_column(value: Any) -> bool:
    """Whether it is a list with one entry per row, not of parts that each have all rows.

    Examples:
        >>> is_column(["a", "b"]), is_column([torch.zeros(2), torch.zeros(2)])
        (True, False)
    """
    sequence = isinstance(value, list | tuple) and len(value) > 0
    return sequence and all(isinstance(each, str | int | float | Mapping) for each in value)


def shard_size(n: int, rank: int, size: int) -> int:
    """How many of n rows a process gets, as `tensor_split` splits them.

    Examples:
        >>> [shard_size(10, rank, 4) for rank in range(4)]
        [3, 3, 2, 2]
    """
    return n // size + (rank < n % size)


def concat(batches: Sequence[Any]) -> Any:
    """Several batches, or outputs for them, as one.

    Raises:
        ValueError, RuntimeError: if their structures, or the shapes of their rows, differ.

    Examples:
        >>> concat([(torch.zeros(2, 3), ["a", "b"]), (torch.ones(1, 3), ["c"])])[1]
        ['a', 'b', 'c']
    """
    return map_structure(_concat, *batches, is_leaf=is_column)


def _concat(*parts: Any) -> Any:
    if isinstance(parts[0], Tensor):
        return torch.cat(parts)
    if isinstance(parts[0], np.ndarray):
        return np.concatenate(parts)
    if is_column(parts[0]):
        return [value for part in parts for value in part]
    if any(part is not parts[0] and part != parts[0] for part in parts[1:]):
        kinds = f"{parts[0]!r:.40}, then {next(p for p in parts if p != parts[0])!r:.40}"
        raise ValueError(f"a {type(parts[0]).__name__} that differs between batches: {kinds}")
    return parts[0]  # None, or a setting that comes with each batch


def take_rows(batch: Any, rows: Tensor, n: int) -> Any:
    """Some rows of a batch that has `n` of them."""
    if isinstance(batch, Tensor):
        return batch[rows]
    if isinstance(batch, np.ndarray):
        return batch[rows.numpy()]
    if isinstance(batch, Mapping):
        return {key: take_rows(part, rows, n) for key, part in batch.items()}
    if is_column(batch) or _one_per_row(batch, n):
        return [batch[i] for i in rows.tolist()]
    if isinstance(batch, tuple | list):
        return tuple(take_rows(part, rows, n) for part in batch)
    return batch


def _one_per_row(value: Any, n: int) -> bool:
    """Whether it is a list of one tensor per row, such as the boxes of each image."""
    if not isinstance(value, tuple | list) or len(value) != n:
        return False
    return not all(isinstance(part, Tensor | np.ndarray) and len(part) == n for part in value)


def scatter(group: Sequence[Any], rank: int, size: int) -> tuple[int, int, Any]:
    """A process's part of some batches that count as one: its rows, all rows, and the part.

    As many batches of one length as there are processes go one to each. Others are joined and
    split by rows, unless their rows differ in shape. A part has at least one row to step with,
    though that row may count for nothing.

    Examples:
        >>> scatter([torch.arange(3), torch.arange(2)], 1, 2)
        (2, 5, tensor([0, 1]))
        >>> scatter([torch.arange(1)], 1, 2)
        (0, 1, tensor([0]))
    """
    lengths = [rows_of(batch) for batch in group]
    n = sum(lengths)
    whole = group[0]
    if len(group) > 1:
        try:
            whole = None if lengths == [lengths[0]] * size else _joined(group)
        except (RuntimeError, ValueError):  # rows of other shapes, as where each batch is padded
            whole = None
    if whole is None:
        empty = rank >= len(group)
        return 0 if empty else lengths[rank], n, group[0 if empty else rank]
    places = torch.arange(n).tensor_split(size)[rank]
    mine = places if len(places) else torch.tensor([0])
    if _has_parts(whole):
        return len(places), n, tuple(take_rows(part, mine, n) for part in whole)
    return len(places), n, take_rows(whole, mine, n)


def _has_parts(batch: Any) -> bool:
    """Whether a batch as a loader yields it is inputs and a target, whatever those are."""
    return isinstance(batch, tuple | list) and len(batch) > 1


def _joined(group: Sequence[Any]) -> Any:
    """Batches as a loader yields them as one."""
    if all(map(_has_parts, group)):
        return tuple(map(concat, zip(*group, strict=True)))
    return concat(group)


def rows_of(batch: Any) -> int:
    """The number of rows of a batch as a loader yields it, the target last.

    Examples:
        >>> rows_of(({"x": torch.zeros(3, 2)}, {"y": torch.zeros(3)}))
        3
    """
    if _has_parts(batch):
        *xs, y = batch
        return batch_size(xs[0] if len(xs) == 1 else xs, y)
    return batch_size(batch)


# ---- one pass ----------------------------------------------------------------------------


class Lookahead:
    """An iterator that can tell whether the item it yielded was the last one.

    It asks its source for the next item only if it is asked, and if the length is not known for
    sure. What `note` returns just before that is `noted` until that item, or the end, is asked
    for: drawing it may have moved random generators.

    Args:
        source: The items.
        length: How many there are, where that is sure.
        note: Called before an item is drawn ahead.

    Examples:
        >>> items = Lookahead("ab")
        >>> next(items), items.is_last(), next(items), items.is_last()
        ('a', False, 'b', True)
    """

    __slots__ = ("_ahead", "_left", "_note", "_source", "noted")

    def __init__(
        self,
        source: Iterable[Any],
        length: int | None = None,
        note: Callable[[], Any] = lambda: None,
    ) -> None:
        self._source, self._left, self._note = iter(source), length, note
        self._ahead: list[Any] | None = None  # empty once the end has come
        self.noted: Any = None

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        if self._left is not None:
            self._left -= 1
        if self._ahead is None:
            return next(self._source)
        ahead, self._ahead, self.noted = self._ahead, None, None
        return next(iter(ahead))

    def is_last(self) -> bool:
        """Whether no further item comes."""
        if self._left is not None:
            return self._left <= 0
        if self._ahead is None:
            self.noted = self._note()
            self._ahead = list(islice(self._source, 1))
        return not self._ahead
