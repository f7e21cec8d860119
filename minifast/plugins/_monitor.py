"""A column of the table to watch: whether it is there, its value, and how it improves."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ..callback import Run, hears
from ..core import explain
from ..errors import MissingKeyError
from ..metrics import metric_names


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


SMALLER_IS_BETTER = _words(
    "loss losses logloss error errors err mse mae rmse mape smape msle rmsle mase wer cer nll bce "
    "ce brier ece perplexity ppl hinge deviance fid kl kld divergence huber quantile pinball crps "
    "l1 l2 entropy crossentropy distance hamming misclassification fpr fnr"
)
LARGER_IS_BETTER = _words(
    "accuracy acc f1 fbeta precision recall auc auroc auprc r2 iou miou jaccard dice bleu rouge "
    "psnr ssim kappa mcc map ap ndcg mrr specificity sensitivity likelihood tpr tnr"
)
# Words that turn the meaning round, or make it one of which nothing is known.
TURNS_IT_ROUND = _words(
    "neg negative minus inverse inverted not non gap drop diff difference delta change std "
    "variance count scale"
)
MAY_ADD_COLUMNS = "on_validate_begin", "on_validate_end", "on_epoch_end"


class NoColumnError(MissingKeyError):
    """The table has no such column."""


def direction(name: str) -> str | None:
    """Returns `"min"` or `"max"` if the name of a column tells how it improves, None otherwise.

    The name is split into words at `_`, punctuation, digits and camel case. One with words of both
    kinds, or with a word that turns the meaning round, does not tell.

    Examples:
        >>> [direction(name) for name in ("val_loss", "mape_2", "MulticlassAUROC", "f1")]
        ['min', 'min', 'max', 'max']
        >>> [direction(name) for name in ("score", "neg_log_loss", "dice_loss")]
        [None, None, None]
    """
    words = re.findall(r"[^\W_]+", name)
    parts = re.findall(r"[A-Z]+(?![a-z])\d*|[A-Z]?[a-z]+\d*", name)
    known = {word.lower() for word in (*words, *parts)}
    known |= {word.rstrip("0123456789") for word in known}
    smaller, larger = known & SMALLER_IS_BETTER, known & LARGER_IS_BETTER
    turned = known & TURNS_IT_ROUND or re.match(r"\W*1?\s*-", name)
    if turned or bool(smaller) == bool(larger):
        return None
    return "min" if smaller else "max"


def monitored_value(values: Mapping[str, Any], monitor: str) -> float:
    """Returns the number in a column of the epoch's row.

    Raises:
        NoColumnError: a `KeyError`, if there is no such column.
        TypeError: if its value is not a number.

    Examples:
        >>> monitored_value({"epoch": 0, "val_loss": 0.5}, "val_loss")
        0.5
    """
    if monitor not in values:
        raise NoColumnError(_no_column(monitor, list(values)))
    value = values[monitor]
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            explain(
                f"monitor={monitor!r} must name a column of numbers",
                got=f"{type(value).__name__}: {' '.join(repr(value).split()):.60}",
                wanted="one number an epoch",
                fix="a column of a single number, such as val_loss or a metric",
                entry="monitor",
            )
        ) from error


def check_monitor(run: Run, monitor: str) -> None:
    """Refuses a column that the table will not have, before the first step: in `on_train_begin`.

    A callback of a class of your own that has a handler for validation or for the end of an epoch
    may add any column, so then it is waited for.

    Raises:
        NoColumnError: a `KeyError`.
    """
    columns = ["epoch", "trn_loss"]
    if run.data.val_dl is not None:
        columns += ["val_loss", *metric_names(run.metrics)]
    for callback in run.callbacks:
        if type(callback).__module__.startswith(f"{__package__}."):
            columns += getattr(callback, "columns", ())
        elif any(hears(callback, event) for event in MAY_ADD_COLUMNS):
            return
    if monitor not in columns:
        raise NoColumnError(_no_column(monitor, columns))


def _no_column(monitor: str, columns: list[str]) -> str:
    fix = f"monitor={columns[-1]!r}, or metrics=[...] with a function of the name {monitor}"
    if "val_loss" not in columns:
        fix = "monitor='trn_loss', or validation data: ModelData(path, trn_dl, val_dl)"
    return explain(
        f"monitor={monitor!r} must be a column of the table",
        got=f"columns {', '.join(columns)}",
        wanted="one of them",
        fix=fix,
        entry="monitor",
    )
