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
from ._monitor import check_monitor, monitored_value


class Schedule(Callback):
    """Steps a scheduler of `torch.optim.lr_scheduler` after each batch or each epoch.

    The learning rates are those of a loop that calls `scheduler.step()`, also with `Warmup` in the
    list. As in such a loop, the optimizer keeps the scheduler's last learning rate when training
    ends, and several schedulers over one optimizer each step in the order of the list.

    Args:
        make: Makes the scheduler from the optimizer, such as a class of schedulers; or the
            scheduler itself, which must be of the optimizer that `fit` is given.
        step: `"batch"` or `"epoch"`. Batches whose step was skipped do not count.
        monitor: The column that `ReduceLROnPlateau` watches.

    Raises:
        TypeError, ValueError: if an argument is not one of these; when training begins, if the
            scheduler is of another optimizer, or watches a column by the batch.
        KeyError: if there is no column `monitor`: when training begins, where that is known.

    Examples:
        >>> from torch.optim.lr_scheduler import StepLR
        >>> from minifast.testing import example_fit
        >>> halve = Schedule(lambda opt: StepLR(opt, step_size=1, gamma=0.5), step="epoch")
        >>> history = example_fit([halve], epochs=2)
        >>> halve.scheduler.get_last_lr()
        [0.0125]
    """

    changes_training = True

    def __init__(
        self, make: Callable[[Optimizer], Any] | Any, step: str, monitor: str = "val_loss"
    ) -> None:
        if step not in ("batch", "epoch"):
            raise ValueError(
                _text(
                    f"step must be 'batch' or 'epoch', got {step!r}",
                    got=repr(step),
                    wanted="'batch' or 'epoch': when the scheduler counts",
                )
            )
        if isinstance(make, Optimizer) or not (callable(make) or hasattr(make, "step")):
            raise TypeError(_no_scheduler(make))
        self.make, self.step, self.monitor = make, step, monitor
        self.scheduler: Any = None
        self.due = False

    def on_train_begin(self, run: Run) -> None:
        """Makes the scheduler; one that was given continues where it is."""
        self.scheduler, self.due = None, False
        made = isinstance(self.make, type) or not hasattr(self.make, "step")
        scheduler: Any = self.make(run.opt) if made else self.make
        if not hasattr(scheduler, "step"):
            raise TypeError(_no_scheduler(scheduler))
        if getattr(scheduler, "optimizer", run.opt) is not run.opt:
            raise ValueError(
                _text(
                    "the scheduler is of another optimizer: it would change nothing here",
                    got=f"{_name(scheduler)} of another {_name(scheduler.optimizer)}",
                    wanted="a scheduler of the optimizer that fit is given",
                    fix=f"Schedule(lambda opt: {_name(scheduler)}(opt, ...), step={self.step!r})",
                )
            )
        if isinstance(scheduler, ReduceLROnPlateau):
            if self.step == "batch":
                raise ValueError(
                    _text(
                        "ReduceLROnPlateau cannot step after each batch",
                        got="step='batch'",
                        wanted="step='epoch': it watches a column, with a value for each epoch",
                        fix="Schedule(ReduceLROnPlateau, step='epoch')",
                    )
                )
            check_monitor(run, self.monitor)
        self.scheduler = scheduler

    def on_batch_end(self, run: Run) -> None:
        """Steps it if it counts batches, when every handler has run and the batch is done."""
        if self.step == "batch" and not run.skip_step:
            self.due = True
            run.after(self._step)

    def _step(self, run: Run) -> None:
        self.due = False
        self.scheduler.step()

    def on_epoch_end(self, run: Run) -> None:
        """Steps it, if it counts epochs."""
        if self.step == "epoch":
            watches = isinstance(self.scheduler, ReduceLROnPlateau)
            self.scheduler.step(*[monitored_value(run.values, self.monitor)] if watches else [])

    def state_dict(self) -> dict[str, Any]:
        """The scheduler's own, and whether the batch's step is still to come."""
        own = self.scheduler.state_dict() if self.scheduler else {}
        return {"scheduler": own, "due": self.due}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Gives it to the scheduler, and steps if the state was taken before the batch's step.

        Raises:
            ValueError: if it cannot step with it; other errors are its own.
        """
        self.scheduler.load_state_dict(state["scheduler"])
        _try_a_step(self.scheduler)
        if state["due"]:
            with warnings.catch_warnings():
                # The optimizer has stepped, in the run that the state is of.
                warnings.filterwarnings("ignore", message=".*lr_scheduler.step.*")
                self.scheduler.step()


def _try_a_step(scheduler: Any) -> None:
    """Steps a copy of the scheduler, since torch takes any state and fails later."""
    if not isinstance(scheduler, LRScheduler):
        return
    done: float = getattr(scheduler, "last_epoch", -1)  # a ChainedScheduler does not count
    if done >= getattr(scheduler, "total_steps", math.inf) - 1:
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


def _name(value: Any) -> str:
    return type(value).__name__


def _no_scheduler(value: Any) -> str:
    return _text(
        f"Schedule needs a scheduler, or a function that makes one, got {_name(value)}",
        got=repr(value).split("\n")[0],
        wanted="a function of the optimizer that returns a scheduler, or a scheduler",
    )


FIX = "Schedule(lambda opt: StepLR(opt, step_size=1), step='epoch')"


def _text(problem: str, *, got: str, wanted: str, fix: str = FIX) -> str:
    return explain(problem, got=got, wanted=wanted, fix=fix, entry="schedules")
