"""Begin gently."""

from __future__ import annotations

from ..callback import Callback, Run
from ..core import set_lrs
from ._rate import lrs


class Warmup(Callback):
    """Learns from the first batches with a part of the rate that grows to the whole: 1/n, 2/n, ...

    It scales whatever rate the batch has, so it stands behind a schedule in the list; between
    batches the optimizer has its own rate.

    Args:
        batches: How many batches it takes.

    Examples:
        >>> from minifast.testing import example_fit
        >>> history = example_fit([Warmup(batches=10)])
    """

    changes_training = True

    def __init__(self, batches: int) -> None:
        self.batches = batches
        self.rates: list[float] = []

    def on_batch_begin(self, run: Run) -> None:
        """Scales the rate for this batch."""
        if run.step < self.batches:
            self.rates = lrs(run)
            part = (run.step + 1) / self.batches
            set_lrs(run.opt, [rate * part for rate in self.rates])

    def on_batch_end(self, run: Run) -> None:
        """Puts it back."""
        self._put_back(run)

    def on_train_end(self, run: Run) -> None:
        """Puts it back, if a batch was not finished."""
        self._put_back(run)

    def _put_back(self, run: Run) -> None:
        if self.rates:
            set_lrs(run.opt, self.rates)
            self.rates = []
