"""Large batches on small machines."""

from __future__ import annotations

from typing import Any

from ..callback import Callback, Run
from ..core import whole_number


class GradAccumulation(Callback):
    """Adds up the gradients of several batches and steps once for all of them.

    The step is that of one batch with all their rows, for a loss that is a mean over rows: each row
    counts once, also in a last window of fewer or shorter batches. BatchNorm still sees the small
    batches.

    Args:
        batches: How many batches make a step.

    Raises:
        TypeError, ValueError: if it is no whole number, or below 1.

    Examples:
        >>> from minifast.testing import example_fit
        >>> history = example_fit([GradAccumulation(4)])
    """

    changes_training = True
    must_precede = ("GradClip", "GradientStats")
    conflicts_with = ("GradAccumulation",)

    def __init__(self, batches: int) -> None:
        self.batches = whole_number(
            "batches", batches, 1, fix="GradAccumulation(4)", entry="gradients"
        )
        self.count = self.rows = 0

    def on_epoch_begin(self, run: Run) -> None:
        """Begins a window."""
        self.count = self.rows = 0

    def on_backward_begin(self, run: Run) -> None:
        """Weighs the batch's loss by its rows, and keeps the gradients of those before it."""
        run.keep_grads = self.count > 0
        run.loss = run.loss * run.rows
        self.count += 1
        self.rows += run.rows

    def on_backward_end(self, run: Run) -> None:
        """Lets the window's last batch step, by the mean over its rows; the others not."""
        run.skip_step = self.count < self.batches and run.batch + 1 != run.n_batches
        if not run.skip_step:
            self._divide(run)

    def on_validate_begin(self, run: Run) -> None:
        """Steps for an unfinished window, where the loader could not tell that it would end."""
        self._finish(run)

    def on_epoch_end(self, run: Run) -> None:
        """The same, where there is no validation."""
        self._finish(run)

    def state_dict(self) -> dict[str, Any]:
        """How far the window is; its gradients are kept with the net's."""
        return {"count": self.count, "rows": self.rows}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on within the window."""
        self.count, self.rows = state["count"], state["rows"]

    def _finish(self, run: Run) -> None:
        if self.count:
            self._divide(run)
            run.stepper.update(run)

    def _divide(self, run: Run) -> None:
        for group in run.opt.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.grad /= self.rows
        self.count = self.rows = 0
