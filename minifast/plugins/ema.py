"""Averages of the weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..callback import Callback, Run
from ..core import explain


class Averaged(Callback):
    """Base of `EMA` and `SWA`: validates, and ends, with an average of the weights.

    From `on_validate_begin` until the next epoch begins the net holds the average, so that the
    metrics are the average's and who saves weights in `on_epoch_end` saves what was validated.
    After training it holds the average. Buffers (BatchNorm's averages) are averaged like weights
    if they are floats, and copied if not.
    """

    changes_training = True
    must_precede = ("SaveBest",)

    def __init__(self) -> None:
        self.average: dict[str, Tensor] = {}
        self.trained: dict[str, Tensor] = {}

    def weight(self, run: Run) -> float | None:
        """How much of the weights goes into the average now; None for not at all."""
        raise NotImplementedError

    def on_train_begin(self, run: Run) -> None:
        """Forgets an earlier fit."""
        self.average, self.trained = {}, {}

    def on_epoch_begin(self, run: Run) -> None:
        """Goes on training with the weights themselves."""
        self.put_back(run.net)

    def on_validate_begin(self, run: Run) -> None:
        """Puts the average in the net."""
        self.put_in(run.net)

    def on_train_end(self, run: Run) -> None:
        """Leaves the average in the net."""
        self.put_in(run.net)
        self.trained = {}

    @torch.no_grad()
    def take(self, run: Run) -> None:
        """Takes the weights into the average."""
        weight = self.weight(run)
        if weight is None:
            return
        state = run.net.state_dict()
        if not self.average:
            self.average = {name: t.detach().clone() for name, t in state.items()}
            return
        for name, t in state.items():
            if t.is_floating_point():
                self.average[name].lerp_(t, weight)
            else:
                self.average[name].copy_(t)

    def put_in(self, net: nn.Module) -> None:
        """Swaps the average in, once."""
        if self.average and not self.trained:
            self.trained = {name: t.detach().clone() for name, t in net.state_dict().items()}
            net.load_state_dict(self.average)

    def put_back(self, net: nn.Module) -> None:
        """Swaps the trained weights back in."""
        if self.trained:
            net.load_state_dict(self.trained)
            self.trained = {}

    def state_dict(self) -> dict[str, Any]:
        """The average, and the trained weights while the net holds the average."""
        return {"average": self.average, "trained": self.trained}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from them."""
        self.average, self.trained = dict(state["average"]), dict(state["trained"])


class EMA(Averaged):
    """Exponential moving average of the weights: after each step `avg += (1 - decay) * (w - avg)`.

    Args:
        decay: How much of the average stays at each step.

    Raises:
        ValueError: if `decay` is not in 0..1.

    Examples:
        >>> from minifast.testing import example_fit
        >>> history = example_fit([EMA(decay=0.9)])
    """

    def __init__(self, decay: float = 0.999) -> None:
        if not 0 <= decay < 1:
            raise ValueError(
                explain(
                    "decay is out of range",
                    got=repr(decay),
                    wanted="0 or more, below 1",
                    fix="EMA(decay=0.999)",
                    entry="averages",
                )
            )
        super().__init__()
        self.decay = decay

    def weight(self, run: Run) -> float:
        """The same at every step."""
        return 1 - self.decay

    def on_batch_end(self, run: Run) -> None:
        """Takes the weights into the average, if the batch changed them."""
        if not run.skip_step:
            self.take(run)


class SWA(Averaged):
    """Stochastic weight averaging: the mean of the weights at the ends of epochs.

    Izmailov et al. 2018, "Averaging Weights Leads to Wider Optima and Better Generalization",
    [arXiv:1803.05407](https://arxiv.org/abs/1803.05407). BatchNorm's averages are averaged too.

    Args:
        start: The first epoch, from 0, whose weights count.

    Examples:
        >>> from minifast.testing import example_fit
        >>> history = example_fit([SWA(start=1)], epochs=3)
    """

    def __init__(self, start: int = 0) -> None:
        super().__init__()
        self.start = start
        self.count = 0

    def weight(self, run: Run) -> float | None:
        """One over the number of epochs so far."""
        return 1 / (self.count + 1) if run.epoch >= self.start else None

    def on_train_begin(self, run: Run) -> None:
        """Forgets an earlier fit."""
        super().on_train_begin(run)
        self.count = 0

    def on_validate_begin(self, run: Run) -> None:
        """Takes the epoch's weights into the mean and puts it in the net."""
        self._take_once(run)
        super().on_validate_begin(run)

    def on_epoch_end(self, run: Run) -> None:
        """Takes them here, where there is no validation."""
        if not self.trained:
            self._take_once(run)

    def _take_once(self, run: Run) -> None:
        if run.epoch >= self.start:
            self.take(run)
            self.count += 1

    def state_dict(self) -> dict[str, Any]:
        """The mean, and of how many epochs it is."""
        return {**super().state_dict(), "count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from them."""
        super().load_state_dict(state)
        self.count = state["count"]
