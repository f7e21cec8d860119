"""Half the bits where they do."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..core import device_of
from ..stepper import Stepper


class MixedPrecision(Stepper):
    """Runs the net in bfloat16 where torch holds that to be safe; weights and loss stay float32.

    It serves validation during `fit` too; `predict` runs the net as it is.

    Args:
        dtype: What the net computes in; bfloat16 needs no scaling of the loss.

    Examples:
        >>> from minifast.testing import example_fit
        >>> history = example_fit([], stepper=MixedPrecision())
    """

    def __init__(self, dtype: torch.dtype = torch.bfloat16) -> None:
        self.dtype = dtype

    def forward(self, net: nn.Module, x: Any) -> Any:
        """The net's output under `torch.autocast`, as float32."""
        with torch.autocast(device_of(net).type, self.dtype):
            preds = super().forward(net, x)
        return preds.float() if isinstance(preds, Tensor) and preds.is_floating_point() else preds
