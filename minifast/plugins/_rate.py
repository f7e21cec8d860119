"""What every schedule of the learning rate does the same way."""

from __future__ import annotations

import warnings
from typing import Any

from ..callback import Callback, Run
from ..core import set_lrs


class RateSchedule(Callback):
    """Base of schedules: `factor` gives the part of each group's learning rate for a batch.

    The learning rates that the optimizer has when training begins are the measure, and it has them
    again when training ends. The course is laid out when training begins. If the fit then has more
    batches, the last value is held; if it has more or fewer, a warning says so at its end.
    """

    changes_training = True
    conflicts_with = ("RateSchedule", "Schedule")

    def __init__(self) -> None:
        self.rates: list[float] = []
        self.total = 0  # batches of the fit
        self.length = 0.0  # batches by which the course is laid out
        self._before: list[float] = []

    def factor(self, step: int) -> float:
        """The part of the learning rate for the batch number `step` of the fit, from 0."""
        raise NotImplementedError

    def on_train_begin(self, run: Run) -> None:
        """Takes the length from the fit, and the learning rates from the optimizer."""
        self._before = []  # an earlier fit's must not be restored, should this one fail here
        self.length = self.total = total_steps(run, type(self).__name__)
        self.rates = self._before = lrs(run)

    def on_batch_begin(self, run: Run) -> None:
        """Sets the learning rates for this batch."""
        factor = self.factor(self.place(run))
        set_lrs(run.opt, [rate * factor for rate in self.rates])

    def place(self, run: Run) -> int:
        """The batch's number in the course: past its end it stays at the last one."""
        return min(run.step, self.total - 1)

    def on_train_end(self, run: Run) -> None:
        """Restores the optimizer's learning rates."""
        if not self._before:
            return
        before, self._before = self._before, []
        set_lrs(run.opt, before)
        ended = run.stopped is None and 0 < len(run.history) == run.epochs
        if ended and run.step != self.total:
            held = "its last learning rate was held" if run.step > self.total else "it was cut off"
            warnings.warn(
                f"{type(self).__name__} was laid out for the {self.total} batches that trn_dl "
                f"announced when training began, and the fit had {run.step}: {held}",
                stacklevel=2,
            )

    def state_dict(self) -> dict[str, Any]:
        """By how many batches the course is laid out."""
        return {"length": self.length}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Warns if the course is another one here: the learning rate jumps."""
        if state["length"] != self.length:
            warnings.warn(
                f"{type(self).__name__} was laid out for {state['length']:g} batches when the "
                f"checkpoint was written, and is now for {self.length:g}: the learning rate jumps",
                stacklevel=2,
            )


def lrs(run: Run) -> list[float]:
    """The learning rate of each parameter group."""
    return [float(group["lr"]) for group in run.opt.param_groups]


def total_steps(run: Run, who: str) -> int:
    """The batches of the whole fit.

    Raises:
        ValueError: if the loader does not know how many it has.
    """
    if run.n_batches is None:
        raise ValueError(
            f"{who} shares its course over the batches of the fit, and trn_dl has no length: "
            "give the loader a __len__, or use Schedule with a torch scheduler"
        )
    return max(run.n_batches * run.epochs, 1)
