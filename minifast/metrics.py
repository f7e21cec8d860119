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
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol, TypeVar, cast

import numpy as np
import torch
from torch import Tensor

from .batches import concat, map_structure
from .core import explain, to_np
from .losses import original, weighted, weighted_by

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
    """Share of the rows whose largest score is at the target.

    Args:
        preds: Scores, `(n, c)`: probabilities, their logarithms, or any other.
        targs: Classes, int64, `(n,)`.

    Returns:
        0-dim tensor in 0..1, on the device of `preds`.

    Examples:
        >>> accuracy(torch.tensor([[0.9, 0.1], [0.2, 0.8]]), torch.tensor([0, 0])).item()
        0.5
    """
    return _share(preds.argmax(dim=1) == targs)


def accuracy_np(preds: np.ndarray, targs: np.ndarray) -> float:
    """`accuracy` of numpy arrays.

    Examples:
        >>> accuracy_np(np.array([[0.9, 0.1], [0.2, 0.8]]), np.array([0, 0]))
        0.5
    """
    return float((np.argmax(preds, axis=1) == targs).mean())


def accuracy_multi(preds: Tensor, targs: Tensor, thresh: float) -> Tensor:
    """Share of right entries where a row may have several classes.

    Args:
        preds: Scores, `(n, c)`; above `thresh` counts as yes.
        targs: 0 or 1, `(n, c)`.
        thresh: The bound.

    Examples:
        >>> accuracy_multi(torch.tensor([[0.9, 0.1]]), torch.tensor([[1, 1]]), 0.5).item()
        0.5
    """
    return _share((preds > thresh) == (targs > 0))


def accuracy_multi_np(preds: np.ndarray, targs: np.ndarray, thresh: float) -> float:
    """`accuracy_multi` of numpy arrays."""
    return float(((preds > thresh) == (targs > 0)).mean())


def accuracy_thresh(thresh: float) -> Callable[[Tensor, Tensor], Tensor]:
    """`accuracy_multi` with this threshold, as a metric for `fit`.

    Examples:
        >>> accuracy_thresh(0.5).__name__
        'accuracy_thresh_0.5'
    """

    def metric(preds: Tensor, targs: Tensor) -> Tensor:
        return accuracy_multi(preds, targs, thresh)

    metric.__name__ = f"accuracy_thresh_{thresh:g}"
    return metric


def _share(hits: Tensor) -> Tensor:
    """The mean of truth values, in float64 where there is one, so that 0.838 is not 0.83799999."""
    return hits.to(torch.float32 if hits.device.type == "mps" else torch.float64).mean()


# ---- what predictions of classes say ------------------------------------------------------


def probabilities(preds: Any) -> np.ndarray:
    """A net's output as probabilities of the classes.

    Args:
        preds: `(n, c)`: probabilities are taken as they are (none below 0, each row adds up to 1);
            of all else, such as scores or logarithms of probabilities, the softmax. `(n,)` or
            `(n, 1)`: of class 1, and if one is not in 0..1, its sigmoid.

    Returns:
        float64, `(n, c)`, with two columns for `(n,)` and `(n, 1)`.

    Raises:
        ValueError: for any other shape.

    Examples:
        >>> probabilities(torch.tensor([[0.25, 0.75], [0.5, 0.5]]).log())
        array([[0.25, 0.75],
               [0.5 , 0.5 ]])
    """
    p = np.asarray(to_np(preds), dtype=np.float64)
    if p.ndim == 1 or (p.ndim == 2 and p.shape[1] == 1):
        p = p.reshape(-1)
        p = p if ((p >= 0) & (p <= 1)).all() else 1 / (1 + np.exp(-p))
        return np.stack([1 - p, p], axis=1)
    if p.ndim != 2:
        raise ValueError(
            explain(
                "preds are not predictions of classes",
                got=f"shape {p.shape}",
                wanted="(n, c): a number for each row and class",
                fix="preds = predict(net, md.val_dl)",
                entry="metrics",
            )
        )
    if (p >= 0).all() and np.allclose(p.sum(axis=1), 1, atol=1e-3):
        return p
    p = np.exp(p - p.max(axis=1, keepdims=True))
    return cast(np.ndarray, p / p.sum(axis=1, keepdims=True))


def confusion_matrix(preds: Any, targs: Any) -> np.ndarray:
    """How often each class was taken for each.

    Args:
        preds: The net's output, `(n, c)`, or the classes it says, whole numbers `(n,)`.
        targs: Classes, whole numbers `(n,)`.

    Returns:
        int64, `(c, c)`: in row i and column j how many rows of class i were taken for class j.

    Examples:
        >>> confusion_matrix([[0.9, 0.1], [0.2, 0.8], [0.4, 0.6]], [0, 0, 1])
        array([[1, 1],
               [0, 1]])
    """
    preds, targs = np.asarray(to_np(preds)), np.asarray(to_np(targs))
    said = preds if preds.ndim == 1 and preds.dtype.kind in "iu" else None
    c = 0
    if said is None:
        chance = probabilities(preds)
        said, c = chance.argmax(axis=1), chance.shape[1]
    c = max(c, int(said.max(initial=-1)) + 1, int(targs.max(initial=-1)) + 1)
    return np.bincount(targs.astype(np.int64) * c + said, minlength=c * c).reshape(c, c)


# ---- precision and recall: two classes, log-probabilities --------------------------------


@whole_epoch
def recall(
    log_preds: Tensor, targs: Tensor, thresh: float = 0.5, epsilon: float = EPSILON
) -> Tensor:
    """Share of the rows of class 1 that are found.

    Args:
        log_preds: Log-probabilities of the two classes, `(n, 2)`.
        targs: 0 or 1, `(n,)`.
        thresh: A row counts as class 1 when its probability is above it.
        epsilon: Keeps the share defined where no row is of class 1.

    Examples:
        >>> log_preds = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]]).log()
        >>> recall(log_preds, torch.tensor([0, 1, 1]))
        tensor(0.5000)
    """
    return cast(Tensor, _recall(log_preds[:, 1].exp() > thresh, targs > 0, epsilon))


@whole_epoch
def precision(
    log_preds: Tensor, targs: Tensor, thresh: float = 0.5, epsilon: float = EPSILON
) -> Tensor:
    """Share of the rows taken for class 1 that are of class 1; arguments as for `recall`."""
    return cast(Tensor, _precision(log_preds[:, 1].exp() > thresh, targs > 0, epsilon))


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
        log_preds: Log-probabilities of the two classes, `(n, 2)`.
        targs: 0 or 1, `(n,)`.
        beta: Above 1 recall counts more, below 1 precision.
        thresh: A row counts as class 1 when its probability is above it.
        epsilon: Keeps the shares defined where there is nothing to share.

    Raises:
        ValueError: if `beta` is not above 0.
    """
    found, actual = log_preds[:, 1].exp() > thresh, targs > 0
    p, r = _precision(found, actual, epsilon), _recall(found, actual, epsilon)
    return cast(Tensor, _fbeta(p, r, beta, epsilon))


@whole_epoch
def f1(log_preds: Tensor, targs: Tensor, thresh: float = 0.5, epsilon: float = EPSILON) -> Tensor:
    """`fbeta` with beta 1: precision and recall count the same."""
    return fbeta(log_preds, targs, 1, thresh, epsilon)


# ---- the same for several classes a row, numpy, probabilities ----------------------------


def recall_np(
    preds: np.ndarray, targs: np.ndarray, thresh: float = 0.5, epsilon: float = EPSILON
) -> float:
    """Share of the entries that are 1 in `targs` with a probability above `thresh`.

    Examples:
        >>> round(recall_np(np.array([[0.9, 0.1], [0.8, 0.3]]), np.array([[1, 1], [1, 0]])), 4)
        0.6667
    """
    return float(_recall(preds > thresh, targs > 0, epsilon))


def precision_np(
    preds: np.ndarray, targs: np.ndarray, thresh: float = 0.5, epsilon: float = EPSILON
) -> float:
    """Share of the entries with a probability above `thresh` that are 1 in `targs`."""
    return float(_precision(preds > thresh, targs > 0, epsilon))


def fbeta_np(
    preds: np.ndarray,
    targs: np.ndarray,
    beta: float,
    thresh: float = 0.5,
    epsilon: float = EPSILON,
) -> float:
    """`fbeta` over all entries of probabilities and targets, each `(n, c)`."""
    p = precision_np(preds, targs, thresh, epsilon)
    return float(_fbeta(p, recall_np(preds, targs, thresh, epsilon), beta, epsilon))


def f1_np(
    preds: np.ndarray, targs: np.ndarray, thresh: float = 0.5, epsilon: float = EPSILON
) -> float:
    """`fbeta_np` with beta 1."""
    return fbeta_np(preds, targs, 1, thresh, epsilon)


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
        """Adds the value of a batch with so many rows, which divided by `divisor`."""
        self.values.append(value.detach() if isinstance(value, Tensor) else value)
        self.rows.append(rows)
        self.divisors.append(divisor)

    def totals(self) -> tuple[float, float, float, float, int]:
        """Sums to average with: weighted values and weights, by divisors and by rows; and how many
        batches have no known divisor. Sums of several processes add up."""
        values = _numbers(self.values)
        unknown = self.divisors.count(None)
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


def _numbers(values: list[Any]) -> list[float]:
    """Python floats; those of tensors on a GPU are read with one synchronization."""
    if values and all(isinstance(value, Tensor) for value in values):
        found: list[float] = torch.stack([v.reshape(()).double() for v in values]).tolist()
        return found
    return [float(value) for value in values]


class EpochMetric:
    """A function's value on all rows at once."""

    def __init__(self, metric: Callable[..., Any]) -> None:
        self.metric = metric
        self.preds: list[Any] = []
        self.targs: list[Any] = []

    def update(self, preds: Any, targs: Any) -> None:
        """Adds a copy of a batch: a net may write its outputs into one buffer."""
        self.preds.append(map_structure(_to_cpu, preds))
        self.targs.append(map_structure(_to_cpu, targs))

    def compute(self) -> float:
        """The value over all batches."""
        return float(self.metric(concat(self.preds), concat(self.targs)))


def _to_cpu(leaf: Any) -> Any:
    return leaf.detach().to("cpu", copy=True) if isinstance(leaf, Tensor) else leaf


def meter(metric: Any) -> Meter:
    """A fresh meter of any kind of metric."""
    if is_meter(metric):
        metric.reset()
        return cast(Meter, metric)
    return EpochMetric(metric) if getattr(metric, "whole_epoch", False) else WeightedMean(metric)


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
