"""A net's predictions for the rows of a loader, in their order."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from itertools import chain, count, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from . import checks
from .batches import batch_size, concat, leaves, map_structure
from .core import device_of, explain, length, modes_kept, to_np
from .evaluation import checked_structure, eval_batches, forward, numbered, rows_at_once
from .files import whole_file
from .stepper import Stepper, split_batch
from .team import checking, failing_together, join, same_net

__all__ = ["iter_predict", "predict", "predict_with_targs"]


def predict(net: nn.Module, dl: Any, out: Any = None, *, stepper: Stepper | None = None) -> Any:
    """Returns the net's output for each row of a loader, as NumPy arrays: row i belongs to row i.

    The rows of an `ArrayLoader` come in their own order, whether it shuffles or not; those of
    another loader in the order in which it yields them. The net is put in eval mode and back.

    Args:
        net: Any module.
        dl: A loader of batches `(x, y)`, or of `x` alone.
        out: A place for predictions that do not fit in memory: the path of a `.npy` file, which is
            written completely or not at all, or an array to write into, such as a memory map.
        stepper: The stepper that the net was trained with, if its `forward` is not the plain one.

    Returns:
        `(rows, ...)`: the outputs, on the CPU, in the net's dtype. A net with several outputs gives
        the same structure of arrays: a tuple, dict or dataclass. A list with an entry for each row
        becomes an array of objects. With `out`, that array, or the file as a memory map.

    Raises:
        TypeError: if `out` is a path and the loader does not know its number of rows.
        ValueError: if an output does not have one row for each row of its batch; if `out` does not
            have the outputs' shape and kind; if outputs of several batches cannot be joined.

    Examples:
        >>> from minifast import ArrayLoader
        >>> predict(nn.Identity(), ArrayLoader([[1.0], [2.0], [3.0]], [0, 0, 0], bs=2)).ravel()
        array([1., 2., 3.], dtype=float32)
    """
    with checking():
        batches = predictions(net, dl, stepper)
        path = Path(out) if isinstance(out, str | Path) else None
        rows = 0 if path is None else _rows_of(dl)
        if out is not None and path is None:
            _check_array(out)
    with failing_together():
        parts = (preds for _, preds, _ in batches)
        if out is None:
            return _joined(list(parts))
        return _into(out, parts) if path is None else _to_file(parts, rows, path)


def _check_array(out: Any) -> None:
    if isinstance(out, Tensor) or not (hasattr(out, "shape") and hasattr(out, "dtype")):
        raise _unfit(f"a {type(out).__name__}", "a path, or an array")


def _joined(parts: list[Any]) -> Any:
    try:
        return concat(parts)
    except ValueError as error:
        raise ValueError(
            explain(
                "the predictions of several batches cannot be joined",
                got=str(error).split("\n")[0],
                wanted="outputs of the same structure, whose rows have the same shape",
                fix="for preds in iter_predict(net, dl): ..., which yields each batch's own",
                entry="outputs",
            )
        ) from error


def _into(out: Any, parts: Iterator[np.ndarray]) -> Any:
    """Fills an array with all rows."""
    begin, n = 0, int(out.shape[0]) if out.shape else 0
    for preds in map(_one_array, parts):
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


def _one_array(preds: Any) -> np.ndarray:
    if isinstance(preds, np.ndarray):
        return preds
    raise _unfit(f"a net that returns a {type(preds).__name__}", "one output, a tensor")


def _to_file(parts: Iterator[np.ndarray], n: int, path: Path) -> np.ndarray:
    """Writes a `.npy` file of `n` rows, whole or not at all; gives it as a memory map.

    Of several processes the first writes, and all see the file: it lies where all of them are.
    """
    team = join()
    if team is None or team.rank == 0:
        _write(map(_one_array, parts), n, path)
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


def predict_with_targs(
    net: nn.Module, dl: Any, *, stepper: Stepper | None = None
) -> tuple[Any, Any]:
    """Returns `predict(net, dl)` and the targets of the same rows, as NumPy arrays.

    Examples:
        >>> from minifast import ArrayLoader
        >>> preds, targs = predict_with_targs(nn.Identity(), ArrayLoader([[1.0], [2.0]], [0, 1]))
        >>> targs
        array([0, 1])
    """
    with checking():
        batches = predictions(net, dl, stepper)
    with failing_together():
        pairs = [(preds, targs) for _, preds, targs in batches]
    return _joined([preds for preds, _ in pairs]), _joined([targs for _, targs in pairs])


def iter_predict(net: nn.Module, dl: Any, *, stepper: Stepper | None = None) -> Iterator[Any]:
    """Yields the predictions batch by batch: for more than memory holds, or a stream without end.

    The net is in eval mode while it computes a batch, and in its own mode in between.

    Examples:
        >>> from minifast import ArrayLoader
        >>> for preds in iter_predict(nn.Identity(), ArrayLoader([[1.0], [2.0]], [0, 1])):
        ...     preds.ravel()
        array([1., 2.], dtype=float32)
    """
    with checking():
        batches = predictions(net, dl, stepper)
    team = join()
    return (preds for _, preds, _ in (batches if team is None else team.each_taken(batches)))


def predictions(net: nn.Module, dl: Any, stepper: Stepper | None) -> Iterator[tuple[Any, Any, Any]]:
    """The input on the net's device, the outputs and the targets of each batch, off the GPU."""
    checks.check_net(net)
    checks.check_loader(dl)
    return _computed(net, dl, checks.check_stepper(stepper or Stepper()))


def _computed(net: nn.Module, dl: Any, stepper: Stepper) -> Iterator[tuple[Any, Any, Any]]:
    device, team = device_of(net), join()
    same_net(net)
    batches = iter(eval_batches(dl, team, rows_at_once(dl, net, stepper, known=True)))
    for i in count():
        with numbered("prediction") as place:
            place.batch = i
            found = list(islice(batches, 1))
            if not found:
                return
            x, preds, y = _of_batch(net, checked_structure(found.pop()), device, stepper)
            if team is not None:
                preds, y = team.whole(preds), team.whole(y)
        yield x, preds, y


def _of_batch(
    net: nn.Module, batch: Any, device: torch.device, stepper: Stepper
) -> tuple[Any, Any, Any]:
    if isinstance(batch, Tensor):
        batch = [batch]
    if len(batch) == 1:  # an input without its target
        batch = [*batch, None]
    x, y = split_batch(batch, device)
    with modes_kept(net), torch.no_grad():
        net.eval()
        preds = forward(stepper, net, x)
    rows = batch_size(x, y)
    return x, _by_row("the net's output", preds, rows), _by_row("the target", y, rows)


def _by_row(name: str, value: Any, rows: int) -> Any:
    """The arrays of a batch's output or target: each has a row for each row of the batch.

    They are copies: a net may return its input, or write into one buffer for every batch.
    """
    value = map_structure(lambda t: np.array(to_np(t)) if isinstance(t, Tensor) else t, value)
    lengths = [np.shape(leaf)[:1] for leaf in leaves(value) if isinstance(leaf, np.ndarray)]
    if all(length == (rows,) for length in lengths):
        return value
    if isinstance(value, tuple | list) and len(value) == rows:
        entries = np.empty(rows, dtype=object)
        entries[:] = value
        return entries
    wrong = next(leaf for leaf in leaves(value) if np.shape(leaf)[:1] != (rows,))
    raise ValueError(
        explain(
            f"{name} does not have a row for each row of the batch",
            got=f"shape {np.shape(wrong)} for {rows} rows",
            wanted="the rows on the first axis of each part: row i belongs to row i",
            fix="squeeze(-1) in place of squeeze(); a stepper whose forward puts the rows first; "
            "or net(x) in a loop of your own",
            entry="outputs",
        )
    )


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
