"""A moving average of the weights."""

from __future__ import annotations

from ..callback import Run
from ..core import explain
from ._averaged import Averaged


class EMA(Averaged):
    """Exponential moving average of the weights: after each step `avg += (1 - decay) * (w - avg)`.

    Args:
        decay: How much of the average stays at each step.

    Raises:
        ValueError: if `decay` is not in 0..1.

    Examples:
        >>> from minifast.testing import example_fit
        >>> history = example_fit([EMA(decay=0.9)])
    """

    def __init__(self, decay: float = 0.999) -> None:
        if not 0 <= decay < 1:
            raise ValueError(
                explain(
                    "decay is out of range",
                    got=repr(decay),
                    wanted="0 or more, below 1",
                    fix="EMA(decay=0.999)",
                    entry="averages",
                )
            )
        super().__init__()
        self.decay = decay

    def weight(self, run: Run) -> float:
        """The same at every step."""
        return 1 - self.decay

    def on_batch_end(self, run: Run) -> None:
        """Takes the weights into the average, if the batch changed them."""
        if not run.skip_step:
            self.take(run)
