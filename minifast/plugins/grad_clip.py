"""Keep gradients from growing."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..callback import Callback, Run
from ..core import explain
from ._arguments import number


class GradClip(Callback):
    """Clips the gradients of the optimizer's parameters before each step.

    Args:
        max_norm: The largest norm of all gradients together. Equal, to the bit, to
            `clip_grad_norm_(net.parameters(), max_norm)`, also for several parameter groups;
            parameters of the loss come after those of the net.
        max_value: The largest size of each entry (`clip_grad_value_`).

    Raises:
        TypeError, ValueError: unless exactly one of the two is given, a number above 0.

    Examples:
        >>> from minifast.testing import example_fit
        >>> history = example_fit([GradClip(max_norm=1.0)])
    """

    changes_training = True

    def __init__(self, max_norm: float | None = None, max_value: float | None = None) -> None:
        given = {"max_norm": max_norm, "max_value": max_value}
        found = [(name, value) for name, value in given.items() if value is not None]
        if len(found) != 1:
            raise ValueError(
                explain(
                    "max_norm and max_value: one of them, above 0",
                    got=f"max_norm={max_norm}, max_value={max_value}",
                    wanted="the largest norm of all gradients together, or size of each entry",
                    fix=FIX,
                    entry="gradients",
                )
            )
        for name, value in found:
            number(name, value, lambda v: v > 0, "above 0", fix=FIX, entry="gradients")
        self.max_norm, self.max_value = max_norm, max_value
        self.places: dict[int, int] = {}

    def on_train_begin(self, run: Run) -> None:
        """Notes the order of the net's parameters."""
        self.places = {id(p): i for i, p in enumerate(run.net.parameters())}

    def on_backward_end(self, run: Run) -> None:
        """Clips, unless the step is skipped: what is accumulated is not clipped in parts."""
        if run.skip_step:
            return
        params = [p for group in run.opt.param_groups for p in group["params"]]
        if self.max_norm is not None:
            # The order in which squares are summed decides the last bit of the norm.
            params.sort(key=lambda p: self.places.get(id(p), len(self.places)))
            nn.utils.clip_grad_norm_([*map(_entries, params)], self.max_norm)
        elif self.max_value is not None:
            nn.utils.clip_grad_value_([*map(_entries, params)], self.max_value)


FIX = "GradClip(max_norm=1.0)"


def _entries(p: Tensor) -> Tensor:
    """The parameter; for a sparse gradient a stand-in, whose gradient is the entries' memory."""
    if p.grad is None or p.grad.layout != torch.sparse_coo:
        return p
    p.grad = p.grad.coalesce()  # each entry once: of two parts each could be below the limit
    entries = torch.empty_like(p.grad.values())
    entries.grad = p.grad.values()
    return entries
