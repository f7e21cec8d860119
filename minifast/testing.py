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
import threading
import warnings
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from .callback import Callback, Run
from .checkpoint import snapshot
from .dataset import ModelData
from .model import fit
from .storage import as_data
from .trial import Result, example_data, example_fit, example_net, parts_of, seeded, settings_of
from .trial import trial_fit as _fit

__all__ = ["CHECKS", "check", "example_data", "example_fit", "example_net"]

Make = Callable[[], Callback]

INTERRUPTED = 1, 6, 11, 15  # of two epochs of 8 batches; not all even, or multiples of three


def _same(a: Result, b: Result) -> bool:
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
    """A fit with it comes to its end, with validation data and without.

    Without it a `KeyError` may say that the column to monitor is not there.
    """
    _fit([make()])
    callback = make()
    try:
        _fit([callback], validate=False)
    except KeyError as error:
        hint = "ask for the columns of validation with run.values.get(...)"
        named = "monitor" in str(error)
        assert named, f"{callback!r} fails without validation data ({error!r}): {hint}"


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
    """Weights, optimizer and random generators are, to the bit, those of a fit without it.

    Unless the class says `changes_training = True`. So it is for a fit that is stopped, too.
    """
    callback = make()
    if callback.changes_training:
        return
    hint = "leave it alone, or say changes_training = True in the class"
    for also in (), (_At(3, lambda run: run.stop("enough")),):
        plain, watched = _fit(also), _fit([make(), *also])
        assert _same(plain, watched), f"{callback!r} changes the weights: {hint}"
        assert plain.rng == watched.rng, f"{callback!r} draws random numbers: {hint}"
        same = plain.settings == watched.settings
        assert same, f"{callback!r} leaves the optimizer with other settings: {hint}"


def check_survives_a_stop(make: Make) -> None:
    """Another callback stops in the middle of an epoch: it leaves nothing behind in the net."""
    for first in True, False:
        callback, stops = make(), _At(3, lambda run: run.stop("another callback stops"))
        result = _fit([callback, stops] if first else [stops, callback])
        _assert_left_alone(callback, result)
        assert result.history.stopped == "another callback stops", (
            f"{callback!r} hides another's stop: {result.history.stopped!r} is the reason"
        )


def check_survives_an_error(make: Make) -> None:
    """Another callback fails: its error comes out, nothing on top, and nothing is left behind.

    The optimizer then has its settings of between two batches, or of before the fit.
    """

    class ElsewhereError(Exception):
        pass

    def fail(run: Run) -> None:
        raise ElsewhereError

    breaks = _FailsInABatch(5, ElsewhereError())
    for also, first in (_At(3, fail), True), (_At(1, fail), False), (breaks, True):
        name = make()
        result = _fit([name, also] if first else [also, name], expect=BaseException)
        assert isinstance(result.error, ElsewhereError), (
            f"{name!r} replaces an error by {result.error!r}"
        )
        later = [note for note in result.error.__notes__ if note.startswith("then")]
        assert not later, f"{name!r} fails after an error elsewhere: {later[0]}"
        _assert_left_alone(name, result)
        if also is breaks:
            before, after = [*breaks.between, result.settings[0]], result.settings[1]
            assert _changing(after) in map(_changing, before), (
                f"{name!r} leaves the learning rate or momentum of a batch that an error ended: "
                "restore it in on_train_end"
            )


def _changing(settings: list[dict[str, Any]]) -> list[list[Any]]:
    """What schedules change."""
    return [[group.get(key) for key in ("lr", "momentum", "betas")] for group in settings]


class _FailsInABatch(Callback):
    """Raises an error between the loss and the gradients, and notes settings between batches."""

    def __init__(self, step: int, error: Exception) -> None:
        self.step, self.error = step, error
        self.between: list[list[dict[str, Any]]] = []

    def on_backward_begin(self, run: Run) -> None:
        if run.step == self.step:
            raise self.error

    def on_batch_end(self, run: Run) -> None:
        run.after(self._note)  # as the last in the list: after what others do then

    def _note(self, run: Run) -> None:
        self.between = [settings_of(run.opt)]


def _assert_left_alone(callback: Callback, result: Result) -> None:
    net = result.net
    kinds = "_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"
    for name, module in net.named_modules():
        hooked = [kind for kind in kinds if getattr(module, kind, None)]
        where = f"module {name!r}" if name else "the net"
        assert not hooked, f"{callback!r} leaves hooks on {where}: remove them in on_train_end"
        left = sorted({*parts_of(net)[name]} ^ {*result.parts.get(name, ())})
        assert not left, f"{callback!r} leaves {left[0]!r} on {where}: undo it in on_train_end"
    on_parameters = "_backward_hooks", "_post_accumulate_grad_hooks"
    for name, p in net.named_parameters():
        hooked = [kind for kind in on_parameters if getattr(p, kind, None)]
        assert not hooked, f"{callback!r} leaves a hook on {name}: remove it in on_train_end"
    frozen = [name for name, p in net.named_parameters() if not p.requires_grad]
    assert not frozen, f"{callback!r} leaves {frozen[0]} frozen: free it in on_train_end"


def check_leaves_nothing(make: Make) -> None:
    """After a whole fit the net has no hooks, attributes or buffers that it had not before.

    No thread is left running, and the filters of warnings are what they were.
    """
    _fit([make()])  # what is imported now may start threads and set filters of its own
    callback, threads = make(), {*threading.enumerate()}
    with warnings.catch_warnings(record=True):
        warnings.resetwarnings()
        result = _fit([callback])
        filters = [*warnings.filters]
    _assert_left_alone(callback, result)
    assert not filters, f"{callback!r} leaves filters of warnings: use warnings.catch_warnings"
    for thread in {*threading.enumerate()} - threads:
        thread.join(timeout=1)
        hint = "end it in on_train_end"
        assert not thread.is_alive(), f"{callback!r} leaves the thread {thread.name}: {hint}"


def check_adds_columns_only(make: Make) -> None:
    """The table's own columns (`trn_loss`, `val_loss`, the metrics) stay what `fit` computed."""
    rows: list[dict[str, Any]] = []

    class Copy(Callback):
        def on_validate_end(self, run: Run) -> None:
            rows.append(dict(run.values))

    callback = make()
    for before, after in zip(rows, _fit([Copy(), callback]).history, strict=False):
        changed = [name for name, value in before.items() if after[name] != value]
        hint = "give yours another name"
        assert not changed, f"{callback!r} overwrites the column {changed[0]}: {hint}"


def check_forgets_the_fit_before(make: Make) -> None:
    """A second fit whose `on_train_begin` fails applies nothing of the first one.

    Not to its own net and optimizer, and not to those of the first fit. It fails in this callback
    or in another one: the second fit has another net and optimizer, and a loader without length.
    """

    class ElsewhereError(Exception):
        pass

    class Fails(Callback):
        def on_train_begin(self, run: Run) -> None:
            raise ElsewhereError

    for first in True, False:
        callback = make()
        result = _fit([callback])
        for p in result.net.parameters():
            p.requires_grad_(False)
        result.opt.param_groups[0]["lr"] = 0.7
        with seeded():
            net = nn.Sequential(nn.Linear(6, 3))
            opt = torch.optim.Adam(net.parameters(), lr=0.3)
            before = _described(result.net, result.opt), _described(net, opt)
            callbacks = [callback, Fails()] if first else [Fails(), callback]
            data = ModelData(".", iter([]))
            with suppress(Exception):
                fit(net, data, 1, nn.CrossEntropyLoss(), opt, (), callbacks, progress=False)
        after = _described(result.net, result.opt), _described(net, opt)
        for which, was, now in zip(("an earlier", "its own"), before, after, strict=True):
            assert was == now, (
                f"{callback!r} changes {which} fit's net or optimizer when a fit fails as it "
                "begins: forget the fit before in the first line of on_train_begin"
            )


def _described(net: nn.Module, opt: torch.optim.Optimizer) -> list[Any]:
    named = dict(net.named_parameters())
    tensors = [(name, t.tolist()) for name, t in net.state_dict().items()]
    return [tensors, [p.requires_grad for p in named.values()], _changing(settings_of(opt))]


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
    """Its `repr` says what it is in at most 1,000 characters, and its class has a docstring."""
    callback = make()
    name = type(callback).__name__
    assert repr(callback).startswith(name), f"{callback!r} does not begin with {name}"
    size = len(repr(callback))
    assert size <= 1000, f"{name}'s repr has {size} characters: it goes into messages"
    own = type(callback).__doc__
    assert own and own != Callback.__doc__, f"{name} has no docstring: say in a line what it does"


CHECKS: tuple[Callable[[Make], None], ...] = (
    check_runs,
    check_can_be_used_again,
    check_only_watches,
    check_survives_a_stop,
    check_survives_an_error,
    check_leaves_nothing,
    check_adds_columns_only,
    check_forgets_the_fit_before,
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
