"""Keep the best weights."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..callback import Callback, Run
from ..trained import Form, Trained, copied
from ._best import Best, check_monitor


class SaveBest(Callback):
    """Keeps the weights of the best epoch, in memory, and puts them back when training ends.

    However it ends: after the last epoch, by a stop, an error or Ctrl-C. Buffers (BatchNorm's
    averages) are kept with the weights, and so are those of a loss that is trained with the net.

    Args:
        monitor: The column of the table that tells which epoch is the best.
        mode: `"min"` or `"max"`: which values are better. None goes by the name, where its words
            tell: losses and errors fall, accuracies rise; any other name must have a mode.
        restore: Put them back; otherwise they are only kept, as `weights`.

    Raises:
        ValueError: if `mode` is neither, or not given where the column's name does not tell.
        KeyError: if there is no such column: before the first step, unless a callback may add it.

    Attributes:
        weights: The best epoch's `net.state_dict()`, copied; None before the first epoch.
        loss: The same epoch's `state_dict` of each module of the loss that training changes.
        best: Its `value` and `epoch`.

    Examples:
        >>> from minifast.testing import example_fit
        >>> keep = SaveBest("accuracy")
        >>> history = example_fit([keep], epochs=3)
        >>> keep.best.value == max(history["accuracy"])
        True
    """

    changes_training = True

    def __init__(
        self, monitor: str = "val_loss", mode: str | None = None, restore: bool = True
    ) -> None:
        self.monitor, self.mode, self.restore = monitor, mode, restore
        self.best = Best(monitor, mode)
        self.weights: dict[str, Any] | None = None
        self.loss: dict[str, dict[str, Any]] = {}

    def on_train_begin(self, run: Run) -> None:
        """Forgets an earlier fit; refuses a column that the table will not have."""
        check_monitor(run, self.monitor)
        self.best = Best(self.monitor, self.mode)
        self.weights, self.loss = None, {}
        self.forms = {name: Form(each) for name, each in _loss(run).items()}
        self.form = Form(run.net)

    def on_epoch_end(self, run: Run) -> None:
        """Copies the weights, if the epoch was the best."""
        if self.best.improves(run.epoch, run.values):
            self.weights = copied(run.net.state_dict())
            self.loss = {name: copied(each.state_dict()) for name, each in _loss(run).items()}

    def on_train_end(self, run: Run) -> None:
        """Puts them back."""
        if self.restore and self.weights is not None:
            run.net.load_state_dict(self.weights)
            for name, each in _loss(run).items():
                each.load_state_dict(self.loss[name])

    def state_dict(self) -> dict[str, Any]:
        """The best value, its epoch and its weights."""
        state = {"value": self.best.value, "epoch": self.best.epoch}
        return {**state, "weights": self.weights or {}, "loss": self.loss}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from them.

        Raises:
            ValueError: if they are not weights of the net and the loss.
        """
        self.form.check(state["weights"])
        for name, form in self.forms.items() if state["weights"] else ():
            form.check(state["loss"][name])
        self.best.value, self.best.epoch = state["value"], state["epoch"]
        self.weights, self.loss = state["weights"] or None, state["loss"]


def _loss(run: Run) -> dict[str, nn.Module]:
    return Trained(run.net, run.crit, run.opt).loss
