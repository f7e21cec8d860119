"""Any scheduler of torch.optim."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from ..callback import Callback, Run
from ..core import explain


class Schedule(Callback):
    """Steps a scheduler of `torch.optim.lr_scheduler` after each batch or each epoch.

    Args:
        make: Makes the scheduler from the optimizer, or the scheduler itself.
        step: `"batch"` or `"epoch"`. Batches whose step was skipped do not count.
        monitor: The column that `ReduceLROnPlateau` watches.

    Raises:
        ValueError: if `step` is neither.

    Examples:
        >>> from torch.optim.lr_scheduler import StepLR
        >>> from minifast.testing import example_fit
        >>> halve = Schedule(lambda opt: StepLR(opt, step_size=1, gamma=0.5), step="epoch")
        >>> history = example_fit([halve], epochs=2)
        >>> halve.scheduler.get_last_lr()
        [0.0125]
    """

    changes_training = True
    must_precede = ("Warmup",)

    def __init__(
        self, make: Callable[[Optimizer], Any] | Any, step: str, monitor: str = "val_loss"
    ) -> None:
        if step not in ("batch", "epoch"):
            raise ValueError(
                explain(
                    "step is neither batch nor epoch",
                    got=repr(step),
                    wanted="'batch' or 'epoch': when the scheduler counts",
                    fix="Schedule(make, step='epoch')",
                    entry="schedules",
                )
            )
        self.make, self.step, self.monitor = make, step, monitor
        self.scheduler: Any = None

    def on_train_begin(self, run: Run) -> None:
        """Makes the scheduler; one that was given goes on where it is."""
        self.scheduler = self.make if hasattr(self.make, "get_last_lr") else self.make(run.opt)

    def on_batch_end(self, run: Run) -> None:
        """Steps it, if it counts batches."""
        if self.step == "batch" and not run.skip_step:
            self.scheduler.step()

    def on_epoch_end(self, run: Run) -> None:
        """Steps it, if it counts epochs."""
        if self.step == "epoch":
            watches = isinstance(self.scheduler, ReduceLROnPlateau)
            self.scheduler.step(*[run.values[self.monitor]] if watches else [])

    def state_dict(self) -> dict[str, Any]:
        """The scheduler's own."""
        return {"scheduler": self.scheduler.state_dict() if self.scheduler else {}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Gives it back to the scheduler.

        Raises:
            ValueError: if it cannot step with it; other errors are its own.
        """
        self.scheduler.load_state_dict(state["scheduler"])
        _try_a_step(self.scheduler)


def _try_a_step(scheduler: Any) -> None:
    """Steps a copy of the scheduler, since torch takes any state and fails later."""
    if not isinstance(scheduler, LRScheduler):
        return
    if scheduler.last_epoch >= getattr(scheduler, "total_steps", math.inf) - 1:
        return  # a OneCycleLR that has come to its end does not step
    opt = copy.copy(scheduler.optimizer)
    opt.param_groups = [
        {name: v.clone() if isinstance(v, Tensor) else v for name, v in group.items()}
        for group in opt.param_groups
    ]
    trial: Any = copy.deepcopy(scheduler, {id(scheduler.optimizer): opt})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the order of calls
        trial.step(*[0.0] if isinstance(trial, ReduceLROnPlateau) else [])
    rates = [float(group["lr"]) for group in opt.param_groups]
    if not all(map(math.isfinite, rates)):
        raise ValueError(f"the scheduler's next learning rates are {rates}")
