"""What every average of the weights does the same way."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..callback import Callback, Run


class Averaged(Callback):
    """Base of `EMA` and `SWA`: validates, and ends, with an average of the weights.

    From `on_validate_begin` until the next epoch begins the net holds the average, so that the
    metrics are the average's and who saves weights in `on_epoch_end` saves what was validated.
    After training it holds the average. Buffers (BatchNorm's averages) are averaged like weights
    if they are floats, and copied if not.
    """

    changes_training = True
    must_precede = ("SaveBest",)
    conflicts_with = ("Averaged",)

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
