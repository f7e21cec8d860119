"""The net through torch.compile."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..stepper import Stepper


class Compiled(Stepper):
    """Runs the net through `torch.compile`, equal to rounding.

    The net you handed in is trained, so its `state_dict` has no `_orig_mod.` in its names. The
    first batches take seconds: it pays for nets that compute for long, not for small ones.

    Args:
        **options: As for `torch.compile`.

    Examples:
        >>> from minifast.testing import example_fit
        >>> history = example_fit([], stepper=Compiled(backend="eager"))
    """

    def __init__(self, **options: Any) -> None:
        self.options = options
        self.net: nn.Module | None = None
        self.compiled: Any = None

    def forward(self, net: nn.Module, x: Any) -> Any:
        """The compiled net's output."""
        if self.net is not net:
            self.net, self.compiled = net, torch.compile(net, **self.options)
        return super().forward(self.compiled, x)
