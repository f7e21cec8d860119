"""Validation, tried before the first step: a mistake in it is found before an epoch is over."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from .batches import cloned
from .callback import Run, hears
from .checks import no_batch
from .core import device_of, explain
from .evaluation import (
    checked_structure,
    forward,
    loss_in_eval_mode,
    numbered,
    stepper_forward,
    update_loss,
)
from .losses import declared_by
from .metrics import EpochMetric, WeightedMean, check_number, is_meter, metric_names
from .mistakes import OURS
from .rng import random_state, set_random_state
from .sharded import is_sharded
from .single_row_batch import copied_without_hooks
from .stepper import Stepper, split_batch
from .validation_batches import batches_to_try

# Errors that more rows would not change: a misspelled name, an argument of the wrong type.
STRUCTURAL = TypeError, AttributeError, NameError, ImportError, NotImplementedError
NO_MEMORY = MemoryError, torch.OutOfMemoryError

Pairs = list[tuple[Any, Any]]  # predictions and targets of batches


def try_metrics(run: Run) -> None:
    """Validates two batches with copies of net, loss and metrics.

    Those are batches of `val_dl` if they can be had without changing it: see `batches_to_try`.
    Otherwise the metrics get the predictions of the first batch to train on. Random generators are
    as before afterwards.

    A metric object and a metric of a whole epoch may fail to compute a value of so few rows, and
    then training continues: unless the error is one of this package or one that more rows would not
    change.

    Raises:
        TypeError: for a metric that fails, or does not return a number.
        ValueError: for a name that is a column already; and an error of this package, with the
            metric's name.
        Exception: what the loader, the net or the loss raises for a batch of `val_dl`.
    """
    _check_names(run)
    with _unnoticed(run):
        pairs = None if _may_change_validation(run) else _validated(run)
        where = "of val_dl" if pairs else "to train on"
        _try(run.metrics, pairs or [(cloned(run.preds), cloned(run.y))], where)


def _check_names(run: Run) -> None:
    for name in metric_names(run.metrics):
        if name in ("epoch", "trn_loss", "val_loss"):
            raise ValueError(
                explain(
                    "a metric must have a name that is not a column of the table already",
                    got=name,
                    wanted="a name other than epoch, trn_loss and val_loss",
                    fix=f"def my_{name}(preds, targs): ..., or metric.__name__ = 'my_{name}'",
                    entry="metrics",
                )
            )


@contextmanager
def _unnoticed(run: Run) -> Iterator[None]:
    """Without gradients and warnings; random generators are as before afterwards."""
    state = random_state(run.data.val_dl)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # validation itself will show them
            yield
    finally:
        set_random_state(state, run.data.val_dl)


# ---- net and loss ------------------------------------------------------------------------


def _may_change_validation(run: Run) -> bool:
    """Whether a callback of another package may change what validation uses."""
    return any(
        hears(callback, "on_validate_begin") and not _is_own(callback) for callback in run.callbacks
    )


def _is_own(callback: Any) -> bool:
    return type(callback).__module__.startswith(f"{__package__}.plugins.")


def _validated(run: Run) -> Pairs | None:
    """Predictions and targets of some batches of `val_dl`; None if they cannot be had."""
    dl = run.data.val_dl
    if dl is None or run.team is not None or (copies := _copies(run)) is None:
        return None
    net, crit, stepper = copies
    pairs: Pairs = []
    loss = WeightedMean(crit)
    try:
        with numbered("the validation that is tried before the first step") as place:
            batches = batches_to_try(dl)
            if batches == [] and not run.callbacks:
                raise ValueError(no_batch("val_dl"))
            with loss_in_eval_mode(crit):
                for place.batch, batch in batches or ():
                    x, y = split_batch(checked_structure(batch), device_of(net))
                    preds = forward(stepper, net, x)
                    update_loss(loss, False, net, x, y, preds, None)
                    pairs.append((preds, y))
    except NO_MEMORY:  # there may be more of it when the graph of the first batch is gone
        return None
    return pairs or None


def _copies(run: Run) -> tuple[nn.Module, Any, Stepper] | None:
    """Net, loss and stepper, copied; None if they cannot be."""
    net = getattr(run.net, "_orig_mod", run.net)
    # A `forward` set on an object may be of the object that was copied; a compiled part would be
    # compiled again.
    if is_sharded(net) or any(
        "forward" in vars(m) or hasattr(m, "_orig_mod") for m in net.modules()
    ):
        return None
    stepper: Any = getattr(run.stepper, "inner", run.stepper)
    compiles = any(hasattr(value, "_orig_mod") for value in vars(stepper).values())
    try:
        if compiles or stepper_forward(stepper) is Stepper.forward:
            stepper = Stepper()
        else:
            stepper = copy.deepcopy(stepper)
        return copied_without_hooks(net).eval(), copy.deepcopy(run.crit), stepper
    except Exception:  # a part that cannot be copied: validation itself will show its errors
        return None


# ---- metrics -----------------------------------------------------------------------------


def _try(metrics: Any, pairs: Pairs, where: str) -> None:
    for metric, name in zip(metrics, metric_names(metrics), strict=True):
        if is_meter(metric):
            _try_object(metric, name, pairs, where)
        elif declared_by(metric, "whole_epoch"):
            _try_all_rows(EpochMetric(metric), name, pairs, where)
        else:
            _try_function(metric, name, pairs, where)


def _try_function(metric: Any, name: str, pairs: Pairs, where: str) -> None:
    mean = WeightedMean(metric)
    for preds, targs in pairs:
        try:
            mean.update(cloned(preds), cloned(targs), 1)
        except Exception as error:
            _explain(error, name, where)


def _try_object(metric: Any, name: str, pairs: Pairs, where: str) -> None:
    try:
        tried = copy.deepcopy(metric)
    except Exception:  # it holds what cannot be copied, such as an open file
        return
    try:
        tried.reset()
        for preds, targs in pairs:
            tried.update(cloned(preds), cloned(targs))
    except Exception as error:
        _explain(error, name, where)
    _compute(tried, name, where)


def _try_all_rows(metric: EpochMetric, name: str, pairs: Pairs, where: str) -> None:
    for preds, targs in pairs:
        metric.update(preds, targs)
    _compute(metric, name, where)


def _compute(metric: Any, name: str, where: str) -> None:
    try:
        value = metric.compute()
    except Exception as error:
        _explain(error, name, where, more_rows_may_help=True)
        return
    try:
        check_number(value)
    except TypeError as error:
        _explain(error, name, where)


def _explain(error: Exception, name: str, where: str, more_rows_may_help: bool = False) -> None:
    """Raises the error with the metric's name, unless more rows may help."""
    text = str(error)
    if OURS in text:
        text = text if text.startswith(f"{name} ") else f"the metric {name}: {text}"
        raise type(error)(text) from error
    structural = isinstance(error, STRUCTURAL) and not isinstance(error, UnboundLocalError)
    if not more_rows_may_help or structural:
        raise TypeError(
            explain(
                f"the metric {name} cannot be computed on the first batch {where}",
                got=f"{type(error).__name__}: {error}",
                wanted="a function (preds, targs) -> number, which gets tensors of a batch, or an "
                "object with reset, update(preds, targs) and compute",
                fix="return a number, such as (preds.argmax(1) == targs).float().mean()",
                entry="metrics",
            )
        ) from error
