"""One cycle of the learning rate, over the fit it is in."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..callback import Run
from ..core import set_lrs
from ._arguments import number
from ._rate import RateSchedule, lrs


class OneCycle(RateSchedule):
    """Raises the learning rate to its largest value and lowers it to almost 0, by half cosines.

    Smith & Topin 2017, "Super-Convergence", [arXiv:1708.07120](https://arxiv.org/abs/1708.07120),
    as `torch.optim.lr_scheduler.OneCycleLR` has it; the length is that of the fit. Momentum (or
    Adam's first beta) goes the other way. Learning rates and momentum are as before when training
    ends. If the fit has more batches than `len(trn_dl)` announced, the last values are held, and a
    warning says so.

    Args:
        max_lr: The largest learning rate, or one for each parameter group.
        pct_start: The part of the batches, from 0 to 1, in which the learning rate rises.
        div: The first learning rate is `max_lr / div`.
        final_div: The last is the first over this.
        moms: Momentum at the ends and at the top; None leaves it alone.

    Raises:
        TypeError, ValueError: if an argument is not a number in its range; when training begins,
            if `trn_dl` has no length.

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
        tops: Any = max_lr if np.ndim(max_lr) else [max_lr]
        for each in tops:
            _number("max_lr", each, lambda v: 0 < v < math.inf, "above 0 and finite")
        _number("pct_start", pct_start, lambda v: 0 <= v <= 1, "a part from 0 to 1")
        _number("div", div, lambda v: 0 < v < math.inf, "above 0 and finite")
        _number("final_div", final_div, lambda v: 0 < v < math.inf, "above 0 and finite")
        if moms is not None:
            two = np.shape(moms) == (2,)
            for each in moms if two else [moms]:
                _number("moms", each, lambda v: two and 0 <= v < 1, MOMS)
        self.max_lr, self.pct_start = max_lr, pct_start
        self.div, self.final_div, self.moms = div, final_div, moms
        self._momenta: list[dict[str, Any]] = []

    def on_train_begin(self, run: Run) -> None:
        """Takes the length from the fit, and what it will restore from the optimizer."""
        self._momenta = []
        super().on_train_begin(run)
        top: Any = self.max_lr
        # Refuses a wrong number of them, and then nothing has changed.
        set_lrs(run.opt, [float(lr) for lr in top] if np.ndim(top) else float(top))
        self.rates = lrs(run)
        set_lrs(run.opt, self._before)
        self._momenta = [
            {key: group[key] for key in ("momentum", "betas") if key in group}
            for group in run.opt.param_groups
        ]

    def factor(self, step: int) -> float:
        """The part of `max_lr`."""
        return self.between(step, 1 / self.div, 1.0, 1 / self.div / self.final_div)

    def between(self, step: int, first: float, top: float, last: float) -> float:
        """The value at a step of a course from `first` to `top` to `last`."""
        turn = self.pct_start * self.total - 1
        if step <= turn:
            return _half_cosine(first, top, step / turn if turn > 0 else 1.0)
        return _half_cosine(top, last, (step - turn) / (self.total - 1 - turn))

    def on_batch_begin(self, run: Run) -> None:
        """Sets learning rates and momentum for this batch."""
        super().on_batch_begin(run)
        if self.moms is None:
            return
        momentum = self.between(self.place(run), self.moms[0], self.moms[1], self.moms[0])
        for group in run.opt.param_groups:
            if "betas" in group:
                group["betas"] = (momentum, *group["betas"][1:])
            elif group.get("momentum"):
                group["momentum"] = momentum

    def on_train_end(self, run: Run) -> None:
        """Restores the optimizer's learning rates and its momentum."""
        momenta, self._momenta = self._momenta, []
        for group, before in zip(run.opt.param_groups, momenta, strict=False):
            group.update(before)
        super().on_train_end(run)


MOMS = "two numbers, 0 or more and below 1, such as (0.95, 0.85), or None"


def _number(name: str, value: object, holds: Callable[[float], bool], wanted: str) -> None:
    number(name, value, holds, wanted, fix="OneCycle(max_lr=0.1)", entry="schedules")


def _half_cosine(start: float, end: float, part: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * part)) / 2
