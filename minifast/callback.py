"""Callbacks: what else should happen while a net trains.

A callback is a class with a method for each event it wants to hear:

    class PrintLoss(Callback):
        def on_epoch_end(self, run):
            print(run.values["val_loss"])

`EVENTS` lists the events in the order in which one epoch fires them; `Callback` says what each
one is for, `Run` what a handler finds in its one argument.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from .batches import batch_size
from .blame import note_plugin, note_stepper
from .core import length
from .declarations import (
    CALLBACK,
    call_of,
    check_handler,
    check_members,
    fix_fields,
    no_second_loss,
)
from .errors import add_note
from .history import History, RunningLoss
from .losses import WeightedLoss

if TYPE_CHECKING:
    from .dataset import ModelData
    from .stepper import Stepper

__all__ = ["EVENTS", "Callback", "Run", "who_listens"]

EVENTS = (
    "on_train_begin",
    "on_epoch_begin",
    "on_batch_begin",
    "on_backward_begin",
    "on_backward_end",
    "on_batch_end",
    "on_validate_begin",
    "on_validate_end",
    "on_epoch_end",
    "on_train_end",
)
"""The events, in the order in which they come."""


def _itself(loader: Any, training: bool = False) -> Any:
    """What `Run.loader_for` is outside a fit."""
    return loader


@dataclass(slots=True)
class Run:
    """What is going on: the record that every handler is given.

    Facts, the same throughout: `net data opt crit metrics epochs callbacks stepper`. Current: the
    rest. A misspelt name is an `AttributeError`, on reading and on writing; so is assigning `net`,
    `epochs`, `callbacks` or `stepper`, which would not change what is trained.
    """

    net: nn.Module
    data: ModelData
    opt: torch.optim.Optimizer
    crit: Callable[..., Tensor]
    metrics: Sequence[Any]
    epochs: int
    callbacks: Sequence[Callback]
    stepper: Stepper

    epoch: int = 0
    """Number of the epoch, from 0."""
    batch: int = 0
    """Number of the batch within the epoch, from 0."""
    step: int = 0
    """How many batches this fit has learned from so far."""
    x: Any = None
    """The batch's input on the net's device: a tensor, or a tuple of them for several inputs."""
    y: Any = None
    """The batch's target."""
    preds: Any = None
    """What the net made of `x`."""
    loss: Any = None
    """What is differentiated: the criterion's loss, unless a callback assigned another."""
    keep_grads: bool = False
    """Set it in `on_backward_begin` and the gradients there are stay: the batch's are added."""
    skip_step: bool = False
    """Set it in `on_backward_end` and this batch changes no weight."""
    values: dict[str, Any] = field(default_factory=dict)
    """The epoch's row of the table, whole from `on_validate_end` on; what you add is a column."""
    history: History = field(default_factory=History)
    """The rows of the epochs before this one."""
    running_loss: RunningLoss = field(default_factory=RunningLoss)
    """The criterion's losses of this fit, smoothed as `trn_loss` shows them."""
    stopped: str | None = None
    """Why training stops, once somebody asked for it."""
    error: BaseException | None = field(default=None, repr=False)
    """In `on_train_end`: the error or Ctrl-C that ended training; None otherwise."""
    team: Any = field(default=None, repr=False)
    """The processes of `torchrun`, a `minifast.team.Team`; None where there is one process."""
    loader_for: Callable[..., Any] = field(default=_itself, repr=False)
    """`loader_for(loader, training=False)`: the loader to take this process's batches from.

    A view of the loader, which itself is left alone: this process's part of each batch, where there
    are several; rows that are cached on the net's device; and for training no last batch of a
    single row, if the net cannot take one. Any other loader than an `ArrayLoader` is itself.
    """
    kept: str = ""
    """What Progress says about rows that are cached on the net's device."""
    asked: tuple[str, bool] | None = None
    """The stop that this process of several asked for, until all agree."""
    paused: bool = False
    """Whether it stops for now only: resumed, it goes on."""
    ends_whole: bool = False
    """Set it in `on_train_begin`, and Ctrl-C and SIGTERM let the batch under way be finished.

    The handlers of `on_train_end` are always let be finished.
    """
    max_batches: int | None = None
    """What `fit(..., steps=...)` was: where an epoch ends, if the loader does not end before."""
    checks: str = "on"
    """What `fit(..., checks=...)` was: `"on"`, `"warn"` or `"off"`."""
    given: dict[str, int | None] = field(default_factory=dict)
    """The size of the training data that `fit` was given; `data` itself may be changed."""
    first_loader: Any = field(default=None, repr=False)
    """The `trn_dl` that `fit` was given."""
    looked: bool = False
    """Whether the first batch was looked at."""
    epoch_start: int = 0
    """The `step` at which the epoch began."""
    order: dict[str, Any] = field(default_factory=dict, repr=False)
    """The random generators from which the epoch's order was drawn."""
    batches: Any = field(default=None, repr=False)
    """The iterator over the epoch's batches, a `minifast.batches.Lookahead`."""
    began: dict[str, Any] = field(default_factory=dict, repr=False)
    """The random generators before the epoch's `on_epoch_begin`."""
    ahead: Any = field(default=None, repr=False)
    """Resumed: the generators before the batch that was drawn ahead when the state was taken."""
    positioned: bool = False
    """Whether the loader continues inside the epoch by itself (it has loaded its `state_dict`)."""
    awaiting: list[Callable[[Run], object]] = field(default_factory=list)
    """What `after` was given and was not called yet."""
    at_end: list[Callable[[Run], object]] = field(default_factory=list)
    """Called when the loop is over, before any `on_train_end`, unless an error broke it off."""

    @property
    def n_batches(self) -> int | None:
        """How many batches an epoch has; None if the loader does not know."""
        n = length(loader := self.loader_for(self.data.trn_dl, training=True))
        sizes = [] if n is None else [n if self.team is None else self.team.batches(loader, n)]
        if self.max_batches is not None:
            sizes.append(self.max_batches)
        return min(sizes, default=None)

    def stop(self, reason: str) -> None:
        """Asks for training to stop; `fit(...).stopped` tells the reason.

        A request, not an exit: every other handler still receives the event, and a batch under
        way is finished. A request stands: of several stops the first reason is kept, and a stop
        overrules a pause.
        """
        self._ask(reason, False)

    def pause(self, reason: str) -> None:
        """Asks for training to stop for now: a run that is resumed from a checkpoint goes on."""
        self._ask(reason, True)

    def _ask(self, reason: str, for_now: bool) -> None:
        if self.team is not None:
            if self.asked is None or (self.asked[1] and not for_now):
                self.asked = reason, for_now
        elif self.stopped is None or (self.paused and not for_now):
            self.stopped, self.paused = reason, for_now  # a stop overrules a pause

    @property
    def rank(self) -> int:
        """The number of this process of several, from 0; 0 writes and prints."""
        return 0 if self.team is None else int(self.team.rank)

    @property
    def rows(self) -> int:
        """How many rows the batch has, in all processes together."""
        return batch_size(self.x, self.y) if self.team is None else int(self.team.rows[1])

    @property
    def last_batch(self) -> bool:
        """Whether the batch is the last of its epoch; the loader may have to yield the next one.

        So it is right for loaders that do not know their length, or whose length is wrong.
        """
        return self.batches is not None and bool(self.batches.is_last())

    @property
    def loss_weight(self) -> Any:
        """What the criterion's loss of this batch counts among batches, in all processes together.

        That is what the loss divides by (see `minifast.losses`), or else the number of rows: a
        number or a 0-dim tensor. Wrap the loss in `on_train_begin` to have it:
        `run.crit = weighted(run.crit)`.
        """
        if not isinstance(self.crit, WeightedLoss):
            return self.rows
        if self.team is not None:
            return self.crit.total
        return self.rows if self.crit.divisor is None else self.crit.divisor

    def objective(self, preds: Any) -> Any:
        """The loss to differentiate for other predictions of this batch, for a second pass.

        That is `crit`, and what callbacks make of it: `MixUp`, `LabelSmoothing`,
        `GradAccumulation` and all that define `transform_loss`. Nothing on the run changes.

        Raises:
            TypeError: if a callback may change the loss in `on_backward_begin` alone.

        Examples:
            >>> from minifast.testing import example_fit
            >>> class Watch(Callback):
            ...     def on_backward_begin(self, run):
            ...         assert torch.equal(run.objective(run.preds), run.loss)
            >>> history = example_fit([Watch()])
        """
        loss = self.crit(preds, self.y)
        for callback in self.callbacks:
            may_change = callback.changes_training and hears(callback, "on_backward_begin")
            if may_change and not hears(callback, "transform_loss"):
                raise TypeError(no_second_loss(callback))
            loss = callback.transform_loss(self, preds, loss)
        return loss

    def after(self, action: Callable[[Run], object]) -> None:
        """Calls `action(run)` once every handler of the event has run; not after an error."""
        self.awaiting.append(action)


fix_fields(Run)


class Callback:
    """Base of every callback: override the events you want, each with `(self, run)`.

    Handlers run in the order of the list given to `fit`. An event ends only what really ended:
    stopped in the middle of an epoch, `on_epoch_end` is not fired for it. `on_train_end` comes
    once to everybody whose `on_train_begin` was called, whatever happened in between. An error in
    a handler ends training and reaches the caller as it is, with a note that names the handler.

    Raises:
        TypeError: when a class is defined with a handler that is no event or takes other
            arguments, or with a misspelled `state_dict`, `must_precede` and the like.

    Examples:
        >>> class Steps(Callback):
        ...     def on_batch_end(self, run):
        ...         print(run.step, end=" ")
        >>> class Wrong(Callback):
        ...     def on_bacth_end(self, run): ...
        Traceback (most recent call last):
        TypeError: Wrong.on_bacth_end is no event: did you mean on_batch_end?
    """

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        for name, value in vars(cls).items():
            if name.startswith("on_") and callable(getattr(cls, name)):
                check_handler(cls, name, value, EVENTS)
        check_members(cls, CALLBACK)

    changes_training: ClassVar[bool] = False
    """Whether the weights end otherwise with it than without it."""
    first_process_only: ClassVar[bool] = False
    """Whether, of several processes, only the first hears it: for what is printed and written."""
    must_precede: ClassVar[tuple[type | str, ...]] = ()
    """Classes, or their names, that make no sense before this one in the list: `fit` refuses it.

    Subclasses of them count too.
    """
    must_follow: ClassVar[tuple[type | str, ...]] = ()
    """Classes, or their names, that make no sense after this one in the list: `fit` refuses it.

    Subclasses of them count too.
    """
    conflicts_with: ClassVar[tuple[type | str, ...]] = ()
    """Classes, or their names, that cannot be in one list with this one, in either order.

    Subclasses of them count too. `fit` refuses the list.
    """

    def __repr__(self) -> str:
        """The call that makes one like it, as far as its attributes tell; long values shortened."""
        return call_of(self)

    def state_dict(self) -> dict[str, Any]:
        """What it needs to go on later: tensors, numbers, strings, lists and dicts only."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes back what `state_dict` gave; called after `on_train_begin`.

        When a fit resumes inside an epoch it is called twice, before and after `on_epoch_begin`.
        """

    def transform_loss(self, run: Run, preds: Any, loss: Any) -> Any:
        """Returns what this callback makes of the loss for `preds`; changes nothing.

        `run.objective` asks for it in a second pass. A callback that assigns `run.loss` in
        `on_backward_begin` computes it here: `run.loss = self.transform_loss(run, run.preds,
        run.loss)`.
        """
        return loss

    def on_train_begin(self, run: Run) -> None:
        """Before anything else; the place to open what `on_train_end` closes."""

    def on_epoch_begin(self, run: Run) -> None:
        """The net is in train mode; no batch of the epoch was drawn yet.

        Fired as well when a fit resumes inside an epoch, before the last `load_state_dict`.
        """

    def on_batch_begin(self, run: Run) -> None:
        """The batch is there: assign `run.x` or `run.y` to learn from something else."""

    def on_backward_begin(self, run: Run) -> None:
        """The loss is there: assign `run.loss` to differentiate something else.

        Set `run.keep_grads` to add the batch's gradients to those there are.
        """

    def on_backward_end(self, run: Run) -> None:
        """The gradients are there: change them in place, or set `run.skip_step`."""

    def on_batch_end(self, run: Run) -> None:
        """The weights are updated."""

    def on_validate_begin(self, run: Run) -> None:
        """The epoch's batches are done, the net is in eval mode. Not fired without `val_dl`."""

    def on_validate_end(self, run: Run) -> None:
        """`run.values` has the epoch's losses and metrics. Not fired without `val_dl`."""

    def on_epoch_end(self, run: Run) -> None:
        """`run.values` is about to become a row of the history; add columns to it here."""

    def on_train_end(self, run: Run) -> None:
        """After everything else, and after an error or Ctrl-C too."""


Fire = Callable[[Run], None]


class Events:
    """The events as functions of the run: `events.on_batch_end(run)` calls all who listen.

    Who listens is found out once, so an event that nobody hears costs one empty call.
    """

    __slots__ = ("callbacks", *EVENTS)

    on_epoch_begin: Fire
    on_batch_begin: Fire
    on_backward_begin: Fire
    on_backward_end: Fire
    on_batch_end: Fire
    on_validate_begin: Fire
    on_validate_end: Fire
    on_epoch_end: Fire

    def __init__(self, callbacks: Sequence[Callback]) -> None:
        self.callbacks = callbacks
        for event in EVENTS:
            listeners = [callback for callback in callbacks if hears(callback, event)]
            setattr(self, event, _firing(event, listeners) if listeners else _nobody)

    @contextmanager
    def training(self, run: Run) -> Iterator[None]:
        """Fires `on_train_begin`, and `on_train_end` for each one that it reached, come what may.

        The first error goes on to the caller; those of `on_train_end` after it become its notes.
        """
        begun: list[Callback] = []
        error: BaseException | None = None
        try:
            for callback in self.callbacks:
                begun.append(callback)
                _call(callback, "on_train_begin", run)
            _do_deferred(run)
            yield
            for action in run.at_end:
                action(run)
        except BaseException as first:
            error = first
            note_stepper(error, run)
        run.awaiting.clear()  # what was asked for before an error belongs to what it broke
        run.ends_whole = True  # a signal waits until all callbacks have closed what they opened
        for callback in begun:
            run.error = error
            try:
                _call(callback, "on_train_end", run)
            except BaseException as later:
                if error is None:
                    error = later
                else:
                    note = getattr(later, "__notes__", ["after the end"])[-1]
                    add_note(error, f"then {later!r}, {note}")
        run.error = None  # it holds the frames, and they this record
        if error is not None:
            run.awaiting.clear()
            try:
                raise error
            finally:
                error = None  # an error that this frame holds would hold the frame, and so the net
        _do_deferred(run)


def hears(callback: Callback, event: str) -> bool:
    """Whether the callback has a handler of its own for the event, in its class or on itself."""
    own = getattr(type(callback), event) is not getattr(Callback, event)
    return own or event in vars(callback)


def who_listens(callbacks: Sequence[Callback]) -> None:
    """Prints which callback hears which event, in the order in which they are called.

    Examples:
        >>> class Loss(Callback):
        ...     def on_batch_end(self, run): ...
        >>> class Both(Loss):
        ...     def on_epoch_end(self, run): ...
        >>> who_listens([Both(), Loss()])
        on_batch_end       Both, Loss
        on_epoch_end       Both
    """
    for event in EVENTS:
        names = [type(callback).__name__ for callback in callbacks if hears(callback, event)]
        if names:
            print(f"{event:18} {', '.join(names)}")


# What an event does that nobody hears: `bool` is a call for which Python makes no frame.
_nobody: Fire = bool  # type: ignore[assignment]


def _firing(event: str, listeners: Sequence[Callback]) -> Fire:
    handlers = [(callback, getattr(callback, event)) for callback in listeners]

    def fire(run: Run) -> None:
        for callback, handler in handlers:
            try:
                handler(run)
            except BaseException as error:
                note_plugin(error, f"{type(callback).__name__}.{event}", run)
                raise
        if run.awaiting:
            _do_deferred(run)

    return fire


def _call(callback: Callback, event: str, run: Run) -> None:
    """Runs one handler; what it asks for by `run.after` waits."""
    try:
        getattr(callback, event)(run)
    except BaseException as error:
        note_plugin(error, f"{type(callback).__name__}.{event}", run)
        raise


def _do_deferred(run: Run) -> None:
    while run.awaiting:
        run.awaiting.pop(0)(run)
