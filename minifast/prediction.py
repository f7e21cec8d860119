"""What a net makes of rows, in their order."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from . import checks
from .core import device_of, explain, modes_kept, to_np
from .dataloader import ArrayLoader
from .files import whole_file
from .mistakes import NOT_YET, explain_failure
from .stepper import Stepper, split_batch
from .team import Team, join

__all__ = ["iter_predict", "predict", "predict_with_targs"]

# A batch where no gradient is kept may be larger: fewer calls, and it still fits the cache.
EVALUATION_ROWS, EVALUATION_BYTES = 2000, 2**24


def predict(net: nn.Module, dl: Any, out: Any = None) -> Any:
    """What the net makes of each row of a loader, as one numpy array: row i belongs to row i.

    The rows of an `ArrayLoader` come in their own order, whether it shuffles or not; those of
    another loader in the order in which it yields them. The net is put in eval mode and back.

    Args:
        net: Any module.
        dl: A loader of batches `(x, y)`, or of `x` alone.
        out: Where predictions go that memory does not hold: the path of a `.npy` file, which is
            there whole or not at all, or an array to write into, such as a memory map.

    Returns:
        `(rows, ...)`: the outputs, on the CPU, in the net's dtype. With `out`, that array, or the
        file as a memory map.

    Raises:
        TypeError: if `out` is a path and the loader does not tell how many rows it has.
        ValueError: if `out` has not the outputs' shape.

    Examples:
        >>> predict(nn.Identity(), ArrayLoader([[1.0], [2.0], [3.0]], [0, 0, 0], bs=2)).ravel()
        array([1., 2., 3.], dtype=float32)
    """
    parts = iter_predict(net, dl)
    if out is None:
        return np.concatenate(list(parts))
    if isinstance(out, str | Path):
        return _to_file(parts, _rows_of(dl), Path(out))
    begin = 0
    for preds in parts:
        end = begin + len(preds)
        if end > len(out) or out.shape[1:] != preds.shape[1:]:
            raise _does_not_fit(f"{end} rows of {preds.shape[1:]} so far", out.shape)
        out[begin:end] = preds
        begin = end
    if begin != len(out):
        raise _does_not_fit(f"{begin} rows", out.shape)
    return out


def _to_file(parts: Iterator[np.ndarray], n: int, path: Path) -> np.ndarray:
    """Writes a `.npy` file of `n` rows, whole or not at all; gives it as a memory map."""
    first = next(parts)
    shape = (n, *first.shape[1:])
    header = {"descr": first.dtype.str, "fortran_order": False, "shape": shape}
    written = 0
    with whole_file(path) as file:
        np.lib.format.write_array_header_1_0(file, header)
        for preds in chain([first], parts):
            file.write(np.ascontiguousarray(preds).data)
            written += len(preds)
        if written != n:
            raise _does_not_fit(f"{written} rows", shape)
    found: np.ndarray = np.load(path, mmap_mode="r")
    return found


def predict_with_targs(net: nn.Module, dl: Any) -> tuple[np.ndarray, np.ndarray]:
    """`predict`, and the targets of the same rows beside it.

    Examples:
        >>> preds, targs = predict_with_targs(nn.Identity(), ArrayLoader([[1.0], [2.0]], [0, 1]))
        >>> targs
        array([0, 1])
    """
    preds, targs = zip(*_predictions(net, dl), strict=True)
    return np.concatenate(preds), np.concatenate(targs)


def iter_predict(net: nn.Module, dl: Any) -> Iterator[np.ndarray]:
    """`predict`, some rows at a time: for more predictions than memory holds, or without an end.

    The net is in eval mode while one is computed, and in its own while you have it.

    Examples:
        >>> for preds in iter_predict(nn.Identity(), ArrayLoader([[1.0], [2.0]], [0, 1])):
        ...     preds.ravel()
        array([1., 2.], dtype=float32)
    """
    return (preds for preds, _ in _predictions(net, dl))


def _predictions(net: nn.Module, dl: Any) -> Iterator[tuple[np.ndarray, Any]]:
    """The outputs and targets of each batch, off the GPU as soon as they are there."""
    checks.check_net(net)
    checks.check_loader(dl)
    return _computed(net, dl)


def _computed(net: nn.Module, dl: Any) -> Iterator[tuple[np.ndarray, Any]]:
    device, stepper, team = device_of(net), Stepper(), join()
    for batch in rows_in_order(dl, team):
        if isinstance(batch, Tensor):
            batch = [batch]
        if len(batch) == 1:  # an input without its target
            batch = [*batch, None]
        x, y = split_batch(batch, device)
        with modes_kept(net), torch.no_grad():
            net.eval()
            preds = forward(stepper, net, x)
        if team is not None:
            preds, y = team.whole(preds), team.whole(y)
        yield to_np(preds), to_np(y)


def forward(stepper: Stepper, net: nn.Module, x: Any) -> Any:
    """The net's output for a batch; what goes wrong is said in words."""
    try:
        return stepper.forward(net, x)
    except Exception as error:
        explain_failure(error, net, None, x, None, NOT_YET, NOT_YET)
        raise


def rows_in_order(dl: Any, team: Team | None) -> Iterable[Any]:
    """The batches to evaluate: of arrays many rows at once, as no gradients fill the memory."""
    if not isinstance(dl, ArrayLoader):
        return cast(Iterable[Any], dl) if team is None else team.in_order(dl, 0)
    row_bytes = sum(math.prod(a.shape[1:]) for a in dl.arrays) * 4
    bs = max(dl.bs, min(EVALUATION_ROWS, EVALUATION_BYTES // max(row_bytes, 1)))
    return dl.read(bs) if team is None else team.in_order(dl, bs * team.size)


def _rows_of(dl: Any) -> int:
    """How many rows the loader has."""
    rows = getattr(dl, "n_rows", None)
    if rows is None and hasattr(getattr(dl, "dataset", None), "__len__"):
        rows = len(dl.dataset)
    if rows is not None:
        return int(rows)
    raise TypeError(
        explain(
            "out cannot be made: the loader does not tell how many rows it has",
            got=f"a path, and a {type(dl).__name__}",
            wanted="a loader with a data set, or an array to write into",
            fix="out=np.lib.format.open_memmap(path, mode='w+', shape=(rows, outputs), ...), "
            "or iter_predict",
            entry="larger-than-memory",
        )
    )


def _does_not_fit(got: str, shape: tuple[int, ...]) -> ValueError:
    return ValueError(
        explain(
            "out has not the shape of the predictions",
            got=got,
            wanted=f"as out, {shape}",
            fix="out=path, which makes an array that fits",
            entry="larger-than-memory",
        )
    )
