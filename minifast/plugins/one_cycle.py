"""One cycle of the learning rate, over the fit it is in."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..callback import Run
from ..core import positive, set_lrs
from ._rate import RateSchedule, lrs, total_steps


class OneCycle(RateSchedule):
    """Up to the largest rate and down to next to nothing, each along half a cosine.

    Smith & Topin 2017, "Super-Convergence", [arXiv:1708.07120](https://arxiv.org/abs/1708.07120),
    as `torch.optim.lr_scheduler.OneCycleLR` has it; the length is that of the fit. Momentum (or
    Adam's first beta) goes the other way. Rates and momentum are as before when training ends.

    Args:
        max_lr: The largest rate, or one for each parameter group.
        pct_start: Which part of the batches goes up.
        div: The first rate is `max_lr / div`.
        final_div: The last is the first over this.
        moms: Momentum at the ends and at the top; None leaves it alone.

    Raises:
        ValueError: if the rate is not above 0; when training begins, if `trn_dl` has no length.

    Examples:
        >>> from minifast.testing import example_fit
        >>> history = example_fit([OneCycle(max_lr=0.1)], epochs=3)
    """

    def __init__(
        self,
        max_lr: float | Sequence[float],
        pct_start: float = 0.3,
        div: float = 25.0,
        final_div: float = 1e4,
        moms: tuple[float, float] | None = (0.95, 0.85),
    ) -> None:
        super().__init__()
        fix = "OneCycle(max_lr=0.1)"
        self.max_lr = positive("max_lr", max_lr, fix=fix, entry="schedules")
        self.pct_start, self.div, self.final_div = pct_start, div, final_div
        self.moms = moms
        self.momenta: list[object] = []

    def on_train_begin(self, run: Run) -> None:
        """Takes the length from the fit."""
        super().on_train_begin(run)
        self.before = self.rates
        set_lrs(run.opt, self.max_lr)  # refuses a wrong number of rates
        self.rates = lrs(run)
        set_lrs(run.opt, self.before)
        self.last = total_steps(run, "OneCycle") - 1
        self.momenta = [group.get("betas", group.get("momentum")) for group in run.opt.param_groups]

    def factor(self, run: Run) -> float:
        """The part of `max_lr`."""
        return self.between(run.step, 1 / self.div, 1.0, 1 / self.div / self.final_div)

    def between(self, step: int, first: float, top: float, last: float) -> float:
        """The value at a step of a course from `first` to `top` to `last`."""
        turn = self.pct_start * (self.last + 1) - 1
        if step <= turn:
            return _half_cosine(first, top, step / turn if turn > 0 else 1.0)
        return _half_cosine(top, last, (step - turn) / (self.last - turn))

    def on_batch_begin(self, run: Run) -> None:
        """Sets rates and momentum for this batch."""
        super().on_batch_begin(run)
        if self.moms is None:
            return
        momentum = self.between(run.step, self.moms[0], self.moms[1], self.moms[0])
        for group in run.opt.param_groups:
            if "betas" in group:
                group["betas"] = (momentum, *group["betas"][1:])
            elif group.get("momentum"):
                group["momentum"] = momentum

    def on_train_end(self, run: Run) -> None:
        """Gives the optimizer its rates and its momentum back."""
        if not self.momenta:
            return
        set_lrs(run.opt, self.before)
        for group, momentum in zip(run.opt.param_groups, self.momenta, strict=True):
            if momentum is not None:
                group["betas" if "betas" in group else "momentum"] = momentum


def _half_cosine(start: float, end: float, part: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * part)) / 2
