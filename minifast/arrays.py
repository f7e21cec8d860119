"""What array-likes mean: the numbers in them as tensors, and their rows by position."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from .errors import explain

Array = TypeVar("Array", Tensor, np.ndarray)
LARGEST = np.iinfo(np.int64).max


def length(a: Any) -> int | None:
    """How many rows, or batches, something has; None if it does not tell.

    A `DataLoader` over a stream has a `__len__` that fails; zarr's arrays have only a shape.

    Examples:
        >>> length([5, 6, 7]), length(iter([5])), length(torch.zeros(2, 3))
        (3, None, 2)
    """
    try:
        return len(a)
    except TypeError:
        shape = getattr(a, "shape", None)
        return int(shape[0]) if shape else None


def by_position(a: Any) -> Any:
    """What `[i]` gives row i of, counted from 0: of pandas' objects `[i]` is the row named i.

    Examples:
        >>> int(by_position(np.array([5, 6, 7]))[-1])
        7
    """
    return getattr(a, "iloc", a)


# ---- numbers -----------------------------------------------------------------------------


def as_tensor(a: Any, name: str = "the array") -> Tensor:
    """The tensor of an array, list or tensor in its own dtype; memory is shared where it can be.

    Rows of data are not trained: the tensor has no gradient, whatever `a` is part of.

    Raises:
        TypeError: if `a` does not hold numbers (objects, strings, rows of unequal length), or is a
            parameter of a net; the message calls it `name`.
        ValueError: if some numbers are masked, or too large for int64.

    Examples:
        >>> as_tensor(np.eye(2, dtype=np.uint8)).dtype
        torch.uint8
    """
    if isinstance(a, list | tuple) and a and all(isinstance(row, Tensor) for row in a):
        a = _stacked(a, name)
    if isinstance(a, Tensor):
        _check_tensor(a, name)
        t: Tensor = a.detach()
        return _signed(t, name) if t.dtype in (torch.uint16, torch.uint32, torch.uint64) else t
    array = as_array(a, name)
    if array.dtype.kind not in "fiubc":
        raise _not_numbers(a, name, array)
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    if array.dtype in (np.longdouble, np.clongdouble):  # which PyTorch does not have
        array = array.astype(np.float64 if array.dtype == np.longdouble else np.complex128)
    if array.dtype in (np.uint16, np.uint32, np.uint64):  # nor compute with these
        array = _signed(array, name)
    if any(step < 0 for step in array.strides):
        array = np.ascontiguousarray(array)
    return torch.from_numpy(array if array.flags.writeable else np.asarray(_Writable(array)))


def as_array(a: Any, name: str = "the array") -> np.ndarray:
    """The NumPy array of an array-like, in a dtype that may be `object`.

    Raises:
        ValueError: if some of its entries are masked.

    Examples:
        >>> as_array(np.ma.array([1.0, 2.0]))
        array([1., 2.])
    """
    if isinstance(a, list | tuple) and any(isinstance(row, np.ma.MaskedArray) for row in a):
        a = np.ma.array(a)
    if isinstance(a, np.ndarray) and np.any(getattr(a, "mask", False)):
        raise ValueError(_masked(a, name))
    try:
        array = np.asarray(a)
        if array.dtype == object and array.ndim == 2 and hasattr(a, "iloc"):
            # A table of columns of several types: of booleans beside floats, for example.
            array = np.stack([np.asarray(a.iloc[:, i]) for i in range(a.shape[1])], axis=1)
    except (ValueError, TypeError, RuntimeError):  # rows of unequal length, above all
        array = np.empty(0, dtype=object)
    return array


class _Writable:
    """A read-only array's memory, such as a memory map's, for `torch.from_numpy`.

    PyTorch warns about read-only arrays, though nothing writes to these: batches are copies. To
    suppress the warning would change a filter that all threads share.
    """

    def __init__(self, array: np.ndarray) -> None:
        self.array = array  # kept as long as the memory is in use
        interface = array.__array_interface__
        self.__array_interface__ = {**interface, "data": (interface["data"][0], False)}


def training_dtype(dtype: torch.dtype) -> torch.dtype:
    """float32 for floats, complex64 for complex numbers, int64 for integers; bool stays."""
    if dtype.is_floating_point:
        return torch.float32
    if dtype.is_complex:
        return torch.complex64
    return dtype if dtype == torch.bool else torch.int64


def batch_dtype(t: Any) -> torch.dtype:
    """What a batch of `t` is made of: uint8 and bool are numbers, or labels if 1-D.

    Examples:
        >>> batch_dtype(torch.zeros(5, 28, 28, dtype=torch.uint8))
        torch.float32
    """
    if t.dtype in (torch.uint8, torch.bool):
        return torch.float32 if t.ndim > 1 else torch.int64
    return training_dtype(t.dtype)


def batch_dtypes(arrays: Sequence[Any]) -> list[torch.dtype]:
    """Those of `(x, y)` or `(x1, ..., xn, y)`: of several inputs booleans are masks, and stay bool.

    Examples:
        >>> mask = torch.ones(5, 3, dtype=torch.bool)
        >>> batch_dtypes([mask, mask, mask]), batch_dtypes([mask])
        ([torch.bool, torch.bool, torch.float32], [torch.float32])
    """
    masks = range(len(arrays) - 1 if len(arrays) > 2 else 0)
    return [
        torch.bool if i in masks and a.dtype == torch.bool else batch_dtype(a)
        for i, a in enumerate(arrays)
    ]


def narrowed(t: Tensor, dtype: torch.dtype, name: str) -> Tensor:
    """The tensor in a dtype of fewer bits.

    Raises:
        ValueError: if finite numbers become infinite.

    Examples:
        >>> narrowed(torch.ones(2, dtype=torch.float64), torch.float32, "x")
        tensor([1., 1.])
    """
    to = t.to(dtype)
    if t.dtype not in (torch.float64, torch.complex128) or t.layout != torch.strided:
        return to
    if not to.isinf().any() or not (to.isinf() & t.isfinite()).any():
        return to
    raise ValueError(
        explain(
            f"{name} holds numbers too large for float32",
            got=f"{t.dtype}, up to {float(t.abs().nan_to_num(0, 0, 0).max()):.3g}",
            wanted="numbers below 3.4e38",
            fix=f"scale them: ({_called(name)} - mean) / std",
            entry="nan-in-the-data",
        )
    )


def _signed(a: Array, name: str) -> Array:
    """Unsigned integers as int64."""
    signed: Any = a.to(torch.int64) if isinstance(a, Tensor) else a.astype(np.int64)
    if (signed < 0).any():  # wrapped around
        raise ValueError(
            explain(
                f"{name} holds integers too large for int64",
                got=f"uint64, above {LARGEST:,}",
                wanted="integers that int64 can hold",
                fix=f"{_called(name)}.astype(np.float64), or numbers from 0 for the distinct ones: "
                f"np.unique({_called(name)}, return_inverse=True)[1]",
                entry="array-of-objects",
            )
        )
    return signed  # type: ignore[no-any-return]


def _stacked(rows: Sequence[Tensor], name: str) -> Tensor:
    try:
        return torch.stack(list(rows))
    except RuntimeError:
        raise _not_numbers(rows, name, np.empty(0, dtype=object)) from None


# ---- what cannot be rows -----------------------------------------------------------------


def _called(name: str) -> str:
    return name if name.isidentifier() else "rows"


def _check_tensor(t: Tensor, name: str) -> None:
    kinds = (
        (isinstance(t, nn.Parameter), "an nn.Parameter", "detach(), if it is data: a loader"
         "'s rows are not trained"),
        (t.is_nested, "a nested tensor", "to_padded_tensor(0.0)"),
        (t.is_quantized, "a quantized tensor", "dequantize()"),
        (type(t).__name__ == "MaskedTensor", "a masked tensor", "to_tensor(0.0)"),
        (t.layout not in (torch.strided, torch.sparse_coo), f"a tensor of layout {t.layout}",
         "to_dense()"),
    )  # fmt: skip
    for found, kind, fix in kinds:
        if found:
            raise TypeError(
                explain(
                    f"{name} cannot be rows of data",
                    got=kind,
                    wanted="a dense tensor of numbers",
                    fix=f"{_called(name)}.{fix}",
                    entry="array-of-objects",
                )
            )


def _masked(a: Any, name: str) -> str:
    return explain(
        f"{name} has masked entries",
        got=f"{np.count_nonzero(a.mask):,} of {a.size:,} entries masked",
        wanted="a number in each place: training would take what is under the mask",
        fix=f"{_called(name)}.filled(0.0), or another value; or leave out those rows",
        entry="array-of-objects",
    )


def _not_numbers(a: Any, name: str, array: np.ndarray) -> TypeError:
    called = _called(name)
    got = f"{type(a).__name__} with entries of type {array.dtype}"
    fix = f"make it np.array({called}, dtype=np.float32); drop or encode columns of text first"
    if isinstance(a, dict):
        fix = "an array for each input: ArrayLoader(*inputs.values(), y)"
    elif hasattr(a, "iloc"):
        columns = a.items() if a.ndim == 2 else [(a.name, a)]
        bad = {str(key): c for key, c in columns if np.asarray(c).dtype.kind not in "fiubc"}
        found = ", ".join(f"{key} ({c.dtype})" for key, c in [*bad.items()][:5])
        got = f"{type(a).__name__}; not numbers: {found}"
        if any(c.dtype == "category" for c in bad.values()):
            fix = "the categories' numbers: column.cat.codes"
        elif any(c.dtype in ("boolean", "Int64", "Float64") for c in bad.values()):
            fix = f"fill what is missing, {called}.fillna(0), or leave out those rows, dropna()"
    return TypeError(
        explain(
            f"{name} cannot become a tensor",
            got=got,
            wanted="numbers, every row of the same length",
            fix=fix,
            entry="array-of-objects",
        )
    )
