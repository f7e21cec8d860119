"""The kit: what every callback must hold to, as checks that its author runs.

    from minifast.testing import CHECKS, check

    check(lambda: MyCallback(3))                 # all of them

    @pytest.mark.parametrize("each", CHECKS)     # or one test for each
    def test_my_callback_keeps_the_contract(each):
        each(lambda: MyCallback(3))

Each check is one clause of the contract. It is given a function that makes a fresh callback, and
raises an `AssertionError` that says in words what is wrong.
"""

from __future__ import annotations

import gc
import random
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .callback import Callback, Run
from .checkpoint import snapshot
from .dataset import ImageClassifierData
from .history import History
from .metrics import accuracy
from .model import fit
from .storage import as_data

__all__ = ["CHECKS", "check", "example_data", "example_fit", "example_net"]

Make = Callable[[], Callback]

INTERRUPTED = 1, 6, 11, 15  # of two epochs of 8 batches; not all even, or multiples of three


# ---- a small problem ---------------------------------------------------------------------


def example_data(rows: int = 90, seed: int = 0) -> ImageClassifierData:
    """Three classes of six features, two thirds to train on: 8 batches of 8, the last one short.

    Examples:
        >>> md = example_data()
        >>> len(md.trn_dl), md.c
        (8, 3)
    """
    rng = np.random.default_rng(seed)
    centres = 2 * rng.normal(size=(3, 6))
    y = np.arange(rows) % 3
    x = (centres[y] + rng.normal(size=(rows, 6))).astype(np.float32)
    n = rows * 2 // 3
    return ImageClassifierData.from_arrays(".", (x[:n], y[:n]), (x[n:], y[n:]), bs=8)


def example_net() -> nn.Sequential:
    """A net for `example_data`, with dropout and BatchNorm.

    Examples:
        >>> example_net()(torch.zeros(2, 6)).shape
        torch.Size([2, 3])
    """
    layers = nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 3)
    return nn.Sequential(*layers, nn.LogSoftmax(dim=1))


def example_fit(
    callbacks: Sequence[Callback], epochs: int = 1, lr: float = 0.05, **options: Any
) -> History:
    """Fits `example_net` to `example_data` by SGD with momentum, from seed 0.

    The world's random generators are as before afterwards.

    Examples:
        >>> len(example_fit([], epochs=2))
        2
    """
    return _fit(callbacks, epochs, lr, **options).history


class _Result:
    """How a fit ended."""

    def __init__(self, net: nn.Module, opt: torch.optim.Optimizer) -> None:
        self.net, self.opt = net, opt
        self.history = History()
        self.weights: dict[str, Tensor] = {}
        self.rng: list[object] = []
        self.error: BaseException | None = None


def _fit(
    callbacks: Sequence[Callback],
    epochs: int = 2,
    lr: float = 0.05,
    expect: type[BaseException] | None = None,
    validate: bool = True,
    **options: Any,
) -> _Result:
    state = random.getstate(), np.random.get_state(legacy=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)
        net, data = example_net(), example_data()
        if not validate:
            data.val_dl = None
        opt = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9)
        result = _Result(net, opt)
        metrics = [accuracy]
        try:
            result.history = fit(
                net, data, epochs, nn.NLLLoss(), opt, metrics, callbacks, progress=False, **options
            )
        except BaseException as error:
            if expect is None or not isinstance(error, expect):
                raise
            result.error = error
        finally:
            result.weights = {k: t.detach().clone() for k, t in net.state_dict().items()}
            result.rng = [torch.get_rng_state().tolist(), random.getstate()]
            result.rng.append(str(np.random.get_state(legacy=False)))
            random.setstate(state[0])
            np.random.set_state(state[1])
    return result


def _same(a: _Result, b: _Result) -> bool:
    return all(torch.equal(t, b.weights[name]) for name, t in a.weights.items())


class _At(Callback):
    """Does something in the n-th `on_batch_end`."""

    def __init__(self, n: int, action: Callable[[Run], object]) -> None:
        self.n, self.action = n, action

    def on_batch_end(self, run: Run) -> None:
        if run.step == self.n:
            self.action(run)


class _Watcher(Callback):
    """Hears everything there is around a batch and an epoch, and does nothing."""

    def on_batch_begin(self, run: Run) -> None:
        """Nothing."""

    def on_backward_end(self, run: Run) -> None:
        """Nothing."""

    def on_epoch_end(self, run: Run) -> None:
        """Nothing."""


# ---- the clauses -------------------------------------------------------------------------


def check_runs(make: Make) -> None:
    """A fit with it comes to its end, with validation data and without."""
    _fit([make()])
    with suppress(KeyError):  # a column of validation is missed, and that is told
        _fit([make()], validate=False)


def check_can_be_used_again(make: Make) -> None:
    """A second fit with the same object is as with a fresh one: `on_train_begin` forgets."""
    callback = make()
    first, again = _fit([callback]), _fit([callback])
    assert _same(first, again), (
        f"{callback!r} used again gives other weights than the first time: "
        "forget what is of one fit in on_train_begin"
    )
    assert len(first.history) == len(again.history), (
        f"{callback!r} used again stops after {len(again.history)} epochs, not "
        f"{len(first.history)}: forget what is of one fit in on_train_begin"
    )


def check_only_watches(make: Make) -> None:
    """Weights and random generators are, to the bit, those of a fit without it.

    Unless the class says `changes_training = True`.
    """
    callback = make()
    if callback.changes_training:
        return
    plain, watched = _fit([]), _fit([callback])
    hint = "leave it alone, or say changes_training = True in the class"
    assert _same(plain, watched), f"{callback!r} changes the weights: {hint}"
    assert plain.rng == watched.rng, f"{callback!r} draws random numbers: {hint}"


def check_survives_a_stop(make: Make) -> None:
    """Another callback stops in the middle of an epoch: it leaves nothing behind in the net."""
    callback = make()
    result = _fit([callback, _At(3, lambda run: run.stop("somebody stops"))])
    _assert_left_alone(callback, result.net)
    assert result.history.stopped == "somebody stops", (
        f"{callback!r} hides another's stop: {result.history.stopped!r} is the reason"
    )


def check_survives_an_error(make: Make) -> None:
    """Another callback fails: its error comes out, nothing on top, and nothing is left behind."""

    class ElsewhereError(Exception):
        pass

    def fail(run: Run) -> None:
        raise ElsewhereError

    for callbacks in ([callback := make(), _At(3, fail)], [_At(1, fail), other := make()]):
        result = _fit(callbacks, expect=BaseException)
        name = callback if callback in callbacks else other
        assert isinstance(result.error, ElsewhereError), (
            f"{name!r} replaces an error by {result.error!r}"
        )
        later = [note for note in result.error.__notes__ if note.startswith("then")]
        assert not later, f"{name!r} fails after an error elsewhere: {later[0]}"
        _assert_left_alone(name, result.net)


def _assert_left_alone(callback: Callback, net: nn.Module) -> None:
    kinds = "_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"
    for name, module in net.named_modules():
        hooked = [kind for kind in kinds if getattr(module, kind)]
        where = f"module {name!r}" if name else "the net"
        assert not hooked, f"{callback!r} leaves hooks on {where}: remove them in on_train_end"
    frozen = [name for name, p in net.named_parameters() if not p.requires_grad]
    assert not frozen, f"{callback!r} leaves {frozen[0]} frozen: free it in on_train_end"


def check_keeps_no_graph(make: Make) -> None:
    """Nothing of a batch's graph lives on: it would fill the memory in a long epoch."""
    callback = make()
    kept: list[weakref.ref[Tensor]] = []

    class Spy(Callback):
        def on_batch_end(self, run: Run) -> None:
            kept.extend(weakref.ref(t) for t in (run.preds, run.loss))

        def on_epoch_end(self, run: Run) -> None:
            run.preds = run.loss = None

    _fit([callback, Spy()], epochs=1)
    gc.collect()
    alive = sum(ref() is not None for ref in kept)
    assert not alive, f"{callback!r} keeps {alive} tensors with their graphs: keep t.detach()"


def check_resumes_exactly(make: Make) -> None:
    """Interrupted between and inside epochs and resumed with fresh objects, a fit ends the same."""
    states: dict[str, dict[str, Any]] = {}

    class Keep(Callback):
        def on_epoch_begin(self, run: Run) -> None:
            if run.epoch == 1:
                _assert_plain(callback)
                states["between two epochs"] = snapshot(run)

        def on_batch_end(self, run: Run) -> None:
            if run.step in INTERRUPTED:
                run.after(self.keep)

        def keep(self, run: Run) -> None:
            _assert_plain(callback)
            states[f"after batch {run.batch} of epoch {run.epoch}"] = snapshot(run)

    callback = make()
    whole = _fit([Keep(), callback])
    hint = (
        "return what it needs to continue from state_dict, and take it in load_state_dict; "
        "set up in on_epoch_begin what is not in there (modes, hooks, run.data)"
    )
    for where, state in states.items():
        resumed = _fit([Callback(), make()], resume=state)
        what = f"{callback!r}, resumed {where},"
        assert _same(whole, resumed), f"{what} gives other weights: {hint}"
        same = repr(list(whole.history)) == repr(list(resumed.history))
        assert same, f"{what} gives another history: {hint}"


def _assert_plain(callback: Callback) -> None:
    """Only what a file may hold as data."""
    try:
        as_data(callback.state_dict(), "its state_dict()")
    except TypeError as error:
        raise AssertionError(f"{callback!r} cannot be saved: {error}") from error


def check_stands_anywhere(make: Make) -> None:
    """Before or behind callbacks that only watch, it does the same."""
    callback = make()
    first, last = _fit([callback, _Watcher()]), _fit([_Watcher(), make()])
    assert _same(first, last), f"{callback!r} gives other weights at another place in the list"
    columns = first.history.columns, last.history.columns
    assert columns[0] == columns[1], (
        f"{callback!r} gives other columns at another place in the list"
    )


def check_names_itself(make: Make) -> None:
    """Its `repr` says what it is, and its class has a docstring."""
    callback = make()
    name = type(callback).__name__
    assert repr(callback).startswith(name), f"{callback!r} does not begin with {name}"
    own = type(callback).__doc__
    assert own and own != Callback.__doc__, f"{name} has no docstring: say in a line what it does"


CHECKS: tuple[Callable[[Make], None], ...] = (
    check_runs,
    check_can_be_used_again,
    check_only_watches,
    check_survives_a_stop,
    check_survives_an_error,
    check_keeps_no_graph,
    check_resumes_exactly,
    check_stands_anywhere,
    check_names_itself,
)
"""The checks of the kit, in the order in which `check` runs them."""


def check(make: Make) -> None:
    """Runs every check of the kit on the callbacks that `make` makes.

    Raises:
        AssertionError: for the first clause that does not hold, in words.

    Examples:
        >>> class Quiet(Callback):
        ...     '''Does nothing.'''
        >>> check(Quiet)
    """
    for each in CHECKS:
        each(make)
