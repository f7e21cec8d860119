"""Large batches on small machines."""

from __future__ import annotations

import math
from typing import Any

from ..callback import Callback, Run
from ..core import explain, whole_number
from ..losses import weighted


class GradAccumulation(Callback):
    """Adds up the gradients of several batches and steps once for all of them.

    The step is that of one batch with all their rows: each batch counts by what its loss divides
    by (see `minifast.losses`): its rows, or its labels that are not ignored, with class weights. So
    does the last window of an epoch, which may have fewer or shorter batches. On the CPU the
    gradients are, to the bit, those of a loop that adds up `loss * weight` and divides by the sum.
    BatchNorm still sees the small batches.

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
        self.count, self.weight, self.known = 0, 0.0, False

    def on_train_begin(self, run: Run) -> None:
        """Has the loss tell what it divides by."""
        run.crit = weighted(run.crit)

    def on_epoch_begin(self, run: Run) -> None:
        """Begins a window."""
        self.count, self.weight = 0, 0.0

    def transform_loss(self, run: Run, preds: Any, loss: Any) -> Any:
        """The sum that the loss is a mean of, to be divided by what the window counts."""
        return loss if _sums(run) else loss * run.loss_weight

    def on_backward_begin(self, run: Run) -> None:
        """Weights the batch's loss, and keeps the gradients of the batches before it."""
        run.keep_grads = self.count > 0
        crit: Any = run.crit
        known = bool(crit.known)
        if self.count and known != self.known:
            raise ValueError(_mixed())
        self.known = known
        run.loss = self.transform_loss(run, run.preds, run.loss)
        self.count += 1
        self.weight = 1.0 if _sums(run) else self.weight + run.loss_weight

    def on_backward_end(self, run: Run) -> None:
        """Lets the window's last batch step, with the mean over the window; the others not."""
        run.skip_step = self.count < self.batches and not run.last_batch
        if run.skip_step:
            return
        if self.weight:  # 0 where all labels are ignored, and all gradients are 0
            for group in run.opt.param_groups:
                for p in group["params"]:
                    if p.grad is not None:
                        p.grad /= self.weight
        self.count, self.weight = 0, 0.0

    def state_dict(self) -> dict[str, Any]:
        """How far the window is; its gradients are kept with the net's."""
        return {"count": self.count, "weight": float(self.weight), "known": self.known}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues within the window.

        Raises:
            ValueError: if it cannot be the state of a window.
        """
        count, weight = state["count"], float(state["weight"])
        if not (0 <= count <= self.batches and 0 <= weight < math.inf):
            raise ValueError(f"a window of {self.batches} batches with {count} of weight {weight}")
        self.count, self.weight, self.known = count, weight, bool(state["known"])


def _sums(run: Run) -> bool:
    """Whether the loss is a sum over rows: then that of the large batch is the sum of all."""
    crit: Any = run.crit
    return bool(crit.sums)


def _mixed() -> str:
    return explain(
        "crit does not divide by the same for all batches of a window",
        got="a mean over labels or entries for one batch, an unknown divisor for another",
        wanted="one kind of mean, or a loss that declares what it divides by",
        fix="@weighted_by(lambda preds, targs: ...) from minifast.metrics, above crit",
        entry="gradients",
    )
