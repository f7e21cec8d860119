"""The record of a run: what may be assigned, the epoch's row, and what ended it."""

import copy

import pytest
import torch
from torch import nn, optim

from minifast import Callback, Stepper, fit
from minifast.checkpoint import snapshot
from minifast.losses import weighted
from minifast.plugins import GradClip, MixUp
from minifast.testing import check_resumes_exactly, example_data, example_fit, example_net


class At(Callback):
    """Calls a function in one event."""

    def __init__(self, event, action):
        setattr(self, event, action)


# ---- facts -------------------------------------------------------------------------------


@pytest.mark.parametrize("event", ["on_train_begin", "on_batch_end", "on_epoch_end"])
@pytest.mark.parametrize("name", ["net", "epochs", "callbacks", "stepper"])
def test_a_fact_whose_assignment_would_change_nothing_is_refused(name, event):
    values = {"net": example_net(), "epochs": 1, "callbacks": (), "stepper": Stepper()}

    def assign(run):
        setattr(run, name, values[name])

    with pytest.raises(AttributeError, match=f"run.{name} cannot be assigned") as info:
        example_fit([At(event, assign)])
    assert "errors-and-fixes#facts" in str(info.value)
    assert f"raised by At.{event}" in info.value.__notes__[0]


def test_what_may_be_assigned_takes_effect_and_a_record_can_be_copied():
    seen = []

    def change(run):
        run.crit = weighted(lambda preds, y: nn.NLLLoss()(preds, y) * 0)
        run.opt = optim.SGD(run.net.parameters(), lr=1.0)
        run.metrics = [lambda preds, targs: 7.0]
        seen.append(copy.copy(run).net is run.net)

    history = example_fit([At("on_train_begin", change)])
    assert history[0]["trn_loss"] == 0 and 7.0 in history[0].values() and seen == [True]


# ---- the epoch's row ---------------------------------------------------------------------


class LastLoss(Callback):
    """Shows the loss of the last batch, which it notes in each."""

    def on_batch_end(self, run):
        run.values["last"] = run.loss
        run.values.setdefault("first", run.loss)


def test_a_column_set_while_batches_come_is_kept_for_its_epoch_alone():
    losses = []
    callbacks = [LastLoss(), At("on_batch_end", lambda run: losses.append(run.loss.item()))]
    callbacks.append(At("on_epoch_begin", lambda run: run.values.update(n=run.epoch)))
    history = example_fit(callbacks, epochs=2)
    assert history["last"] == losses[7::8] and history["first"] == losses[::8]
    assert history["n"] == [0, 1]


def test_a_column_set_while_batches_come_is_resumed():
    check_resumes_exactly(LastLoss)


@pytest.mark.parametrize("event", ["on_epoch_begin", "on_batch_end"])
@pytest.mark.parametrize("name", ["epoch", "trn_loss", "val_loss", "accuracy"])
def test_a_column_of_fit_is_not_overwritten_before_it_is_there(name, event):
    with pytest.raises(ValueError, match=f"overwrites the column {name}"):
        example_fit([At(event, lambda run: run.values.update({name: 0.5}))])


def test_the_number_of_the_epoch_is_not_overwritten():
    with pytest.raises(ValueError, match="overwrites the column epoch"):
        example_fit([At("on_epoch_end", lambda run: run.values.update(epoch=7))])


@pytest.mark.parametrize("value", [torch.ones(2), torch.ones(2).numpy(), torch.ones(0)])
def test_a_column_of_several_values_is_refused_by_name(value):
    with pytest.raises(ValueError, match="the column probe must have one value"):
        example_fit([At("on_epoch_end", lambda run: run.values.update(probe=value))])


# ---- what ended it -----------------------------------------------------------------------


def fail(error):
    def action(run):
        if run.step == 3:
            raise error

    return action


@pytest.mark.parametrize("error", [ZeroDivisionError(), KeyboardInterrupt()], ids=repr)
def test_on_train_end_has_the_error_that_ended_training(error):
    seen = []
    ends = At("on_train_end", lambda run: seen.append((run, run.error)))
    with pytest.raises(type(error)):
        example_fit([At("on_batch_end", fail(error)), ends])
    ((run, found),) = seen
    assert found is error and run.error is None  # an error that it held would hold all of the fit


def test_a_fit_that_ends_well_or_is_stopped_has_no_error():
    seen = []
    ends = At("on_train_end", lambda run: seen.append(run.error))
    example_fit([ends])
    example_fit([At("on_batch_end", lambda run: run.stop("enough")), ends])
    assert seen == [None, None]


def test_the_error_of_another_on_train_end_is_seen_behind_it():
    seen = []
    ends, last = (At("on_train_end", lambda run: seen.append(run.error)) for _ in range(2))
    error = ZeroDivisionError()

    def broken(run):
        raise error

    with pytest.raises(ZeroDivisionError):
        example_fit([ends, At("on_train_end", broken), last])
    assert seen == [None, error]


# ---- a display of one's own --------------------------------------------------------------


class Display(Callback):
    """Collects the columns that there are."""

    def on_train_begin(self, run):
        self.columns = []

    def on_epoch_end(self, run):
        self.columns.append(list(run.values))


def shown(progress, callbacks=()):
    net = example_net()
    opt = optim.SGD(net.parameters(), lr=0.1)
    return fit(net, example_data(), 1, nn.NLLLoss(), opt, (), callbacks, progress=progress)


def test_a_display_receives_each_event_last_in_place_of_the_table(capsys):
    display = Display()
    adds = At("on_epoch_end", lambda run: run.values.update(mine=1.0))
    shown(display, [adds])
    assert display.columns == [["epoch", "trn_loss", "val_loss", "mine"]]
    assert capsys.readouterr().out == ""
    shown(True)
    assert "val_loss" in capsys.readouterr().out
    for silent in False, 0:
        shown(silent)
        assert capsys.readouterr().out == ""


@pytest.mark.parametrize("wrong", [Display, "bar", 2, None, print, [Display()]], ids=repr)
def test_anything_else_is_not_a_display(wrong):
    with pytest.raises(TypeError, match="progress must be a bool or a callback") as info:
        shown(wrong)
    assert ("progress=Display()" in str(info.value)) == (wrong is Display)


def test_a_display_is_not_among_the_callbacks_too():
    display = Display()
    with pytest.raises(ValueError, match="the same object twice"):
        shown(display, [display])


# ---- before and after --------------------------------------------------------------------


class AfterClip(Callback):
    """Follows clipping, also a subclass of it."""

    must_follow = (GradClip, "MixUp")


class BeforeAfterClip(Callback):
    """Says the opposite of what `Contrary` says."""

    must_follow = ("Contrary",)


class Contrary(Callback):
    """Says the opposite of what `BeforeAfterClip` says."""

    must_follow = (BeforeAfterClip,)


class MyClip(GradClip):
    """A GradClip."""


@pytest.mark.parametrize("first", [lambda: GradClip(1.0), lambda: MyClip(1.0), MixUp])
def test_a_callback_names_those_that_it_follows(first):
    example_fit([first(), AfterClip()])
    with pytest.raises(ValueError, match="callbacks has AfterClip before"):
        example_fit([AfterClip(), first()])


def test_two_that_each_want_to_be_last_cannot_be_combined():
    for callbacks in [Contrary(), BeforeAfterClip()], [BeforeAfterClip(), Contrary()]:
        with pytest.raises(ValueError, match="which cannot be combined"):
            example_fit(callbacks)
        example_fit(callbacks[:1])


def test_a_resumed_run_has_the_columns_of_its_first_half():
    states = []
    keeps = At("on_batch_end", lambda run: run.step == 3 and states.append(snapshot(run)))
    sets = At("on_batch_end", lambda run: run.step == 2 and run.values.update(early=run.loss))
    whole = example_fit([sets, keeps])
    resumed = example_fit([sets, Callback()], resume=states[0])
    assert whole["early"] == resumed["early"] and whole["early"][0] > 0
