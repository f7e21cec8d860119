"""Keep gradients from growing."""

from __future__ import annotations

from torch import nn

from ..callback import Callback, Run
from ..core import explain


class GradClip(Callback):
    """Shortens gradients before each step.

    Args:
        max_norm: The length that all gradients together may have (`clip_grad_norm_`).
        max_value: The size that each entry may have (`clip_grad_value_`).

    Raises:
        ValueError: unless exactly one of the two is given, above 0.

    Examples:
        >>> from minifast.testing import example_fit
        >>> history = example_fit([GradClip(max_norm=1.0)])
    """

    changes_training = True

    def __init__(self, max_norm: float | None = None, max_value: float | None = None) -> None:
        given = [v for v in (max_norm, max_value) if v is not None]
        if len(given) != 1 or given[0] <= 0:
            raise ValueError(
                explain(
                    "max_norm and max_value: one of them, above 0",
                    got=f"max_norm={max_norm}, max_value={max_value}",
                    wanted="the length of all gradients together, or the size of each entry",
                    fix="GradClip(max_norm=1.0)",
                    entry="gradients",
                )
            )
        self.max_norm, self.max_value = max_norm, max_value

    def on_backward_end(self, run: Run) -> None:
        """Shortens them, unless the step is skipped: what is added up is not clipped in parts."""
        if run.skip_step:
            return
        params = [p for group in run.opt.param_groups for p in group["params"]]
        if self.max_norm is not None:
            nn.utils.clip_grad_norm_(params, self.max_norm)
        elif self.max_value is not None:
            nn.utils.clip_grad_value_(params, self.max_value)
