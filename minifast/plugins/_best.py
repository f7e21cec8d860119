"""Which epoch was the best so far: what `EarlyStopping` and `SaveBest` both ask."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ..core import explain
from ._monitor import check_monitor as check_monitor
from ._monitor import direction
from ._monitor import monitored_value as monitored_value


class Best:
    """Follows one column of the table.

    Args:
        monitor: The column's name.
        mode: `"min"` or `"max"`; None goes by the name, if it tells: see `direction`.
        min_delta: By how much a value must be better to count.

    Raises:
        ValueError: if `mode` is neither, or None where the name does not tell.

    Examples:
        >>> best = Best("accuracy")
        >>> [best.improves(e, {"accuracy": a}) for e, a in enumerate([0.5, 0.7, 0.6])]
        [True, True, False]
        >>> best.value, best.epoch
        (0.7, 1)
    """

    def __init__(self, monitor: str, mode: str | None = None, min_delta: float = 0.0) -> None:
        known = direction(monitor) if mode is None else mode
        if known not in ("min", "max"):
            problem = "must be 'min' or 'max'"
            if mode is None:
                problem = f"must be given: the name {monitor!r} does not tell how it improves"
            raise ValueError(
                explain(
                    f"mode {problem}",
                    got=f"monitor={monitor!r}, mode={mode!r}",
                    wanted="'min' if a smaller value is better, 'max' if a larger one is; None for "
                    "names that tell, such as val_loss or accuracy",
                    fix=f"monitor={monitor!r}, mode='min' (or mode='max')",
                    entry="monitor",
                )
            )
        self.sign = -1.0 if known == "min" else 1.0
        self.monitor, self.min_delta = monitor, min_delta
        self.value = math.nan
        self.epoch = -1

    def improves(self, epoch: int, values: Mapping[str, Any]) -> bool:
        """Takes an epoch's row; returns whether it is the best so far. nan never is."""
        value = monitored_value(values, self.monitor)
        better = self.epoch < 0 or self.sign * (value - self.value) > self.min_delta
        if better and not math.isnan(value):
            self.value, self.epoch = value, epoch
            return True
        return False
