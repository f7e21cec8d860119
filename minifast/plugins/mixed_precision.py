"""Half the bits where they do."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..callback import Run
from ..core import device_of, explain
from ..stepper import Stepper


class MixedPrecision(Stepper):
    """Runs the net in half precision where torch holds that safe; weights and loss are float32.

    It serves validation during `fit` too; `predict` runs the net as it is.

    Args:
        dtype: What the net computes in. bfloat16, on the CPU and on newer GPUs, needs nothing more;
            for float16 the loss is scaled, and gradients that overflow skip their step.

    Raises:
        ValueError: for another dtype; while training, if gradients in float16 are to be added up.

    Examples:
        >>> from minifast.testing import example_fit
        >>> history = example_fit([], stepper=MixedPrecision())
    """

    def __init__(self, dtype: torch.dtype = torch.bfloat16) -> None:
        if dtype not in (torch.bfloat16, torch.float16):
            raise _unfit(dtype, "torch.bfloat16 or torch.float16")
        self.dtype = dtype
        self.scaler: torch.amp.GradScaler | None = None
        self.saved: dict[str, Any] = {}  # of the scaler, until it is made
        self.waits = False  # for the update of a batch whose step was skipped

    def forward(self, net: nn.Module, x: Any) -> Any:
        """The net's output under `torch.autocast`, as float32."""
        with torch.autocast(device_of(net).type, self.dtype):
            preds = super().forward(net, x)
        return preds.float() if isinstance(preds, Tensor) and preds.is_floating_point() else preds

    def state_dict(self) -> dict[str, Any]:
        """What it computes in; in float16, the scale of the loss."""
        self._settle()
        scale = self.saved if self.scaler is None else self.scaler.state_dict()
        return {"dtype": str(self.dtype), "scaler": scale}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues with it.

        Raises:
            ValueError: if it is the state of a run in another dtype, or not a scaler's.
        """
        if state["dtype"] != str(self.dtype):
            raise ValueError(f"dtype is {state['dtype']}, here {self.dtype}")
        if state["scaler"]:
            _check_scale(state["scaler"])
        self.scaler, self.saved, self.waits = None, state["scaler"], False

    def backward(self, run: Run) -> None:
        """The gradients; in float16 of the scaled loss, and scaled back."""
        if self.dtype == torch.bfloat16:
            super().backward(run)
            return
        if run.keep_grads:
            raise _unfit(self.dtype, "torch.bfloat16, to add up gradients of several batches")
        if self.scaler is None:
            self.scaler = torch.amp.GradScaler(device_of(run.net).type)
            if self.saved:
                self.scaler.load_state_dict(self.saved)
        self._settle()
        self.scaler.scale(run.loss).backward()
        self.scaler.unscale_(run.opt)
        self.waits = True

    def update(self, run: Run) -> None:
        """The step, unless a gradient in float16 has overflowed."""
        if self.scaler is None:
            super().update(run)
            return
        self.scaler.step(run.opt)
        self.scaler.update()
        self.waits = False

    def _settle(self) -> None:
        """Lets the scale follow the last batch, if its step was skipped and so did not do it."""
        if self.scaler is not None and self.waits:
            self.scaler.update()
            self.waits = False


def _check_scale(state: dict[str, Any]) -> None:
    """What a GradScaler can continue with; torch itself looks at nothing."""
    like = torch.amp.GradScaler("cpu").state_dict()
    for name, value in like.items():
        number = state[name]
        if type(number) not in (int, type(value)) or not 0 <= number <= 3e38:
            raise ValueError(f"{name} of the scaler is {number!r:.60}")
    if not (state["growth_factor"] > 1 > state["backoff_factor"] > 0 < state["scale"]):
        raise ValueError("the scaler's factors do not let it grow and shrink")


def _unfit(dtype: torch.dtype, wanted: str) -> ValueError:
    return ValueError(
        explain(
            "dtype does not serve",
            got=str(dtype),
            wanted=wanted,
            fix="MixedPrecision()",
            entry="steppers",
        )
    )
