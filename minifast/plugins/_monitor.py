"""The column of the table that a callback watches."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ..callback import Run
from ..core import explain
from ..metrics import metric_names


def monitored_value(values: Mapping[str, Any], monitor: str) -> float:
    """Returns the number in a column of the epoch's row.

    Raises:
        KeyError: if there is no such column.

    Examples:
        >>> monitored_value({"epoch": 0, "val_loss": 0.5}, "val_loss")
        0.5
    """
    if monitor not in values:
        raise KeyError(_no_column(monitor, values))
    return float(values[monitor])


def check_monitor(run: Run, monitor: str) -> None:
    """Refuses a column of validation where there is none, before the first step.

    Raises:
        KeyError: if there is no validation data.
    """
    if run.data.val_dl is None and monitor in ("val_loss", *metric_names(run.metrics)):
        raise KeyError(_no_column(monitor, ["epoch", "trn_loss"]))


def _no_column(monitor: str, columns: Iterable[str]) -> str:
    return explain(
        f"monitor={monitor!r} is not a column of the table",
        got=f"columns {', '.join(columns)}",
        wanted="one of them",
        fix="monitor='trn_loss' where there is no validation data",
        entry="monitor",
    )
