"""A callback, a metric and a stepper for minifast."""

from __future__ import annotations

import torch
from torch import Tensor

from minifast import Callback, Run, Stepper

__all__ = ["NoisyGradients", "WeightNorm", "top2"]


class WeightNorm(Callback):
    """Adds the column `weight_norm` to the table: the length of all weights together."""

    def on_epoch_end(self, run: Run) -> None:
        """Adds the column."""
        lengths = [p.detach().norm() for p in run.net.parameters()]
        run.values["weight_norm"] = float(torch.stack(lengths).norm())


def top2(preds: Tensor, targs: Tensor) -> Tensor:
    """Share of the rows whose target is among the two largest scores."""
    largest = preds.topk(2, dim=1).indices
    return (largest == targs.unsqueeze(1)).any(dim=1).float().mean()


class NoisyGradients(Stepper):
    """Adds noise to the gradients before each step."""

    def __init__(self, std: float = 0.01) -> None:
        self.std = std

    def backward(self, run: Run) -> None:
        """Adds the noise to what the ordinary step computes."""
        super().backward(run)
        for p in run.net.parameters():
            if p.grad is not None and self.std > 0:
                p.grad += self.std * torch.randn_like(p.grad)
