"""What every schedule of the learning rate does the same way."""

from __future__ import annotations

from ..callback import Callback, Run
from ..core import set_lrs


class RateSchedule(Callback):
    """Base of schedules: `factor` says what part of each group's rate a batch is learned with.

    The rates that the optimizer has when training begins are the measure, and it has them again
    when training ends.
    """

    changes_training = True
    must_precede = ("Warmup",)

    def __init__(self) -> None:
        self.rates: list[float] = []

    def factor(self, run: Run) -> float:
        """The part of the rate for the batch number `run.step` of the fit."""
        raise NotImplementedError

    def on_train_begin(self, run: Run) -> None:
        """Notes the rates."""
        self.rates = lrs(run)

    def on_batch_begin(self, run: Run) -> None:
        """Sets the rates for this batch."""
        factor = self.factor(run)
        set_lrs(run.opt, [rate * factor for rate in self.rates])

    def on_train_end(self, run: Run) -> None:
        """Gives the optimizer its rates back."""
        if self.rates:
            set_lrs(run.opt, self.rates)


def lrs(run: Run) -> list[float]:
    """The rate of each parameter group."""
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
