"""Cosine annealing with warm restarts."""

from __future__ import annotations

import math
from collections.abc import Callable

from ..callback import Run
from ..core import explain
from ._arguments import number
from ._rate import RateSchedule


class CosineRestarts(RateSchedule):
    """Lowers the optimizer's learning rate to 0 along half a cosine, then restarts (SGDR).

    Loshchilov & Hutter 2017, [arXiv:1608.03983](https://arxiv.org/abs/1608.03983), equation 5. An
    epoch is as long as `len(trn_dl)` announces when training begins. If the fit has more batches
    than that, the last value is held, and a warning says so.

    Args:
        epochs: Epochs of the first cycle, fractions allowed; None for the whole fit.
        mult: How many times longer each cycle is than the one before it, 1 or more.
        min_factor: The part of the learning rate at the bottom, from 0 to 1.

    Raises:
        TypeError, ValueError: if an argument is not a number in its range; when training begins,
            if `trn_dl` has no length or the first cycle is shorter than a batch.

    Examples:
        >>> from minifast.testing import example_fit
        >>> history = example_fit([CosineRestarts(epochs=1, mult=2)], epochs=3)
    """

    def __init__(
        self, epochs: float | None = None, mult: float = 1.0, min_factor: float = 0.0
    ) -> None:
        super().__init__()
        if epochs is not None:
            _number("epochs", epochs, lambda v: 0 < v < math.inf, "above 0 and finite, or None")
        _number("mult", mult, lambda v: 1 <= v < math.inf, "1 or more and finite")
        _number("min_factor", min_factor, lambda v: 0 <= v <= 1, "a part from 0 to 1")
        self.epochs, self.mult, self.min_factor = epochs, mult, min_factor

    def on_train_begin(self, run: Run) -> None:
        """Takes the lengths from the loader."""
        super().on_train_begin(run)
        if self.epochs is not None:
            self.length = float(self.epochs) * (run.n_batches or 1)
        if self.length < 1:
            raise ValueError(
                explain(
                    "the first cycle of CosineRestarts is shorter than a batch",
                    got=f"epochs={self.epochs} of {run.n_batches} batches each",
                    wanted="a cycle of one batch or more",
                    fix="CosineRestarts(epochs=1)",
                    entry="schedules",
                )
            )

    def factor(self, step: int) -> float:
        """The part of the learning rate."""
        place, length = float(step), float(self.length)
        if self.mult == 1:
            place = math.fmod(place, length)
        while place >= length:  # ends: the lengths grow
            place, length = place - length, length * self.mult
        cosine = (1 + math.cos(math.pi * place / length)) / 2
        return self.min_factor + (1 - self.min_factor) * cosine


def _number(name: str, value: object, holds: Callable[[float], bool], wanted: str) -> None:
    number(name, value, holds, wanted, fix="CosineRestarts(epochs=1)", entry="schedules")
