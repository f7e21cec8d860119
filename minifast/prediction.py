"""What a net makes of rows, in their order."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from . import checks
from .core import device_of, explain, length, modes_kept, to_np
from .dataloader import ArrayLoader
from .files import whole_file
from .mistakes import NOT_YET, explain_failure
from .stepper import Stepper, split_batch
from .team import Team, failing_together, join, same_net

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
        ValueError: if `out` has not the outputs' shape or kind, or their shape differs by batch.

    Examples:
        >>> predict(nn.Identity(), ArrayLoader([[1.0], [2.0], [3.0]], [0, 0, 0], bs=2)).ravel()
        array([1., 2., 3.], dtype=float32)
    """
    with failing_together():
        parts = iter_predict(net, dl)
        if out is None:
            return np.concatenate(list(parts))
        if isinstance(out, str | Path):
            return _to_file(parts, _rows_of(dl), Path(out))
        return _into(out, parts)


def _into(out: Any, parts: Iterator[np.ndarray]) -> Any:
    """Fills an array with all rows."""
    if isinstance(out, Tensor) or not (hasattr(out, "shape") and hasattr(out, "dtype")):
        raise _unfit(f"a {type(out).__name__}", "a path, or an array")
    begin, n = 0, int(out.shape[0]) if out.shape else 0
    for preds in parts:
        end = begin + len(preds)
        if end > n or out.shape[1:] != preds.shape[1:]:
            raise _unfit(f"{end} rows of {preds.shape[1:]} so far", f"as out, {out.shape}")
        if not np.can_cast(preds.dtype, out.dtype, "same_kind"):
            raise _unfit(f"out of {out.dtype}", f"{preds.dtype}, as the net gives")
        out[begin:end] = preds
        begin = end
    if begin != n:
        raise _unfit(f"{begin} rows", f"as out, {out.shape}")
    return out


def _to_file(parts: Iterator[np.ndarray], n: int, path: Path) -> np.ndarray:
    """Writes a `.npy` file of `n` rows, whole or not at all; gives it as a memory map.

    Of several processes the first writes, and all see the file: it lies where all of them are.
    """
    team = join()
    if team is None or team.rank == 0:
        _write(parts, n, path)
    else:
        deque(parts, maxlen=0)  # all take part in each batch
    if team is not None:
        team.total(0.0)  # the first has written it now
    found: np.ndarray = np.load(path, mmap_mode="r")
    return found


def _write(parts: Iterator[np.ndarray], n: int, path: Path) -> None:
    first = next(parts)
    kind, written = (first.shape[1:], first.dtype), 0
    with whole_file(path) as file:
        header = {"descr": first.dtype.str, "fortran_order": False, "shape": (n, *kind[0])}
        np.lib.format.write_array_header_1_0(file, header)
        for preds in chain([first], parts):
            if (preds.shape[1:], preds.dtype) != kind:
                raise _unfit(
                    f"rows of {preds.shape[1:]}, {preds.dtype}", f"all as the first {kind}"
                )
            file.write(np.ascontiguousarray(preds).data)
            written += len(preds)
        if written != n:
            raise _unfit(f"{written} rows", f"{n}, the length of the loader's data set")


def predict_with_targs(net: nn.Module, dl: Any) -> tuple[np.ndarray, np.ndarray]:
    """`predict`, and the targets of the same rows beside it.

    Examples:
        >>> preds, targs = predict_with_targs(nn.Identity(), ArrayLoader([[1.0], [2.0]], [0, 1]))
        >>> targs
        array([0, 1])
    """
    with failing_together():
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
    same_net(net)
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
        yield to_np(preds.clone() if _is_input(preds, x) else preds), to_np(y)


def _is_input(preds: Any, x: Any) -> bool:
    """Whether the net gives its input, or a part: that may be the user's array, read in place."""
    if isinstance(x, tuple | list | dict):
        return any(_is_input(preds, each) for each in (x.values() if isinstance(x, dict) else x))
    pair = preds, x
    if not all(isinstance(t, Tensor) and t.layout == torch.strided for t in pair):
        return False
    return bool(preds.untyped_storage().data_ptr() == x.untyped_storage().data_ptr())


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
        return _some(dl if team is None else team.in_order(dl, 0))
    row_bytes = sum(math.prod(a.shape[1:]) for a in dl.arrays) * 4
    bs = max(dl.bs, min(EVALUATION_ROWS, EVALUATION_BYTES // max(row_bytes, 1)))
    return dl.in_order(bs) if team is None else team.in_order(dl, bs * team.size)


def _some(batches: Iterable[Any]) -> Iterator[Any]:
    """The batches, of which there is at least one."""
    batches = iter(batches)
    first = list(islice(batches, 1))
    if not first:
        raise ValueError(checks.no_batch("the loader"))
    return chain(first, batches)


def _rows_of(dl: Any) -> int:
    """How many rows the loader has."""
    rows = getattr(dl, "n_rows", None)
    if rows is None and not getattr(dl, "drop_last", False):
        rows = length(getattr(dl, "dataset", None))
    if rows is not None:
        return int(rows)
    raise TypeError(
        explain(
            "out cannot be made: the loader does not tell how many rows it has",
            got=f"a path, and a {type(dl).__name__}",
            wanted="a loader of all rows of a data set, or an array to write into",
            fix="out=np.empty((rows, outputs), np.float32), or iter_predict",
            entry="larger-than-memory",
        )
    )


def _unfit(got: str, wanted: str) -> ValueError:
    return ValueError(
        explain(
            "out cannot take the predictions",
            got=got,
            wanted=wanted,
            fix="an array of the outputs' shape and dtype; or iter_predict, for rows that differ",
            entry="larger-than-memory",
        )
    )
