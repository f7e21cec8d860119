"""The step with as little Python around it as torch allows."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from ..callback import Run
from ..stepper import Stepper
from ._fused import fused_step, uncovered
from ._kernels import kernels_differ

# A private name: where it is gone, `loss.backward()` does the same.
ENGINE: Any = getattr(getattr(torch.autograd, "Variable", None), "_execution_engine", None)


class Fast(Stepper):
    """The ordinary step for small nets on the CPU, in some 60 % of the time for the smallest.

    For `torch.optim.SGD`, `Adam` and `AdamW` over dense float32 parameters on the CPU. The weights
    are, to the bit, those that the optimizer gives with `fused=True`; from the ordinary step they
    differ by rounding. The state stays in `optimizer.state`; rates, groups, weight decay, missing
    gradients and hooks of nets are honoured. What it does not cover (other optimizers, step hooks,
    a scheduler of torch's, which replaces `step`) takes the ordinary step, and it says so once.

    Examples:
        >>> from minifast.testing import example_fit
        >>> history = example_fit([], stepper=Fast())
    """

    def __init__(self) -> None:
        self.one = torch.ones((), dtype=torch.float32, device="cpu")
        self.told = False
        # Private names of PyTorch are tried once, and not in the middle of a training.
        with torch.inference_mode(False), torch.enable_grad():
            self.direct, self.differs = self._engine_works(), kernels_differ()

    def zero_grad(self, run: Run) -> None:
        """Forgets the gradients."""
        if type(run.opt).zero_grad is not Optimizer.zero_grad:
            super().zero_grad(run)
            return
        for group in run.opt.param_groups:
            for p in group["params"]:
                p.grad = None

    def backward(self, run: Run) -> None:
        """Calls autograd's engine directly."""
        loss = run.loss
        plain = type(loss) is Tensor and loss.ndim == 0 and loss.dtype == torch.float32
        if not (self.direct and plain and loss.is_cpu):
            super().backward(run)
            return
        self._run_engine(loss)

    def _run_engine(self, loss: Tensor) -> None:
        ENGINE.run_backward(
            (loss,), (self.one,), False, False, (), allow_unreachable=True, accumulate_grad=True
        )

    def _engine_works(self) -> bool:
        p = torch.ones((), dtype=torch.float32, device="cpu", requires_grad=True)
        try:
            self._run_engine(p * 2)
        except Exception:  # gone, or called with other arguments by now
            return False
        return p.grad is not None and p.grad.item() == 2

    def update(self, run: Run) -> None:
        """Calls the optimizer's fused kernel on its own state."""
        why = self.differs or uncovered(run.opt)
        if why is not None:
            if not self.told:
                self.told = True
                warnings.warn(f"Fast takes the ordinary step: {why}", stacklevel=2)
            super().update(run)
            return
        fused_step(run.opt)
