"""What every average of the weights does the same way."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from ..callback import Callback, Run
from ..trained import Form, copied


class Averaged(Callback):
    """Base of `EMA` and `SWA`: validates, and ends, with an average of the weights.

    From `on_validate_begin` until the next epoch begins the net holds the average, so that the
    metrics are the average's and who saves weights in `on_epoch_end` saves what was validated.
    After training it holds the average. Buffers (BatchNorm's averages) are averaged like weights
    if they are real or complex floats; integers, and what is not a tensor, are copied.
    """

    changes_training = True
    must_precede = ("SaveBest",)
    conflicts_with = ("Averaged",)

    def __init__(self) -> None:
        self.average: dict[str, Any] = {}
        self.trained: dict[str, Any] = {}

    def weight(self, run: Run) -> float | None:
        """How much of the weights goes into the average now; None for not at all."""
        raise NotImplementedError

    def on_train_begin(self, run: Run) -> None:
        """Forgets an earlier fit."""
        self.average, self.trained = {}, {}
        self.form = Form(run.net)

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
            self.average = copied(state)
            return
        for name, t in state.items():
            if isinstance(t, Tensor) and (t.is_floating_point() or t.is_complex()):
                self.average[name].lerp_(t, weight)
            elif isinstance(t, Tensor):
                self.average[name].copy_(t)
            else:  # of `get_extra_state`
                self.average[name] = copy.deepcopy(t)

    def put_in(self, net: nn.Module) -> None:
        """Swaps the average in, once."""
        if self.average and not self.trained:
            self.trained = copied(net.state_dict())
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
        """Continues from them.

        Raises:
            ValueError: if they are not weights of the net.
        """
        for weights in state["average"], state["trained"]:
            self.form.check(weights)
        self.average, self.trained = dict(state["average"]), dict(state["trained"])
