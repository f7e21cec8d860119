"""Begin with a small learning rate."""

from __future__ import annotations

from ..callback import Callback, Run
from ..core import set_lrs, whole_number
from ._rate import lrs


class Warmup(Callback):
    """Trains on the first batches with 1/n, 2/n, ... of the learning rate, until it is whole.

    It scales the learning rate that a batch has by any schedule, wherever that stands in the list:
    once every handler of `on_batch_begin` has run, until the batch's step is done. Between batches
    the optimizer has its own learning rate, so that a scheduler counts on from there.

    Args:
        batches: The number of batches, n; 0 for none.

    Raises:
        TypeError, ValueError: if it is not an integer, or negative.

    Examples:
        >>> from minifast.testing import example_fit
        >>> history = example_fit([Warmup(batches=10)])
    """

    changes_training = True
    conflicts_with = ("Warmup",)

    def __init__(self, batches: int) -> None:
        self.batches = whole_number("batches", batches, 0, fix="Warmup(10)", entry="schedules")
        self.rates: list[float] = []
        self.scaled: list[float] = []

    def on_train_begin(self, run: Run) -> None:
        """Forgets an earlier fit."""
        self.rates = []

    def on_batch_begin(self, run: Run) -> None:
        """Scales the learning rate for this batch, when all schedules have set it."""
        if run.step < self.batches:
            run.after(self._scale)

    def _scale(self, run: Run) -> None:
        self.rates = lrs(run)
        part = (run.step + 1) / self.batches
        set_lrs(run.opt, [rate * part for rate in self.rates])
        self.scaled = lrs(run)

    def on_batch_end(self, run: Run) -> None:
        """Restores it. A scheduler steps after that: `Schedule` waits for all handlers."""
        if self.rates:
            set_lrs(run.opt, self.rates)
            self.rates = []

    def on_train_end(self, run: Run) -> None:
        """Restores it after an error in the batch, unless a schedule has restored its own."""
        if self.rates and lrs(run) == self.scaled:
            set_lrs(run.opt, self.rates)
        self.rates = []
