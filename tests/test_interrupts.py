"""Ctrl-C and SIGTERM, also in fits inside fits and under asyncio."""

import asyncio
import signal

import pytest

from minifast import Callback
from minifast.checkpoint import snapshot
from minifast.testing import example_fit

SIGNALS = {signal.SIGINT: KeyboardInterrupt, signal.SIGTERM: SystemExit}


@pytest.fixture(autouse=True)
def default_handlers():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's `&` ignores it
    yield
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    signal.signal(signal.SIGINT, before)


class Whole(Callback):
    """Lets a batch be finished, as `Checkpoint` does."""

    def __init__(self):
        self.ended = []

    def on_train_begin(self, run):
        run.ends_whole = True

    def on_batch_end(self, run):
        self.ended.append(run.step)


class Strikes(Callback):
    """Ctrl-C, or another signal, in the middle of a step."""

    def __init__(self, step, number=signal.SIGINT, times=1):
        self.step, self.number, self.times = step, number, times
        self.ended = []

    def on_backward_begin(self, run):
        if run.step + 1 == self.step:
            for _ in range(self.times):
                signal.raise_signal(self.number)

    def on_batch_end(self, run):
        self.ended.append(run.step)


class FitsInside(Callback):
    """Fits another net at the end of a batch."""

    def __init__(self, step, inner):
        self.step, self.inner, self.history = step, inner, None

    def on_batch_end(self, run):
        if run.step == self.step:
            self.history = example_fit(self.inner, epochs=3)


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("inner_is_whole", [False, True])
def test_a_fit_inside_one_that_ends_whole_ends_after_its_batch(number, inner_is_whole):
    whole, strikes = Whole(), Strikes(4, number)
    inner = FitsInside(2, [strikes, Whole()] if inner_is_whole else [strikes])
    with pytest.raises(SIGNALS[number]):
        example_fit([inner, whole], epochs=3)
    assert strikes.ended == [1, 2, 3, 4]  # not to its own end, and no half a batch
    assert inner.history.stopped == signal.Signals(number).name
    assert whole.ended == [1, 2]


def test_a_second_signal_ends_both_at_once():
    whole, strikes = Whole(), Strikes(4, times=2)
    inner = FitsInside(2, [strikes, Whole()])
    with pytest.raises(KeyboardInterrupt):
        example_fit([inner, whole], epochs=3)
    assert strikes.ended == [1, 2, 3] and inner.history is None
    assert whole.ended == [1]


def test_only_the_inner_fit_ends_whole():
    strikes, outer = Strikes(4), Strikes(99)
    inner = FitsInside(2, [strikes, Whole()])
    with pytest.raises(KeyboardInterrupt):
        example_fit([outer, inner], epochs=3)
    assert strikes.ended == [1, 2, 3, 4]
    assert outer.ended == [1, 2] and inner.history is None  # raised at the end of the inner one


def test_a_fit_that_begins_after_the_signal_does_not_train():
    strikes, late = Strikes(2), Strikes(99)
    inner = FitsInside(2, [late])
    with pytest.raises(KeyboardInterrupt):
        example_fit([strikes, inner, Whole()], epochs=3)
    assert late.ended == [] and inner.history.stopped == "SIGINT"


@pytest.mark.parametrize("whole", [False, True])
def test_under_asyncio_a_fit_ends_as_without(whole):
    strikes = Strikes(3)

    async def main():
        handler = signal.getsignal(signal.SIGINT)
        try:
            example_fit([strikes, Whole()] if whole else [strikes], epochs=3)
        finally:
            assert signal.getsignal(signal.SIGINT) is handler

    with pytest.raises(KeyboardInterrupt) as caught:
        asyncio.run(main())
    assert strikes.ended == ([1, 2, 3] if whole else [1, 2])
    assert len(caught.value.history) == 0


def test_a_handler_of_the_programs_is_left_alone():
    def mine(number, frame):
        heard.append(number)

    heard, strikes = [], Strikes(2)
    signal.signal(signal.SIGINT, mine)
    try:
        assert len(example_fit([strikes, Whole()], epochs=2)) == 2
        assert signal.getsignal(signal.SIGINT) is mine
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    assert heard == [signal.SIGINT]


def test_the_run_that_was_interrupted_inside_another_goes_on():
    """The state of an outer run that ends whole is that of the batch in progress."""
    state = []

    class Saves(Whole):
        def on_train_begin(self, run):
            super().on_train_begin(run)
            run.at_end.append(lambda run: state.append(snapshot(run)))

    with pytest.raises(KeyboardInterrupt):
        example_fit([FitsInside(2, [Strikes(4)]), Saves()], epochs=3)
    unbroken = example_fit([FitsInside(2, [])], epochs=3)
    assert example_fit([], epochs=3, resume=state[0])["trn_loss"] == unbroken["trn_loss"]
