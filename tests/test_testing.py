"""The kit itself: each check has a bad callback that fails exactly that check."""

import random
import threading
import warnings
from collections import deque

import numpy as np
import pytest
import torch

from minifast import Callback
from minifast.testing import CHECKS, check, check_keeps_no_graph, check_resumes_exactly, example_fit


class Good(Callback):
    """Counts batches and shows the count as a column."""

    def __init__(self):
        self.count = 0

    def on_train_begin(self, run):
        self.count = 0

    def on_batch_end(self, run):
        self.count += 1

    def on_epoch_end(self, run):
        run.values["batches"] = self.count

    def state_dict(self):
        return {"count": self.count}

    def load_state_dict(self, state):
        self.count = state["count"]


class Crashes(Callback):
    """Fails at the end of the first epoch where there is no validation: the fit does not end."""

    def on_epoch_end(self, run):
        if "val_loss" not in run.values:
            raise ZeroDivisionError


class Remembers(Callback):
    """Stops after three epochs, over several fits."""

    epochs = 0

    def on_epoch_end(self, run):
        self.epochs += 1
        if self.epochs > 2:
            run.stop("three were enough")


class Meddles(Callback):
    """Says that it only watches, and shortens the weights."""

    def on_backward_end(self, run):
        for p in run.net.parameters():
            p.data.mul_(0.999)


class Draws(Callback):
    """Draws from torch's generator, once everything is learned."""

    def on_train_end(self, run):
        torch.rand(1)


class Hides(Callback):
    """Overwrites the reason for which another has stopped."""

    def on_train_end(self, run):
        if run.stopped:
            run.stopped = "hidden"


class LeavesHooks(Callback):
    """Takes its hooks off only if no epoch was broken off by a stop."""

    def on_train_begin(self, run):
        self.handle = run.net.register_forward_hook(lambda *args: None)

    def on_train_end(self, run):
        if run.stopped is None:
            self.handle.remove()


class FailsOnTop(Callback):
    """Counts on an epoch that an error has broken off."""

    def on_epoch_end(self, run):
        self.last = run.values["trn_loss"]

    def on_train_end(self, run):
        if run.stopped is None:
            assert self.last > 0


class KeepsGraphs(Callback):
    """Adds up losses with all their graphs."""

    def on_train_begin(self, run):
        self.losses = []

    def on_batch_end(self, run):
        self.losses.append(run.loss)


class KeepsBatches(Callback):
    """Keeps the input of each batch."""

    def on_train_begin(self, run):
        self.seen = []

    def on_batch_end(self, run):
        self.seen.append(run.x)


class KeepsTargets(KeepsBatches):
    """Keeps the targets of each batch."""

    def on_batch_end(self, run):
        self.seen.append(run.y)


class Forgets(Good):
    """Has a count, and does not say so in its state."""

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        """Nothing to take."""


class ForgetsTheHalf(Callback):
    """Adds up an epoch's losses, and does not say so in its state: right between two epochs."""

    def on_epoch_begin(self, run):
        self.sum = 0.0

    def on_batch_end(self, run):
        self.sum += run.loss.item()

    def on_epoch_end(self, run):
        run.values["sum"] = self.sum


class CannotBeSaved(Good):
    """Has an object in its state."""

    def state_dict(self):
        return {"count": self.count, "odd": object()}


class WantsToBeFirst(Callback):
    """Shows a column only where it stands first."""

    def on_epoch_end(self, run):
        if run.callbacks[0] is self or not any(
            type(other).__name__ == "_Watcher" for other in run.callbacks
        ):
            run.values["first"] = 1.0


class DrawsWhenStopped(Callback):
    """Draws from torch's generator only when a fit is stopped."""

    def on_train_end(self, run):
        if run.stopped:
            torch.rand(1)


class LeavesTheRate(Callback):
    """Says that it only watches, and leaves another learning rate to the next fit."""

    def on_train_end(self, run):
        if len(run.history) == run.epochs:
            run.opt.param_groups[0]["lr"] /= 2


class TakesAStopBack(Callback):
    """Trains on when another has stopped."""

    def on_batch_end(self, run):
        run.stopped = None


class MissesAColumn(Callback):
    """Counts on validation data."""

    def on_epoch_end(self, run):
        self.last = run.values["val_loss"]


class LeavesAScaledRate(Callback):
    """Halves the learning rate of each batch, and counts on the batch to end."""

    changes_training = True

    def on_batch_begin(self, run):
        run.opt.param_groups[0]["lr"] /= 2

    def on_batch_end(self, run):
        run.opt.param_groups[0]["lr"] *= 2


class AtTheEnd(Callback):
    """Does something after a whole fit."""

    def on_train_end(self, run):
        if run.epoch + 1 == run.epochs and run.stopped is None and len(run.history) == run.epochs:
            self.leave(run)


class LeavesABuffer(AtTheEnd):
    """Leaves a buffer in the net."""

    def leave(self, run):
        run.net.register_buffer("seen", torch.zeros(1))


class LeavesAnAttribute(AtTheEnd):
    """Leaves an attribute on a layer."""

    def leave(self, run):
        run.net[0].seen = True


class LeavesAParametersHook(AtTheEnd):
    """Leaves a hook on a parameter."""

    def leave(self, run):
        run.net[0].weight.register_hook(lambda grad: None)


class LeavesAThread(AtTheEnd):
    """Leaves a thread."""

    def leave(self, run):
        threading.Thread(target=threading.Event().wait, daemon=True).start()


class LeavesAFilter(AtTheEnd):
    """Leaves all warnings ignored."""

    def leave(self, run):
        warnings.simplefilter("ignore")


class Overwrites(Callback):
    """Shows another validation loss than the one computed."""

    changes_training = True

    def on_epoch_end(self, run):
        if "val_loss" in run.values:
            run.values["val_loss"] = 0.0


class AppliesTheFitBefore(Callback):
    """Restores in `on_train_end` what it noted in the last `on_train_begin` that did not fail."""

    def on_train_begin(self, run):
        self.batches = len(run.data.trn_dl)
        self.lr = run.opt.param_groups[0]["lr"]

    def on_train_end(self, run):
        run.opt.param_groups[0]["lr"] = self.lr


class LongWinded(Callback):
    """Shows its whole memory."""

    def __repr__(self):
        return f"LongWinded({[*range(1000)]})"


class Nameless(Callback):
    """Has another's name."""

    def __repr__(self):
        return "somebody"


class Undescribed(Callback):
    def on_batch_end(self, run): ...


BAD = {
    Crashes: "check_runs",
    Remembers: "check_can_be_used_again",
    Meddles: "check_only_watches",
    Draws: "check_only_watches",
    Hides: "check_survives_a_stop",
    LeavesHooks: "check_survives_a_stop",
    FailsOnTop: "check_survives_an_error",
    KeepsGraphs: "check_keeps_no_graph",
    KeepsBatches: "check_keeps_no_graph",
    KeepsTargets: "check_keeps_no_graph",
    Forgets: "check_resumes_exactly",
    ForgetsTheHalf: "check_resumes_exactly",
    CannotBeSaved: "check_resumes_exactly",
    DrawsWhenStopped: "check_only_watches",
    LeavesTheRate: "check_only_watches",
    TakesAStopBack: "check_survives_a_stop",
    MissesAColumn: "check_runs",
    LeavesAScaledRate: "check_survives_an_error",
    LeavesABuffer: "check_leaves_nothing",
    LeavesAnAttribute: "check_leaves_nothing",
    LeavesAParametersHook: "check_leaves_nothing",
    LeavesAThread: "check_leaves_nothing",
    LeavesAFilter: "check_leaves_nothing",
    Overwrites: "check_adds_columns_only",
    AppliesTheFitBefore: "check_forgets_the_fit_before",
    LongWinded: "check_names_itself",
    WantsToBeFirst: "check_stands_anywhere",
    Nameless: "check_names_itself",
    Undescribed: "check_names_itself",
}


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: bad.__name__)
def test_a_bad_callback_fails_exactly_its_check(bad):
    failed = []
    for each in CHECKS:
        try:
            each(bad)
        except (AssertionError, ZeroDivisionError) as error:
            failed.append(each.__name__)
            assert (
                bad.__name__ in str(error)
                or isinstance(error, ZeroDivisionError)
                or "somebody" in str(error)
            )
    assert failed == [BAD[bad]]


def test_every_check_has_a_bad_callback():
    assert {each.__name__ for each in CHECKS} == set(BAD.values())


def test_a_good_callback_passes():
    check(Good)


class KeepsSome(Callback):
    """Keeps the last batches, and those of an epoch until it ends."""

    def on_train_begin(self, run):
        self.last, self.epoch = deque(maxlen=5), []

    def on_batch_end(self, run):
        self.last.append(run.x)
        self.epoch.append(run.y)

    def on_epoch_end(self, run):
        self.epoch.clear()


def test_some_batches_may_be_kept():
    check_keeps_no_graph(KeepsSome)


class Drawn(Callback):
    """Pulls the first layer to weights that are drawn when it is made."""

    changes_training = True

    def __init__(self):
        self.weights = torch.randn(16, 6)

    def on_batch_end(self, run):
        run.net[0].weight.data.lerp_(self.weights, 0.1)


def test_a_function_that_makes_another_callback_each_time_is_told_so():
    with pytest.raises(AssertionError, match="two callbacks made one after the other"):
        check(Drawn)
    teacher = Drawn()
    check(lambda: teacher)


class Sums(ForgetsTheHalf):
    """Adds up an epoch's losses, and saves the sum: `on_epoch_begin` does not undo that."""

    def state_dict(self):
        return {"sum": self.sum}

    def load_state_dict(self, state):
        self.sum = state["sum"]


class SetsUpEachEpoch(Callback):
    """Holds a part in eval mode and hooks the net in `on_epoch_begin`, without any state."""

    changes_training = True

    def on_epoch_begin(self, run):
        run.net[1].eval()
        self.hook = run.net[0].register_forward_hook(lambda module, x, out: out * (1 + run.epoch))

    def on_epoch_end(self, run):
        self.hook.remove()

    def on_train_end(self, run):
        self.hook.remove()


@pytest.mark.parametrize("good", [Sums, SetsUpEachEpoch])
def test_what_is_set_up_in_on_epoch_begin_is_right_after_a_resume(good):
    check_resumes_exactly(good)


def test_the_kit_leaves_the_worlds_generators_alone():
    before = random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()
    example_fit([], epochs=1)
    check(Good)
    assert before == (random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist())
