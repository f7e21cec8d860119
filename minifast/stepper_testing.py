"""The clauses of the contract that hold for steppers, as checks that their authors run."""

from __future__ import annotations

import gc
import math
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .callback import Callback, Run
from .checkpoint import snapshot
from .stepper import Stepper
from .trial import INTERRUPTED, At, Result, assert_left_alone, assert_plain, same, trial_fit

__all__ = ["STEPPER_CHECKS"]

Make = Callable[[], Stepper]


def _fit(stepper: Stepper, *callbacks: Callback, **options: Any) -> Result:
    """A fit with the stepper, which may be a callback as well."""
    own = [stepper] if isinstance(stepper, Callback) else []
    return trial_fit([*own, *callbacks], stepper=stepper, **options)


def _gradients(run: Run) -> list[Tensor]:
    return [p.grad for p in run.net.parameters() if p.grad is not None]


def check_stepper_learns(make: Make) -> None:
    """A fit with it comes to its end, with validation data and without, and changes weights."""
    for validate in True, False:
        stepper = make()
        before = trial_fit([At(1, lambda run: run.stop("the first weights"))], lr=0.0)
        result = _fit(stepper, validate=validate)
        moved = [name for name, p in result.net.named_parameters()
                 if not torch.equal(p, before.weights[name])]  # fmt: skip
        assert moved, f"{stepper!r} changes no parameter of the net: call run.opt.step() in update"
        losses = result.history["trn_loss"]
        assert all(map(math.isfinite, losses)), f"{stepper!r} returns losses that are not finite"


def check_stepper_fires_events(make: Make) -> None:
    """Each batch fires `on_backward_begin` and then `on_backward_end`, once each.

    The first has predictions and a loss, the second gradients. Without them `MixUp`, `GradClip` and
    the like would silently do nothing.
    """
    stepper = make()
    fired: list[str] = []

    class Watch(Callback):
        def on_backward_begin(self, run: Run) -> None:
            there = isinstance(run.loss, Tensor) and run.preds is not None
            assert there, f"{stepper!r} fires on_backward_begin without run.preds and run.loss"
            fired.append("on_backward_begin")

        def on_backward_end(self, run: Run) -> None:
            assert _gradients(run), f"{stepper!r} fires on_backward_end without gradients"
            fired.append("on_backward_end")

        def on_batch_end(self, run: Run) -> None:
            once = ["on_backward_begin", "on_backward_end"]
            assert fired == once, (
                f"{stepper!r} fires {', '.join(fired) or 'no event'} in a batch: call "
                "events.on_backward_begin(run) and events.on_backward_end(run) once each in step"
            )
            fired.clear()

    _fit(stepper, Watch(), epochs=1)


class _Scaled(Callback):
    """Multiplies the loss, also in a second pass, and notes the gradients of the first batch."""

    changes_training = True
    gradient: Any = None

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def transform_loss(self, run: Run, preds: Any, loss: Any) -> Any:
        return loss * self.factor

    def on_backward_begin(self, run: Run) -> None:
        run.loss = self.transform_loss(run, run.preds, run.loss)

    def on_backward_end(self, run: Run) -> None:
        self.gradient = torch.cat([g.flatten() for g in _gradients(run)])
        run.stop("one batch is enough")


def check_stepper_takes_the_loss_of_callbacks(make: Make) -> None:
    """What it differentiates is `run.loss` as callbacks left it, in a second pass too.

    So the opposite loss has opposite gradients: they are apart by twice their length, or by that of
    the plain step's, where the stepper adds something that is longer.
    """
    stepper = make()
    up, down, plain = (_Scaled(factor) for factor in (1.0, -1.0, 1.0))
    for each, scaled in (stepper, up), (make(), down), (Stepper(), plain):
        _fit(each, scaled, epochs=1)
    if any(scaled.gradient is None for scaled in (up, down)):
        return  # it does not fire the event, which is another clause
    size = min(float(scaled.gradient.norm()) for scaled in (up, plain))
    assert float((up.gradient - down.gradient).norm()) > size, (
        f"{stepper!r} does not differentiate run.loss as callbacks left it; that of a second pass "
        "is run.objective(preds)"
    )


def check_stepper_honors_requests(make: Make) -> None:
    """With `run.skip_step` no weight changes, and with `run.keep_grads` gradients are added.

    Or else it raises an error.
    """
    skipped = make()
    before: dict[str, Tensor] = {}
    asked: list[int] = []

    class Skips(Callback):
        def on_train_begin(self, run: Run) -> None:
            before.update((name, p.detach().clone()) for name, p in run.net.named_parameters())

        def on_backward_end(self, run: Run) -> None:
            asked.append(run.batch)
            run.skip_step = True

    result = _fit(skipped, Skips(), epochs=1, expect=Exception)
    changed = [
        name
        for name, p in result.net.named_parameters()
        if asked and not torch.allclose(p, before[name], atol=1e-6)  # moved and moved back is fine
    ]
    assert result.error is not None or not changed, (
        f"{skipped!r} steps although run.skip_step is set: look at it before update, or raise an "
        "error if it cannot be honored"
    )
    keeps = make()
    lost: list[Tensor] = []

    class Keeps(Callback):
        changes_training = True

        def transform_loss(self, run: Run, preds: Any, loss: Any) -> Any:
            return loss * 0

        def on_backward_begin(self, run: Run) -> None:
            run.loss, run.keep_grads = self.transform_loss(run, run.preds, run.loss), True
            for p in run.net.parameters():
                p.grad = torch.full_like(p, 1000.0)

        def on_backward_end(self, run: Run) -> None:
            run.skip_step = True
            lost.extend(p for p in run.net.parameters() if p.grad is None or p.grad.min() < 500)

    result = _fit(keeps, Keeps(), epochs=1, expect=Exception)
    assert result.error is not None or not lost, (
        f"{keeps!r} loses gradients although run.keep_grads is set: call zero_grad only without "
        "it, and add those of a second pass; or raise an error if it cannot be honored"
    )


def check_stepper_resumes_exactly(make: Make) -> None:
    """Interrupted between and inside epochs and resumed with fresh objects, a fit ends the same."""
    states: dict[str, dict[str, Any]] = {}

    class Keep(Callback):
        def on_epoch_begin(self, run: Run) -> None:
            if run.epoch == 1:
                self.keep(run)

        def on_batch_end(self, run: Run) -> None:
            if run.step in INTERRUPTED:
                run.after(self.keep)

        def keep(self, run: Run) -> None:
            assert_plain(stepper)
            states[f"after {run.step} batches"] = snapshot(run)

    stepper = make()
    whole = _fit(stepper, Keep())
    hint = "return what it needs to continue from state_dict, and take it in load_state_dict"
    for where, state in states.items():
        resumed = _fit(make(), Callback(), resume=state)
        alike = repr(list(whole.history)) == repr(list(resumed.history))
        assert same(whole, resumed) and alike, (
            f"{stepper!r}, resumed {where}, gives other weights or another history: {hint}"
        )


def check_stepper_keeps_no_graph(make: Make) -> None:
    """Nothing of a batch's graph lives on: it would fill the memory in a long epoch."""
    stepper = make()
    kept: list[weakref.ref[Tensor]] = []

    class Spy(Callback):
        def on_batch_end(self, run: Run) -> None:
            kept.extend(weakref.ref(t) for t in (run.preds, run.loss))

        def on_epoch_end(self, run: Run) -> None:
            run.preds = run.loss = None

    _fit(stepper, Spy(), epochs=1)
    gc.collect()
    alive = sum(ref() is not None for ref in kept)
    assert not alive, f"{stepper!r} keeps {alive} tensors with their graphs: keep t.detach()"


def check_stepper_leaves_nothing(make: Make) -> None:
    """After a fit, a stop or an error of a callback nothing of it is left in the net."""

    class ElsewhereError(Exception):
        pass

    def fail(run: Run) -> None:
        raise ElsewhereError

    for also in (), (At(3, lambda run: run.stop("enough")),), (At(3, fail),):
        stepper = make()
        result = _fit(stepper, *also, expect=Exception)
        wrong = result.error is not None and not isinstance(result.error, ElsewhereError)
        assert not wrong, f"{stepper!r} replaces an error by {result.error!r}"
        assert_left_alone(stepper, result)


def check_stepper_names_itself(make: Make) -> None:
    """Its `repr` says what it is in at most 1,000 characters, and its class has a docstring."""
    stepper = make()
    name, shown, own = type(stepper).__name__, repr(stepper), type(stepper).__doc__
    assert shown.startswith(name), f"{shown} does not begin with {name}"
    assert len(shown) <= 1000, f"{name}'s repr has {len(shown)} characters: it goes into messages"
    assert own and (own != Stepper.__doc__ or type(stepper) is Stepper), (
        f"{name} has no docstring: say in a line what it does"
    )


STEPPER_CHECKS: tuple[Callable[[Make], None], ...] = (
    check_stepper_learns,
    check_stepper_fires_events,
    check_stepper_takes_the_loss_of_callbacks,
    check_stepper_honors_requests,
    check_stepper_resumes_exactly,
    check_stepper_keeps_no_graph,
    check_stepper_leaves_nothing,
    check_stepper_names_itself,
)
"""The checks for steppers, in the order in which `check` runs them."""
