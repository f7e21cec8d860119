"""Which epoch was the best so far: what `EarlyStopping` and `SaveBest` both ask."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ..core import explain

SMALLER_IS_BETTER = ("loss", "error", "mse", "mae", "perplexity")


class Best:
    """Follows one column of the table.

    Args:
        monitor: The column's name.
        mode: `"min"` or `"max"`; None goes by the name: losses and errors fall.
        min_delta: By how much a value must be better to count.

    Examples:
        >>> best = Best("accuracy")
        >>> [best.improves(e, {"accuracy": a}) for e, a in enumerate([0.5, 0.7, 0.6])]
        [True, True, False]
        >>> best.value, best.epoch
        (0.7, 1)
    """

    def __init__(self, monitor: str, mode: str | None = None, min_delta: float = 0.0) -> None:
        if mode not in ("min", "max", None):
            raise ValueError(
                explain(
                    "mode is neither min nor max",
                    got=repr(mode),
                    wanted="'min', 'max', or None to go by the name",
                    fix=f"mode='max' if a larger {monitor} is better",
                    entry="monitor",
                )
            )
        falls = any(word in monitor.lower() for word in SMALLER_IS_BETTER)
        self.sign = -1.0 if mode == "min" or (mode is None and falls) else 1.0
        self.monitor, self.min_delta = monitor, min_delta
        self.value = math.nan
        self.epoch = -1

    def improves(self, epoch: int, values: Mapping[str, Any]) -> bool:
        """Takes an epoch's row; whether it is the best so far. nan never is."""
        if self.monitor not in values:
            raise KeyError(
                explain(
                    f"monitor={self.monitor!r} is no column of the table",
                    got=f"columns {', '.join(values)}",
                    wanted="one of them",
                    fix="monitor='trn_loss' where there is no validation data",
                    entry="monitor",
                )
            )
        value = float(values[self.monitor])
        better = self.epoch < 0 or self.sign * (value - self.value) > self.min_delta
        if better and not math.isnan(value):
            self.value, self.epoch = value, epoch
            return True
        return False
