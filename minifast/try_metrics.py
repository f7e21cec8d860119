"""The metrics, tried on the first batch: a mistake in one is found before an epoch is over."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch

from .batches import cloned
from .callback import Run
from .core import explain
from .metrics import is_meter, metric_names
from .mistakes import OURS

# Errors that more rows would not change: a misspelled name, an argument of the wrong type.
STRUCTURAL = TypeError, AttributeError, NameError, ImportError, NotImplementedError


@torch.no_grad()
def try_metrics(run: Run) -> None:
    """Calls every function among the metrics with copies of the first batch's predictions.

    A metric of a whole epoch may fail on so few rows, and then training continues: unless the
    error is one of this package or one that more rows would not change. An object with `update`
    is not tried, as it would keep the batch.

    Raises:
        TypeError: for a metric that fails, or does not return a number.
        ValueError: for a name that is a column already; and an error of this package, with the
            metric's name.
    """
    for metric, name in zip(run.metrics, metric_names(run.metrics), strict=True):
        if name in ("epoch", "trn_loss", "val_loss"):
            raise ValueError(_problem(name, "its name, which is a column of the table already"))
        if is_meter(metric):
            continue
        whole = getattr(metric, "whole_epoch", False)
        place = torch.device("cpu") if whole else None
        preds, targs = cloned(run.preds, place), cloned(run.y, place)
        try:
            value = _quietly(metric, preds, targs) if whole else metric(preds, targs)
        except Exception as error:
            _explain(error, name, whole)
            continue
        if not _is_number(value, whole):
            shape = f" of shape {tuple(value.shape)}" if hasattr(value, "shape") else ""
            raise TypeError(_problem(name, f"{type(value).__name__}{shape}"))


def _quietly(metric: Any, preds: Any, targs: Any) -> Any:
    """The value without warnings, such as those of scikit-learn for too few rows."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return metric(preds, targs)


def _explain(error: Exception, name: str, whole: bool) -> None:
    """Raises the error with the metric's name, if it ends training."""
    text = str(error)
    if OURS in text:
        text = text if text.startswith(f"{name} ") else f"the metric {name}: {text}"
        raise type(error)(text) from error
    more_rows_may_help = not isinstance(error, STRUCTURAL) or isinstance(error, UnboundLocalError)
    if not (whole and more_rows_may_help):
        raise TypeError(_problem(name, f"{type(error).__name__}: {error}")) from error


def _is_number(value: Any, whole: bool) -> bool:
    if isinstance(value, int | float | np.number) or getattr(value, "shape", 1) == ():
        return True
    if not whole or isinstance(value, str | bytes):
        return False
    try:
        float(value)
    except (TypeError, ValueError, RuntimeError):
        return False
    return True


def _problem(name: str, got: str) -> str:
    return explain(
        f"the metric {name} cannot be computed on the first batch",
        got=got,
        wanted="a function (preds, targs) -> number, which is called with tensors of a batch",
        fix="return a number, such as (preds.argmax(1) == targs).float().mean()",
        entry="metrics",
    )
