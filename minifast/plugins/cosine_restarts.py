"""Cosine annealing with warm restarts."""

from __future__ import annotations

import math

from ..callback import Run
from ._rate import RateSchedule, total_steps


class CosineRestarts(RateSchedule):
    """From the optimizer's rate down to none along half a cosine, then again from the top (SGDR).

    Loshchilov & Hutter 2017, [arXiv:1608.03983](https://arxiv.org/abs/1608.03983), equation 5.

    Args:
        epochs: Epochs of the first cycle, fractions allowed; None for the whole fit.
        mult: By how much each cycle is longer than the one before.
        min_factor: The part of the rate at the bottom.

    Raises:
        ValueError: when training begins, if `trn_dl` has no length.

    Examples:
        >>> from minifast.testing import example_fit
        >>> history = example_fit([CosineRestarts(epochs=1, mult=2)], epochs=3)
    """

    def __init__(
        self, epochs: float | None = None, mult: float = 1.0, min_factor: float = 0.0
    ) -> None:
        super().__init__()
        self.epochs, self.mult, self.min_factor = epochs, mult, min_factor

    def on_train_begin(self, run: Run) -> None:
        """Takes the lengths from the loader."""
        super().on_train_begin(run)
        total = total_steps(run, "CosineRestarts")
        self.first = total if self.epochs is None else self.epochs * (run.n_batches or 1)

    def factor(self, run: Run) -> float:
        """The part of the rate."""
        step, length = float(run.step), float(self.first)
        while step >= length:
            step, length = step - length, length * self.mult
        cosine = (1 + math.cos(math.pi * step / length)) / 2
        return self.min_factor + (1 - self.min_factor) * cosine
