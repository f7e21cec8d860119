"""Which predictions and targets a metric of classes can compare; anything else is an error.

Every function takes tensors or NumPy arrays. None compares arrays of different shapes: PyTorch and
NumPy would compare every row with every other and return a number that means nothing.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from .core import explain, to_np

SOFT = 1e-2  # by how much the sum of a row of soft labels may differ from 1: half precision's error


# ---- a class for each row ----------------------------------------------------------------


def class_axis(preds: Any) -> int:
    """The axis of the classes: 1, or 0 for a single row without an axis for the rows."""
    return min(1, len(preds.shape) - 1)


def actual_classes(preds: Any, targs: Any, metric: str) -> Any:
    """Returns the class of every row (or pixel), in the shape of `preds.argmax(1)`.

    Args:
        preds: An output for each class, `(n, c, ...)` with c of at least 2.
        targs: Classes `(n, ...)`, or in a column `(n, 1, ...)`; or one-hot or soft labels in the
            shape of `preds`, of which the largest counts.
        metric: The metric's name, for the message.

    Raises:
        ValueError: for any other pair of shapes, and for float labels that are not integers.

    Examples:
        >>> preds = torch.zeros(3, 2)
        >>> actual_classes(preds, torch.tensor([[0], [1], [1]]), "accuracy")
        tensor([0, 1, 1])
    """
    _check_arrays(preds, targs, metric)
    shape, of_targs = tuple(preds.shape), tuple(targs.shape)
    axis = class_axis(preds)
    if not shape or shape[axis] < 2 or (len(shape) == 1 and of_targs):
        raise ValueError(_one_output(preds, targs, metric))
    rows = shape[:axis] + shape[axis + 1 :]
    if of_targs == shape:
        return _largest(targs, axis, metric)
    if of_targs == (*rows[:1], 1, *rows[1:]):
        targs = targs.reshape(rows)
    elif of_targs != rows:
        fix = "accuracy_thresh(...) where a row may have several classes"
        if len(shape) > 2 and of_targs == shape[:-1]:
            fix = f"{metric}(preds.movedim(-1, 1), targs): the classes are on axis 1"
        wanted = "predictions (n, c, ...) and a class for each row: (n, ...)"
        raise ValueError(_other_shape(preds, targs, metric, wanted, fix))
    if _is_float(targs) and bool((targs != targs.round()).any()):
        raise ValueError(
            explain(
                f"{metric} must have classes as targets",
                got=f"{_seen(targs)} that are not integers",
                wanted="the number of the class of each row: 0, 1, 2, ...",
                fix="for a quantity, a metric such as (preds - targs).abs().mean()",
                entry="metric-inputs",
            )
        )
    return targs


def counted(preds: Any, actual: Any) -> Any:
    """Returns which labels are classes, 0 to c - 1; `ignore_index` and other labels are not."""
    return (actual >= 0) & (actual < preds.shape[class_axis(preds)])


def two_classes(preds: Any, targs: Any, metric: str) -> Any:
    """Returns which rows are of class 1, as booleans: `actual_classes` where there are only two.

    Raises:
        ValueError: unless `preds` are `(n, 2, ...)` and every label is 0 or 1.
    """
    _check_arrays(preds, targs, metric)
    c = preds.shape[1] if len(preds.shape) > 1 else 1
    if c != 2:
        returns = f'sklearn.metrics.{metric}_score(targs, preds.argmax(1), average="macro")'
        if c == 1:
            returns = f"{metric}_np(to_np(preds.sigmoid()), to_np(targs))"
        raise ValueError(
            explain(
                f"{metric} must have outputs for two classes",
                got=f"predictions {_seen(preds)}",
                wanted="(n, 2): scores, probabilities or log-probabilities of the classes 0 and 1",
                fix=f"a function marked @whole_epoch that returns {returns}",
                entry="metric-inputs",
            )
        )
    actual = actual_classes(preds, targs, metric)
    _check_zero_or_one(actual, metric, "f(preds[targs >= 0], targs[targs >= 0])")
    return actual == 1


def probability_of_class_1(preds: Tensor) -> Tensor:
    """Returns the probability of class 1 of two, from whatever the net ends in.

    Args:
        preds: `(n, 2, ...)`: probabilities (each row sums to 1), log-probabilities (their
            exponentials do), or scores, of which the softmax is taken.

    Examples:
        >>> p = torch.tensor([[0.25, 0.75]])
        >>> [round(probability_of_class_1(t).item(), 6) for t in (p, p.log(), p.log() + 7)]
        [0.75, 0.75, 0.75]
    """
    preds = preds if preds.is_floating_point() else preds.float()
    rounding = SOFT if torch.finfo(preds.dtype).bits < 32 else 1e-4
    for p in preds, preds.exp():
        sums = p.sum(1, dtype=torch.float32)
        if bool((p >= 0).all() and ((sums - 1).abs() < rounding).all()):
            return p[:, 1]
    scores = preds if preds.device.type == "mps" else preds.double()
    return (scores[:, 1] - scores[:, 0]).sigmoid()


# ---- several classes a row ---------------------------------------------------------------


def zero_or_one(preds: Any, targs: Any, metric: str) -> Any:
    """Returns the targets as booleans in the shape of `preds`.

    Args:
        preds: A number for each row and class, `(n, c)`; for one class `(n, 1)` or `(n,)`.
        targs: 0 or 1 for each; a column `(n, 1)` and a row `(n,)` are the same labels.
        metric: The metric's name, for the message.

    Raises:
        ValueError: for different shapes and other labels.
    """
    _check_arrays(preds, targs, metric)
    shape, of_targs = tuple(preds.shape), tuple(targs.shape)
    if of_targs != shape:
        if of_targs != (*shape, 1) and shape != (*of_targs, 1):
            wanted = "a 0 or 1 for each prediction, in the same shape"
            fix = "accuracy, for one class a row; targs.reshape(preds.shape) if they are in order"
            raise ValueError(_other_shape(preds, targs, metric, wanted, fix))
        targs = targs.reshape(shape)
    _check_zero_or_one(targs, metric, "(targs > 0.5) for soft labels")
    return targs == 1


def check_probabilities(preds: np.ndarray, thresh: float, metric: str) -> None:
    """Refuses scores and log-probabilities where the threshold is one on probabilities."""
    if 0 < thresh < 1 and bool(((preds < -1e-3) | (preds > 1 + 1e-3)).any()):
        raise ValueError(
            explain(
                f"{metric} must have probabilities for thresh={thresh:g}",
                got=f"numbers from {np.nanmin(preds):.3g} to {np.nanmax(preds):.3g}",
                wanted="0 to 1",
                fix="1 / (1 + np.exp(-preds)) for scores, np.exp(preds) for log-probabilities",
                entry="metric-inputs",
            )
        )


# ---- labels, as NumPy arrays -------------------------------------------------------------


def class_labels(
    labels: Any, n: int | None = None, c: int | None = None, name: str = "targs"
) -> np.ndarray:
    """Returns classes as int64 `(n,)`.

    Args:
        labels: Integers from 0 in a row `(n,)` or a column `(n, 1)`; floats that are integers too.
        n: How many there must be.
        c: Number of classes, if it is known.
        name: The argument's name, for the message.

    Raises:
        ValueError: for anything else.

    Examples:
        >>> class_labels(torch.tensor([[0.0], [2.0]]), n=2, c=3)
        array([0, 2])
    """
    found = np.asarray(to_np(labels))
    shape = found.shape
    if found.ndim == 2 and shape[1] == 1:
        found = found.reshape(-1)
    whole = found.dtype.kind in "iub" or (found.dtype.kind == "f" and bool((found % 1 == 0).all()))
    problem = None
    if found.ndim != 1 or not whole:
        problem = f"targets of shape {shape} and type {found.dtype}"
    elif n is not None and len(found) != n:
        problem = f"{len(found)} labels for {n} rows"
    elif len(found) and (found.min() < 0 or (c is not None and found.max() >= c)):
        outputs = "" if c is None else f" for {c} outputs"
        problem = f"classes from {found.min():g} to {found.max():g}{outputs}"
    if problem is None:
        return found.astype(np.int64)
    raise ValueError(
        explain(
            f"{name} must be the class of each row",
            got=problem,
            wanted="an integer from 0 for each row, below the number of outputs",
            fix=f"{name}.argmax(1) for one-hot labels; {name}[{name} >= 0] leaves out rows without "
            "a label (and the same rows of the predictions)",
            entry="metric-inputs",
        )
    )


# ---- the messages ------------------------------------------------------------------------


def _check_arrays(preds: Any, targs: Any, metric: str) -> None:
    for name, value in ("preds", preds), ("targs", targs):
        if not isinstance(value, Tensor | np.ndarray):
            raise TypeError(
                explain(
                    f"{metric} must have one tensor as {name}",
                    got=type(value).__name__,
                    wanted="one tensor of predictions and one of targets",
                    fix=f"metrics=[lambda preds, targs: {metric}(...)], with the one it compares",
                    entry="metric-inputs",
                )
            )


def _largest(targs: Any, axis: int, metric: str) -> Any:
    """The class of one-hot or soft labels."""
    targs = targs * 1  # of booleans, integers
    if bool((targs >= 0).all()) and bool((abs(targs.sum(axis) - 1) < SOFT).all()):
        return targs.argmax(axis)
    raise ValueError(
        explain(
            f"{metric} must have one class a row",
            got=f"targets {_seen(targs)} whose rows do not sum to 1",
            wanted="classes (n,), or one-hot or soft labels (n, c) whose rows sum to 1",
            fix="accuracy_thresh(0.0) for scores, accuracy_thresh(0.5) for probabilities: "
            "accuracy_multi, where a row may have several classes",
            entry="metric-inputs",
        )
    )


def _check_zero_or_one(targs: Any, metric: str, fix: str) -> None:
    if not bool(((targs == 0) | (targs == 1)).all()):
        least, most = float(targs.min()), float(targs.max())
        raise ValueError(
            explain(
                f"{metric} must have targets that are 0 or 1",
                got=f"targets from {least:g} to {most:g}",
                wanted="0 or 1",
                fix=f"{fix}; (targs == k) for the class k; accuracy for many classes",
                entry="metric-inputs",
            )
        )


def _one_output(preds: Any, targs: Any, metric: str) -> str:
    return explain(
        f"{metric} must have an output for each class",
        got=f"predictions {_seen(preds)}, targets {_seen(targs)}",
        wanted="(n, c) with 2 classes or more; whether one output is a score or a probability "
        "cannot be known",
        fix="accuracy_thresh(0.0) for scores, as with BCEWithLogitsLoss; accuracy_thresh(0.5) for "
        "probabilities",
        entry="metric-inputs",
    )


def _other_shape(preds: Any, targs: Any, metric: str, wanted: str, fix: str) -> str:
    return explain(
        f"{metric} cannot compare predictions and targets of these shapes",
        got=f"predictions {_seen(preds)}, targets {_seen(targs)}",
        wanted=wanted,
        fix=fix,
        entry="metric-inputs",
    )


def _is_float(a: Tensor | np.ndarray) -> bool:
    return a.is_floating_point() if isinstance(a, Tensor) else a.dtype.kind == "f"


def _seen(a: Tensor | np.ndarray) -> str:
    return f"{str(a.dtype).removeprefix('torch.')} of shape {tuple(a.shape)}"
