"""Which learning rate to take."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor, nn
from torch.optim import Optimizer

from ..callback import Callback, Run
from ..core import set_lrs
from ..dataset import ModelData
from ..model import fit
from ..trained import preserve_state

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DIVERGED = 4.0  # times the best smoothed loss
SURE = 10  # batches before a loss can be the best: the first ones say little


@dataclass(frozen=True)
class LRFind:
    """What `lr_find` found.

    Attributes:
        lrs: The rates that were tried, rising.
        losses: The smoothed training loss at each.
        suggestion: The rate at which the loss falls most steeply over the logarithm of the rate.
    """

    lrs: list[float]
    losses: list[float]
    suggestion: float

    def plot(self) -> Figure:
        """Draws the losses over the rates, with the suggestion."""
        from ..plots import plot_lr_find

        return plot_lr_find(self.lrs, self.losses, self.suggestion)


class _Finder(Callback):
    """Raises the rate from batch to batch until the loss runs away."""

    def __init__(self, start_lr: float, end_lr: float, steps: int) -> None:
        self.start_lr, self.steps = start_lr, steps
        self.ratio = end_lr / start_lr
        self.lrs: list[float] = []
        self.losses: list[float] = []

    def on_batch_begin(self, run: Run) -> None:
        """Sets this batch's learning rate, after what other callbacks set and scale."""
        self.lrs.append(self.start_lr * self.ratio ** (run.step / max(self.steps - 1, 1)))
        run.after(lambda run: set_lrs(run.opt, self.lrs[-1]))

    def on_batch_end(self, run: Run) -> None:
        """Notes the loss, and asks to stop when it has seen enough."""
        if not run.running_loss.count and not run.running_loss.is_bad():
            self.lrs.pop()  # no label of the batches so far counted
            return
        loss = run.running_loss.value()
        best = min(self.losses[SURE - 1 :], default=math.inf)
        if math.isnan(loss) or loss > DIVERGED * best:
            self.lrs.pop()  # of the rate that broke it nothing is recorded
            run.stop("the loss runs away")
        else:
            self.losses.append(loss)
        if run.step >= self.steps:
            run.stop("all rates tried")


def lr_find(
    net: nn.Module,
    data: ModelData,
    crit: Callable[..., Tensor],
    opt: Optimizer,
    *,
    start_lr: float = 1e-6,
    end_lr: float = 10.0,
    steps: int = 100,
    **options: Any,
) -> LRFind:
    """Tries learning rates from small to large, a batch each, to see where the loss falls fastest.

    Smith 2017, "Cyclical Learning Rates", [arXiv:1506.01186](https://arxiv.org/abs/1506.01186).
    Afterwards the weights, buffers and gradients of net and loss, optimizer, stepper, random
    generators and modes are, to the bit, what they were, also after an error; no file is written. A
    lazy net that had no weights yet keeps fresh ones.

    Args:
        net: The net.
        data: Its `trn_dl` is gone through as often as needed.
        crit: The loss.
        opt: The optimizer; all its groups get the same rate.
        start_lr: The first rate.
        end_lr: The last rate, unless the loss runs away before.
        steps: How many rates.
        **options: As for `fit`: `callbacks`, `stepper`.

    Returns:
        The rates, the losses and a suggestion; `.plot()` draws them.

    Raises:
        ValueError: if the loss runs away at once.

    Examples:
        >>> from minifast.testing import example_data, example_net
        >>> import torch
        >>> net = example_net()
        >>> opt = torch.optim.SGD(net.parameters(), lr=0.1)
        >>> found = lr_find(net, example_data(), nn.NLLLoss(), opt)
        >>> 1e-6 <= found.suggestion <= 10
        True
    """
    finder = _Finder(start_lr, end_lr, steps)
    options["callbacks"] = [*options.get("callbacks", ()), finder]
    batches = ModelData(data.path, data.trn_dl)
    with preserve_state(net, crit, opt, data.trn_dl, options.get("stepper")):
        fit(net, batches, steps, crit, opt, progress=False, **options)  # stops after `steps`
    n = len(finder.losses)
    if n < 3:
        raise ValueError(f"the loss runs away at once: begin below start_lr={start_lr:g}")
    slope = np.gradient(finder.losses, np.log(finder.lrs[:n]))
    return LRFind(finder.lrs[:n], finder.losses, finder.lrs[int(slope.argmin())])
