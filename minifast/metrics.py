"""How well it went: functions `(preds, targs) -> number`.

A metric is any such function. Most are means over rows, like `accuracy`: `fit` averages them over
the batches, each by its number of rows. One that is not a mean, like `f1`, says so with
`@whole_epoch` and is called once, with all rows. An object with `reset()`, `update(preds, targs)`
and `compute()` is a metric too.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol, TypeVar, cast

import numpy as np
import torch
from torch import Tensor

from .batches import cloned, concat
from .core import explain, to_np
from .losses import called_by_batch, declared_by, original, weighted, weighted_by
from .metric_inputs import (
    actual_classes,
    check_probabilities,
    class_axis,
    class_labels,
    counted,
    probability_of_class_1,
    two_classes,
    zero_or_one,
)

# Without confusion_matrix and probabilities: a star import must not hide scikit-learn's, whose
# arguments go the other way.
__all__ = [
    "accuracy",
    "accuracy_multi",
    "accuracy_multi_np",
    "accuracy_np",
    "accuracy_thresh",
    "f1",
    "f1_np",
    "fbeta",
    "fbeta_np",
    "precision",
    "precision_np",
    "recall",
    "recall_np",
    "weighted_by",
    "whole_epoch",
]

Function = TypeVar("Function", bound=Callable[..., Any])
EPSILON = 1e-8


def whole_epoch(metric: Function) -> Function:
    """Marks a function of `(preds, targs)` as no mean over rows.

    `fit` then calls it once an epoch, with the predictions and targets of all rows, on the CPU.

    Examples:
        >>> @whole_epoch
        ... def rmse(preds, targs):
        ...     return ((preds - targs) ** 2).mean().sqrt()
    """
    metric.whole_epoch = True  # type: ignore[attr-defined]
    return metric


# ---- metrics of classes ------------------------------------------------------------------


def accuracy(preds: Tensor, targs: Tensor) -> Tensor:
    """Returns the share of the labels that have the largest score.

    A label that is not one of the classes 0 to c - 1, such as the -100 of `ignore_index`, counts
    neither as right nor as wrong.

    Args:
        preds: Scores of c classes, c of at least 2, `(n, c)` or `(n, c, ...)`: probabilities, their
            logarithms, or any other.
        targs: Classes, int64, `(n,)` or `(n, ...)`; a column `(n, 1)` is taken as `(n,)`. One-hot
            or soft labels in the shape of `preds`: their largest entry is the class.

    Returns:
        0-dim tensor in 0..1, on the device of `preds`; nan if no label is a class.

    Raises:
        ValueError: for one output, which has no largest score (see `accuracy_thresh`), for rows of
            several classes, and for shapes that do not belong together.

    Examples:
        >>> accuracy(torch.tensor([[0.9, 0.1], [0.2, 0.8]]), torch.tensor([0, 0])).item()
        0.5
    """
    actual = actual_classes(preds, targs, "accuracy")
    hits = preds.argmax(class_axis(preds)) == actual  # never of a label that is not a class
    return cast(Tensor, _exact(hits).sum() / counted(preds, actual).sum())


def _labels_counted(preds: Tensor, targs: Tensor) -> Tensor:
    """What `accuracy` divides by: the weight of its value for a batch."""
    return cast(Tensor, counted(preds, actual_classes(preds, targs, "accuracy")).sum())


accuracy.divisor = _labels_counted  # type: ignore[attr-defined]


def accuracy_np(preds: np.ndarray, targs: np.ndarray) -> float:
    """`accuracy` of NumPy arrays.

    Examples:
        >>> accuracy_np(np.array([[0.9, 0.1], [0.2, 0.8]]), np.array([0, 0]))
        0.5
    """
    preds, targs = np.asarray(to_np(preds)), np.asarray(to_np(targs))
    actual = actual_classes(preds, targs, "accuracy_np")
    hits = preds.argmax(class_axis(preds)) == actual
    n = int(counted(preds, actual).sum())
    return int(hits.sum()) / n if n else float("nan")


accuracy_np.divisor = _labels_counted  # type: ignore[attr-defined]


def accuracy_multi(preds: Tensor, targs: Tensor, thresh: float) -> Tensor:
    """Returns the share of right entries where a row may have several classes.

    Args:
        preds: One number for each row and class, `(n, c)`; above `thresh` means 1. Of one class
            `(n, 1)` or `(n,)`.
        targs: 0 or 1, in the same shape; a column `(n, 1)` and a row `(n,)` are the same labels.
        thresh: In the unit of `preds`: 0.0 for scores, as `nn.BCEWithLogitsLoss` takes them, 0.5
            for probabilities.

    Raises:
        ValueError: for other shapes, and for targets other than 0 and 1.

    Examples:
        >>> accuracy_multi(torch.tensor([[0.9, 0.1]]), torch.tensor([[1, 1]]), 0.5).item()
        0.5
    """
    return _exact((preds > thresh) == zero_or_one(preds, targs, "accuracy_multi")).mean()


def accuracy_multi_np(preds: np.ndarray, targs: np.ndarray, thresh: float) -> float:
    """`accuracy_multi` of NumPy arrays."""
    preds, targs = np.asarray(to_np(preds)), np.asarray(to_np(targs))
    return float(((preds > thresh) == zero_or_one(preds, targs, "accuracy_multi_np")).mean())


def accuracy_thresh(thresh: float) -> Callable[[Tensor, Tensor], Tensor]:
    """Returns `accuracy_multi` with this threshold, as a metric for `fit`.

    Examples:
        >>> accuracy_thresh(0.5).__name__
        'accuracy_thresh_0.5'
    """

    def metric(preds: Tensor, targs: Tensor) -> Tensor:
        return accuracy_multi(preds, targs, thresh)

    metric.__name__ = f"accuracy_thresh_{thresh:g}"
    return metric


def _exact(hits: Tensor) -> Tensor:
    """Booleans as float64 where the device has it, so that 0.838 is not 0.83799999."""
    return hits.to(torch.float32 if hits.device.type == "mps" else torch.float64)


# ---- probabilities and counts of classes -------------------------------------------------


def probabilities(preds: Any) -> np.ndarray:
    """A net's output as probabilities of the classes.

    Args:
        preds: `(n, c)`: probabilities are taken as they are (none below 0, each row adds up to 1);
            of all else, such as scores or logarithms of probabilities, the softmax. `(n,)` or
            `(n, 1)`: of class 1, and if one is not in 0..1, its sigmoid.

    Returns:
        float64, `(n, c)`, with two columns for `(n,)` and `(n, 1)`.

    Raises:
        ValueError: for any other shape, and for integers `(n,)` that are classes already.

    Examples:
        >>> probabilities(torch.tensor([[0.25, 0.75], [0.5, 0.5]]).log())
        array([[0.25, 0.75],
               [0.5 , 0.5 ]])
    """
    p = np.asarray(to_np(preds))
    one = p.ndim == 1 or (p.ndim == 2 and p.shape[1] == 1)
    inside = bool(((p >= 0) & (p <= 1)).all())
    if p.ndim not in (1, 2) or (one and p.dtype.kind in "iu" and not inside):
        raise ValueError(
            explain(
                "preds must be a net's output for classes",
                got=f"{p.dtype} of shape {p.shape}",
                wanted="(n, c): a number for each row and class",
                fix="preds = predict(net, md.val_dl)",
                entry="metrics",
            )
        )
    p = p.astype(np.float64)
    if one:
        p = p.reshape(-1)
        p = p if inside else 1 / (1 + np.exp(-p))
        return np.stack([1 - p, p], axis=1)
    if (p >= 0).all() and np.allclose(p.sum(axis=1), 1, atol=1e-3):
        return p
    p = np.exp(p - p.max(axis=1, keepdims=True))
    return cast(np.ndarray, p / p.sum(axis=1, keepdims=True))


def confusion_matrix(preds: Any, targs: Any) -> np.ndarray:
    """Counts how often each class was predicted as each.

    Args:
        preds: The net's output, `(n, c)`, or the predicted classes, integers `(n,)`.
        targs: Classes, integers `(n,)` or in a column `(n, 1)`.

    Returns:
        int64, `(c, c)`: in row i and column j how many rows of class i were predicted as class j.

    Raises:
        ValueError: for targets that are not classes, or are not as many as the predictions.

    Examples:
        >>> confusion_matrix([[0.9, 0.1], [0.2, 0.8], [0.4, 0.6]], [0, 0, 1])
        array([[1, 1],
               [0, 1]])
    """
    preds = np.asarray(to_np(preds))
    one = preds.ndim == 1 or preds.shape[1] == 1
    c = 0
    if one and preds.dtype.kind in "iub":
        said = class_labels(preds, name="preds")
        actual = class_labels(targs, len(said))
    else:
        chance = probabilities(preds)
        said, c = chance.argmax(axis=1), chance.shape[1]
        actual = class_labels(targs, len(said), 2 if one else None)
    c = max(c, int(said.max(initial=-1)) + 1, int(actual.max(initial=-1)) + 1)
    return np.bincount(actual * c + said, minlength=c * c).reshape(c, c)


# ---- precision and recall of two classes -------------------------------------------------


@whole_epoch
def recall(
    log_preds: Tensor, targs: Tensor, thresh: float = 0.5, epsilon: float = EPSILON
) -> Tensor:
    """Returns the share of the rows of class 1 that are predicted as class 1.

    Args:
        log_preds: Log-probabilities of the two classes, `(n, 2)`; or probabilities, or scores, of
            which the softmax is taken.
        targs: 0 or 1, `(n,)` or in a column `(n, 1)`.
        thresh: A row counts as class 1 when its probability is above it.
        epsilon: Keeps the share defined where no row is of class 1.

    Raises:
        ValueError: unless there are two outputs and every label is 0 or 1.

    Examples:
        >>> log_preds = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]]).log()
        >>> recall(log_preds, torch.tensor([0, 1, 1]))
        tensor(0.5000)
    """
    return cast(Tensor, _recall(*_two_classes(log_preds, targs, thresh, "recall"), epsilon))


@whole_epoch
def precision(
    log_preds: Tensor, targs: Tensor, thresh: float = 0.5, epsilon: float = EPSILON
) -> Tensor:
    """Returns the share of the rows predicted as class 1 that are; arguments as for `recall`."""
    return cast(Tensor, _precision(*_two_classes(log_preds, targs, thresh, "precision"), epsilon))


@whole_epoch
def fbeta(
    log_preds: Tensor,
    targs: Tensor,
    beta: float,
    thresh: float = 0.5,
    epsilon: float = EPSILON,
) -> Tensor:
    """The weighted harmonic mean of precision p and recall r: `(1 + b²) p r / (b² p + r)`.

    Args:
        log_preds: Log-probabilities, probabilities or scores of the two classes, `(n, 2)`.
        targs: 0 or 1, `(n,)` or in a column `(n, 1)`.
        beta: Above 1 recall counts more, below 1 precision.
        thresh: A row counts as class 1 when its probability is above it.
        epsilon: Keeps the shares defined where there is nothing to share.

    Raises:
        ValueError: if `beta` is not above 0; unless there are two outputs and every label is 0 or
            1.
    """
    both = _two_classes(log_preds, targs, thresh, "fbeta")
    p, r = _precision(*both, epsilon), _recall(*both, epsilon)
    return cast(Tensor, _fbeta(p, r, beta, epsilon))


@whole_epoch
def f1(log_preds: Tensor, targs: Tensor, thresh: float = 0.5, epsilon: float = EPSILON) -> Tensor:
    """`fbeta` with beta 1: precision and recall count the same."""
    both = _two_classes(log_preds, targs, thresh, "f1")
    p, r = _precision(*both, epsilon), _recall(*both, epsilon)
    return cast(Tensor, _fbeta(p, r, 1, epsilon))


def _check_all_rows(metric: str) -> None:
    """Refuses to be called batch by batch, as from a lambda that is not marked itself."""
    if called_by_batch():
        raise ValueError(
            explain(
                f"{metric} is not a mean over batches, and a function calls it for each batch",
                got=f"a metric that calls {metric}, without @whole_epoch",
                wanted="one call an epoch, with the predictions and targets of all rows",
                fix=f"whole_epoch(lambda preds, targs: {metric}(...)), from minifast.metrics",
                entry="metrics",
            )
        )


def _two_classes(preds: Tensor, targs: Tensor, thresh: float, metric: str) -> tuple[Any, Any]:
    """Which rows are predicted as class 1, and which are of it."""
    _check_all_rows(metric)
    actual = two_classes(preds, targs, metric)
    return probability_of_class_1(preds) > thresh, actual


# ---- the same for several classes a row, NumPy, probabilities ----------------------------


@whole_epoch
def recall_np(
    preds: np.ndarray, targs: np.ndarray, thresh: float = 0.5, epsilon: float = EPSILON
) -> float:
    """Returns the share of the entries that are 1 in `targs` with a probability above `thresh`.

    Args:
        preds: Probabilities, `(n, c)`; of one class `(n, 1)` or `(n,)`.
        targs: 0 or 1, in the same shape.
        thresh: An entry counts as 1 when its probability is above it. For scores, their own
            threshold: 0.0.
        epsilon: Keeps the share defined where no entry is 1.

    Raises:
        ValueError: for other shapes, targets other than 0 and 1, and numbers outside 0..1 with a
            threshold between 0 and 1.

    Examples:
        >>> round(recall_np(np.array([[0.9, 0.1], [0.8, 0.3]]), np.array([[1, 1], [1, 0]])), 4)
        0.6667
    """
    return float(_recall(*_entries(preds, targs, thresh, "recall_np"), epsilon))


@whole_epoch
def precision_np(
    preds: np.ndarray, targs: np.ndarray, thresh: float = 0.5, epsilon: float = EPSILON
) -> float:
    """Share of the entries above `thresh` that are 1 in `targs`; arguments as for `recall_np`."""
    return float(_precision(*_entries(preds, targs, thresh, "precision_np"), epsilon))


@whole_epoch
def fbeta_np(
    preds: np.ndarray,
    targs: np.ndarray,
    beta: float,
    thresh: float = 0.5,
    epsilon: float = EPSILON,
) -> float:
    """`fbeta` over all entries of probabilities and targets, each `(n, c)`; see `recall_np`."""
    both = _entries(preds, targs, thresh, "fbeta_np")
    p, r = _precision(*both, epsilon), _recall(*both, epsilon)
    return float(_fbeta(p, r, beta, epsilon))


@whole_epoch
def f1_np(
    preds: np.ndarray, targs: np.ndarray, thresh: float = 0.5, epsilon: float = EPSILON
) -> float:
    """`fbeta_np` with beta 1."""
    return fbeta_np(preds, targs, 1, thresh, epsilon)


def _entries(preds: Any, targs: Any, thresh: float, metric: str) -> tuple[Any, Any]:
    """Which entries are predicted to be 1, and which are."""
    _check_all_rows(metric)
    preds, targs = np.asarray(to_np(preds)), np.asarray(to_np(targs))
    actual = zero_or_one(preds, targs, metric)
    check_probabilities(preds, thresh, metric)
    return preds > thresh, actual


def _recall(found: Any, actual: Any, epsilon: float) -> Any:
    return (found & actual).sum() / (actual.sum() + epsilon)


def _precision(found: Any, actual: Any, epsilon: float) -> Any:
    return (found & actual).sum() / (found.sum() + epsilon)


def _fbeta(p: Any, r: Any, beta: float, epsilon: float) -> Any:
    if beta <= 0:
        raise ValueError(f"beta must be above 0, not {beta}: f1 is fbeta with beta=1")
    return (1 + beta**2) * p * r / (beta**2 * p + r + epsilon)


# ---- how fit computes them ---------------------------------------------------------------


class Meter(Protocol):
    """A metric over a whole epoch: what every kind of metric is turned into."""

    def update(self, preds: Any, targs: Any) -> object:
        """Takes a batch."""

    def compute(self) -> Any:
        """The value over all batches taken."""


class WeightedMean:
    """The mean of a function's values over batches, each with the weight of what it divided by.

    That is what `minifast.losses` reads from the call. If it is unknown for one of the batches,
    each batch counts by its number of rows. Values stay tensors where they are tensors, so that
    nothing waits for a GPU before `compute`.

    Examples:
        >>> mean = WeightedMean(accuracy)
        >>> mean.add(1.0, 3), mean.add(0.0, 1)
        (None, None)
        >>> mean.compute()
        0.75
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = weighted(function)
        self.values: list[Any] = []
        self.divisors: list[Any] = []
        self.rows: list[int] = []

    def update(self, preds: Any, targs: Any, rows: int | None = None) -> None:
        """Adds a batch; `rows` is its number of rows, if the targets alone do not tell."""
        value = self.function(preds, targs)
        self.add(value, self.function.rows if rows is None else rows, self.function.divisor)

    def add(self, value: Any, rows: int, divisor: float | Tensor | None = None) -> None:
        """Adds the value of a batch with so many rows, which divided by `divisor`.

        Raises:
            TypeError: if the value is not one number.
        """
        check_number(value)
        self.values.append(value.detach() if isinstance(value, Tensor) else value)
        self.rows.append(rows)
        self.divisors.append(divisor)

    def totals(self) -> tuple[float, float, float, float, int]:
        """Sums to average with: weighted values and weights, by divisors and by rows; and how many
        batches have no known divisor. Sums of several processes add up."""
        values = _numbers(self.values)
        unknown = sum(divisor is None for divisor in self.divisors)
        divisors = [0.0] * len(values) if unknown else _numbers(self.divisors)
        sums = [
            part
            for weights in (divisors, [float(n) for n in self.rows])
            # A batch that counts nothing, such as one whose labels are all ignored, may be nan.
            for part in (
                math.fsum(v * w for v, w in zip(values, weights, strict=True) if w),
                math.fsum(weights),
            )
        ]
        return sums[0], sums[1], sums[2], sums[3], unknown

    @staticmethod
    def mean_of(totals: Sequence[float]) -> float:
        """The mean that `totals`, or their sums over processes, stand for; nan without a batch."""
        by_divisor, divisors, by_rows, rows, unknown = totals
        total, weight = (by_rows, rows) if unknown else (by_divisor, divisors)
        return total / weight if weight else float("nan")

    def compute(self) -> float:
        """The mean so far; nan if there was no batch."""
        return self.mean_of(self.totals())


def check_number(value: Any) -> None:
    """Refuses what a loss or metric must not return: anything except one real number.

    Raises:
        TypeError: also for a text such as "0.5", which Python's float() would take.

    Examples:
        >>> check_number(torch.ones(1)), check_number(np.float32(0.5))
        (None, None)
    """
    if _is_number(value):
        return
    shape = f" of shape {tuple(value.shape)}" if hasattr(value, "shape") else ""
    names = f" with {', '.join(map(str, value))}" if isinstance(value, Mapping) else ""
    raise TypeError(
        explain(
            "a loss or metric must return one number",
            got=f"{type(value).__name__}{shape}{names}",
            wanted="a number, or a tensor or array with one element",
            fix="return value.mean() or one of its entries; a metric for each of several numbers; "
            "of torchmetrics average='macro' in place of average=None, and each metric of a "
            "MetricCollection by itself; a loss with reduction='mean'",
            entry="metrics",
        )
    )


def _is_number(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.numel() == 1 and not value.is_complex()
    if isinstance(value, np.ndarray):
        return bool(value.size == 1 and value.dtype.kind in "biuf")
    if isinstance(value, str | bytes | complex | np.complexfloating):
        return False
    try:
        float(value)
    except (TypeError, ValueError, RuntimeError):
        return False
    return True


def _numbers(values: list[Any]) -> list[float]:
    """Python floats; those of tensors on a GPU are read with one synchronization."""
    if values and all(isinstance(value, Tensor) for value in values):
        found: list[float] = torch.stack([v.reshape(()).double() for v in values]).tolist()
        return found
    return list(map(as_float, values))


def as_float(value: Any) -> float:
    """What `check_number` has let pass, as Python's number."""
    return float(value.item() if hasattr(value, "item") else value)


class EpochMetric:
    """A function's value on all rows at once."""

    def __init__(self, metric: Callable[..., Any]) -> None:
        self.metric = metric
        self.preds: list[Any] = []
        self.targs: list[Any] = []

    def update(self, preds: Any, targs: Any) -> None:
        """Adds a copy of a batch: a net may write its outputs into one buffer."""
        cpu = torch.device("cpu")
        self.preds.append(cloned(preds, cpu))
        self.targs.append(cloned(targs, cpu))

    def compute(self) -> Any:
        """The value over all batches."""
        return self.metric(concat(self.preds), concat(self.targs))


def meter(metric: Any) -> Meter:
    """A fresh meter of any kind of metric."""
    if is_meter(metric):
        metric.reset()
        return cast(Meter, metric)
    return EpochMetric(metric) if declared_by(metric, "whole_epoch") else WeightedMean(metric)


def is_meter(metric: Any) -> bool:
    """Whether the metric keeps count by itself: `reset`, `update`, `compute`."""
    return all(callable(getattr(metric, name, None)) for name in ("reset", "update", "compute"))


def metric_names(metrics: Iterable[Any]) -> list[str]:
    """A column's name for each metric, no two the same.

    Examples:
        >>> metric_names([accuracy, functools.partial(fbeta, beta=2), lambda p, t: 0, accuracy])
        ['accuracy', 'fbeta', 'lambda', 'accuracy_2']
    """
    names: list[str] = []
    for metric in map(original, metrics):
        while isinstance(metric, functools.partial):
            metric = metric.func
        name = getattr(metric, "__name__", type(metric).__name__).strip("<>")
        same = sum(1 for n in names if n == name or re.fullmatch(rf"{re.escape(name)}_\d+", n))
        names.append(f"{name}_{same + 1}" if same else name)
    return names
