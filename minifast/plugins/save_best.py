"""Keep the best weights."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..callback import Callback, Run
from ._best import Best, check_monitor


class SaveBest(Callback):
    """Keeps the weights of the best epoch, in memory, and puts them back when training ends.

    However it ends: after the last epoch, by a stop, an error or Ctrl-C. Buffers (BatchNorm's
    averages) are kept with the weights.

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
        self.weights: dict[str, Tensor] | None = None

    def on_train_begin(self, run: Run) -> None:
        """Forgets an earlier fit; refuses a column that the table will not have."""
        check_monitor(run, self.monitor)
        self.best = Best(self.monitor, self.mode)
        self.weights = None

    def on_epoch_end(self, run: Run) -> None:
        """Copies the weights, if the epoch was the best."""
        if self.best.improves(run.epoch, run.values):
            self.weights = {name: t.detach().clone() for name, t in run.net.state_dict().items()}

    def on_train_end(self, run: Run) -> None:
        """Puts them back."""
        if self.restore and self.weights is not None:
            run.net.load_state_dict(self.weights)

    def state_dict(self) -> dict[str, Any]:
        """The best value, its epoch and its weights."""
        return {"value": self.best.value, "epoch": self.best.epoch, "weights": self.weights or {}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from them."""
        self.best.value, self.best.epoch = state["value"], state["epoch"]
        self.weights = state["weights"] or None
