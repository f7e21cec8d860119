"""The mean of the weights over epochs."""

from __future__ import annotations

from typing import Any

from ..callback import Run
from ._averaged import Averaged


class SWA(Averaged):
    """Stochastic weight averaging: the mean of the weights at the ends of epochs.

    Izmailov et al. 2018, "Averaging Weights Leads to Wider Optima and Better Generalization",
    [arXiv:1803.05407](https://arxiv.org/abs/1803.05407). BatchNorm's averages are averaged too.

    Args:
        start: The first epoch, from 0, whose weights count.

    Examples:
        >>> from minifast.testing import example_fit
        >>> history = example_fit([SWA(start=1)], epochs=3)
    """

    def __init__(self, start: int = 0) -> None:
        super().__init__()
        self.start = start
        self.count = 0

    def weight(self, run: Run) -> float | None:
        """One over the number of epochs so far."""
        return 1 / (self.count + 1) if run.epoch >= self.start else None

    def on_train_begin(self, run: Run) -> None:
        """Forgets an earlier fit."""
        super().on_train_begin(run)
        self.count = 0

    def on_validate_begin(self, run: Run) -> None:
        """Takes the epoch's weights into the mean and puts it in the net."""
        self._take_once(run)
        super().on_validate_begin(run)

    def on_epoch_end(self, run: Run) -> None:
        """Takes them here, where there is no validation."""
        if not self.trained:
            self._take_once(run)

    def _take_once(self, run: Run) -> None:
        if run.epoch >= self.start:
            self.take(run)
            self.count += 1

    def state_dict(self) -> dict[str, Any]:
        """The mean, and of how many epochs it is."""
        return {**super().state_dict(), "count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from them.

        Raises:
            ValueError: if they cannot be an average of so many epochs; other errors are its own.
        """
        super().load_state_dict(state)
        self.count = int(state["count"])
        if self.count < 0:
            raise ValueError(f"an average of {self.count} epochs")
