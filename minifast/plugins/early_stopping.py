"""Stop when nothing gets better."""

from __future__ import annotations

from typing import Any

from ..callback import Callback, Run
from ._best import Best, check_monitor


class EarlyStopping(Callback):
    """Stops when a column of the table has not improved for some epochs.

    Args:
        monitor: The column.
        patience: Epochs without progress that are borne.
        min_delta: By how much a value must be better to be progress.
        mode: `"min"` or `"max"`: which values are better. None goes by the name, where its words
            tell: losses and errors fall, accuracies rise; any other name must have a mode.

    Raises:
        ValueError: if `mode` is neither, or not given where the column's name does not tell.
        KeyError: if there is no such column: before the first step, unless a callback may add it.

    Examples:
        >>> from minifast.testing import example_fit
        >>> history = example_fit([EarlyStopping(patience=1, min_delta=10)], epochs=9)
        >>> len(history), history.stopped
        (2, 'no progress of val_loss for 1 epoch')
    """

    def __init__(
        self,
        monitor: str = "val_loss",
        patience: int = 5,
        min_delta: float = 0.0,
        mode: str | None = None,
    ) -> None:
        self.monitor, self.patience, self.min_delta, self.mode = monitor, patience, min_delta, mode
        self.best = Best(monitor, mode, min_delta)

    def on_train_begin(self, run: Run) -> None:
        """Forgets an earlier fit; refuses a column that the table will not have."""
        check_monitor(run, self.monitor)
        self.best = Best(self.monitor, self.mode, self.min_delta)

    def on_epoch_end(self, run: Run) -> None:
        """Asks to stop, if it is time."""
        better = self.best.improves(run.epoch, run.values)
        if not better and run.epoch - self.best.epoch >= self.patience:
            epochs = f"{self.patience} epoch" + "s" * (self.patience != 1)
            run.stop(f"no progress of {self.monitor} for {epochs}")

    def state_dict(self) -> dict[str, Any]:
        """The best value and its epoch."""
        return {"value": self.best.value, "epoch": self.best.epoch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from them."""
        self.best.value, self.best.epoch = state["value"], state["epoch"]
