"""The contract of events: which, when, in what order, and that the ends are sure."""

import copy
import signal

import pytest
import torch
from torch import nn, optim

from minifast import Callback, ModelData, Stepper, accuracy, fit
from minifast.callback import EVENTS, Events, Run, _nobody
from minifast.plugins import Checkpoint, GradAccumulation, LabelSmoothing, SaveBest


class Recorder(Callback):
    """Writes down every event as (name, epoch, batch, step)."""

    def __init__(self, log=None, name=None):
        self.log = [] if log is None else log
        self.name = name

    def _record(self, event, run):
        self.log.append(
            (self.name, event) if self.name else (event, run.epoch, run.batch, run.step)
        )


def _recording(event):
    def handler(self, run):
        self._record(event, run)

    return handler


for _event in EVENTS:
    setattr(Recorder, _event, _recording(_event))


class At(Callback):
    """Calls an action at one event, the n-th time it comes."""

    def __init__(self, event, action, n=1):
        self.event, self.action, self.n, self.count = event, action, n, 0

    def _heard(self, event, run):
        if event == self.event:
            self.count += 1
            if self.count == self.n:
                self.action(run)


def _hearing(event):
    def handler(self, run):
        self._heard(event, run)

    return handler


for _event in EVENTS:
    setattr(At, _event, _hearing(_event))


@pytest.fixture
def two_batches():
    batches = [(torch.ones(2, 6), torch.zeros(2).long()), (torch.ones(1, 6), torch.ones(1).long())]
    return ModelData(".", batches, batches[:1])


def train(net, data, callbacks, epochs=2, lr=0.1, **more):
    opt = optim.SGD(net.parameters(), lr=lr)
    return fit(net, data, epochs, nn.NLLLoss(), opt, (), callbacks, progress=False, **more)


# The golden sequence. Protected: a change here is a change of the contract.
GOLDEN = [
    ("on_train_begin", 0, 0, 0),
    ("on_epoch_begin", 0, 0, 0),
    ("on_batch_begin", 0, 0, 0),
    ("on_backward_begin", 0, 0, 0),
    ("on_backward_end", 0, 0, 0),
    ("on_batch_end", 0, 0, 1),
    ("on_batch_begin", 0, 1, 1),
    ("on_backward_begin", 0, 1, 1),
    ("on_backward_end", 0, 1, 1),
    ("on_batch_end", 0, 1, 2),
    ("on_validate_begin", 0, 1, 2),
    ("on_validate_end", 0, 1, 2),
    ("on_epoch_end", 0, 1, 2),
    ("on_epoch_begin", 1, 0, 2),
    ("on_batch_begin", 1, 0, 2),
    ("on_backward_begin", 1, 0, 2),
    ("on_backward_end", 1, 0, 2),
    ("on_batch_end", 1, 0, 3),
    ("on_batch_begin", 1, 1, 3),
    ("on_backward_begin", 1, 1, 3),
    ("on_backward_end", 1, 1, 3),
    ("on_batch_end", 1, 1, 4),
    ("on_validate_begin", 1, 1, 4),
    ("on_validate_end", 1, 1, 4),
    ("on_epoch_end", 1, 1, 4),
    ("on_train_end", 1, 1, 4),
]


def test_golden_event_sequence(net, two_batches):
    recorder = Recorder()
    train(net, two_batches, [recorder])
    assert recorder.log == GOLDEN


def test_golden_event_sequence_of_a_stop(net, two_batches):
    recorder = Recorder()
    train(net, two_batches, [At("on_batch_end", lambda run: run.stop("enough"), 3), recorder])
    assert recorder.log == [*GOLDEN[:18], ("on_train_end", 1, 0, 3)]


def test_golden_event_sequence_of_an_error(net, two_batches):
    recorder = Recorder()
    with pytest.raises(ZeroDivisionError):
        train(net, two_batches, [At("on_backward_end", lambda run: 1 / 0, 3), recorder])
    assert recorder.log == [*GOLDEN[:16], ("on_train_end", 1, 0, 2)]


def test_without_validation_data_its_events_are_not_fired(net, two_batches):
    two_batches.val_dl = None
    recorder = Recorder()
    history = train(net, two_batches, [recorder])
    assert [entry for entry in GOLDEN if "validate" not in entry[0]] == recorder.log
    assert history.columns == ["epoch", "trn_loss"]


def test_each_event_goes_through_the_list_in_its_order(net, two_batches):
    log = []
    train(net, two_batches, [Recorder(log, "b"), Recorder(log, "a")], epochs=1)
    assert [who for who, _ in log] == ["b", "a"] * (len(log) // 2)


# ---- stop --------------------------------------------------------------------------------

STOPS = {  # the event in which stop is asked for: the events after it
    ("on_train_begin", 1): ["on_train_end"],
    ("on_epoch_begin", 1): ["on_train_end"],
    ("on_batch_begin", 1): ["on_backward_begin", "on_backward_end", "on_batch_end", "on_train_end"],
    ("on_backward_end", 2): ["on_batch_end", "on_train_end"],
    ("on_batch_end", 1): ["on_train_end"],
    ("on_batch_end", 2): ["on_train_end"],
    ("on_validate_begin", 1): ["on_validate_end", "on_epoch_end", "on_train_end"],
    ("on_epoch_end", 1): ["on_train_end"],
    ("on_train_end", 1): [],
}


@pytest.mark.parametrize(("when", "after"), STOPS.items(), ids=lambda v: str(v))
def test_stop_is_a_request_that_everybody_hears_of(net, two_batches, when, after):
    event, n = when
    recorder = Recorder()
    asks = At(event, lambda run: run.stop("enough"), n)
    history = train(net, two_batches, [asks, recorder])
    names = [name for name, *_ in recorder.log]
    nth = [i for i, name in enumerate(names) if name == event][n - 1]
    assert names[nth + 1 :] == after
    assert history.stopped == "enough"


def test_the_first_reason_is_kept(net, two_batches):
    first, second = (At("on_batch_end", lambda run, r=r: run.stop(r)) for r in ("one", "two"))
    assert train(net, two_batches, [first, second]).stopped == "one"


def test_a_fit_that_was_not_stopped_says_so(net, two_batches):
    assert train(net, two_batches, []).stopped is None


def test_stopping_one_fit_does_not_stop_the_next(net, two_batches):
    train(net, two_batches, [At("on_batch_end", lambda run: run.stop("enough"))])
    assert len(train(net, two_batches, [])) == 2


# ---- what a handler may change -----------------------------------------------------------


def weights_after(net, data, callbacks, **options):
    train(net, data, callbacks, epochs=1, **options)
    return torch.cat([p.detach().flatten() for p in net.parameters()])


def fresh():
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(6, 3), nn.LogSoftmax(dim=1))


def test_assigning_the_batch_changes_what_is_learned(two_batches):
    def other(run):
        run.x, run.y = run.x * 2, 1 - run.y

    other_batches = [(x * 2, 1 - y) for x, y in two_batches.trn_dl]
    expected = weights_after(fresh(), ModelData(".", other_batches), [])
    each = [At("on_batch_begin", other, n) for n in (1, 2)]
    assert torch.equal(weights_after(fresh(), two_batches, each), expected)


def test_assigning_the_loss_changes_the_gradients_and_not_the_report(two_batches):
    def halved(run):
        run.loss = run.loss * 0.5

    each = [At("on_backward_begin", halved, n) for n in (1, 2)]
    expected = weights_after(fresh(), two_batches, [], lr=0.05)
    found = weights_after(fresh(), two_batches, each, lr=0.1)
    torch.testing.assert_close(found, expected)
    one = ModelData(".", two_batches.trn_dl[:1])
    changed = train(fresh(), one, [At("on_backward_begin", halved)], epochs=1)
    plain = train(fresh(), one, [], epochs=1)
    assert changed["trn_loss"] == plain["trn_loss"]


def test_gradients_may_be_changed_in_place(two_batches):
    def zero(run):
        for p in run.net.parameters():
            p.grad.zero_()

    each = [At("on_backward_end", zero, n) for n in (1, 2)]
    before = torch.cat([p.detach().flatten() for p in fresh().parameters()])
    assert torch.equal(weights_after(fresh(), two_batches, each), before)


def test_skip_step_skips_one_update(two_batches):
    def skip(run):
        run.skip_step = True

    found = weights_after(fresh(), two_batches, [At("on_backward_end", skip, 1)])
    expected = weights_after(fresh(), ModelData(".", two_batches.trn_dl[1:]), [])
    assert torch.equal(found, expected)


def test_a_value_added_at_epoch_end_is_a_column(net, two_batches, capsys):
    class Rate(Callback):
        def on_epoch_end(self, run):
            run.values["lr"] = run.opt.param_groups[0]["lr"]

    opt = optim.SGD(net.parameters(), lr=0.1)
    history = fit(net, two_batches, 2, nn.NLLLoss(), opt, [accuracy], [Rate()])
    assert history["lr"] == [0.1, 0.1]
    header, line, _ = capsys.readouterr().out.splitlines()
    assert header.split() == ["epoch", "trn_loss", "val_loss", "accuracy", "lr"]
    assert line.split()[-1] == "0.100000"


# ---- errors ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [ValueError, KeyError, AssertionError, KeyboardInterrupt])
@pytest.mark.parametrize("event", EVENTS)
def test_an_error_in_a_handler_reaches_the_caller_unwrapped_and_the_ends_are_sure(
    net, two_batches, event, kind
):
    def fail(run):
        raise kind("mine")

    before, after = Recorder(), Recorder()
    with pytest.raises(kind) as info:
        train(net, two_batches, [before, At(event, fail), after])
    assert type(info.value) is kind
    assert info.value.args == ("mine",)
    epoch = 1 if event == "on_train_end" else 0
    assert info.value.__notes__[0].startswith(f"raised by At.{event}, epoch {epoch}, step ")
    ends = [
        [entry[0] for entry in recorder.log].count("on_train_end") for recorder in (before, after)
    ]
    # `after` was never begun when an earlier on_train_begin failed.
    assert ends == ([1, 0] if event == "on_train_begin" else [1, 1])


def test_an_assert_without_words_stays_what_it_is(net, two_batches):
    def fail(run):
        assert False  # noqa: B011

    with pytest.raises(AssertionError) as info:
        train(net, two_batches, [At("on_batch_end", fail)])
    assert info.value.__notes__ == ["raised by At.on_batch_end, epoch 0, step 1"]


def test_the_first_error_is_raised_and_later_ones_become_its_notes(net, two_batches):
    def fail_with(error):
        def fail(run):
            raise error

        return fail

    first, second = ValueError("first"), RuntimeError("second")
    ends = Recorder()
    with pytest.raises(ValueError, match="first") as info:
        train(
            net,
            two_batches,
            [At("on_batch_end", fail_with(first)), At("on_train_end", fail_with(second)), ends],
        )
    assert info.value is first
    assert "then RuntimeError('second'), raised by At.on_train_end" in info.value.__notes__[1]
    assert ends.log[-1][0] == "on_train_end"


def test_an_error_in_the_net_is_unwrapped_and_ends_are_sure(two_batches):
    ends = Recorder()
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        train(nn.Sequential(nn.Linear(5, 3)), two_batches, [ends])
    assert ends.log[-1][0] == "on_train_end"


class FrozenError(Exception):
    """Takes no attributes."""

    __slots__ = ()

    def __setattr__(self, name, value):
        if not name.startswith("__"):
            raise AttributeError(name)
        super().__setattr__(name, value)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, OSError, ZeroDivisionError])
def test_any_error_carries_the_history_so_far(net, two_batches, error):
    def fail(run):
        raise error

    with pytest.raises(error) as info:
        train(net, two_batches, [At("on_epoch_begin", fail, 2)])
    assert len(info.value.history) == 1


def test_an_error_of_the_loader_does_too(net, two_batches):
    class Ends(list):
        def __iter__(self):
            if gone:
                raise OSError("the disk is gone")
            return super().__iter__()

    gone = []
    data = ModelData(".", Ends(two_batches.trn_dl))
    with pytest.raises(OSError, match="gone") as info:
        train(net, data, [At("on_epoch_end", gone.append, 3)], epochs=9)
    assert len(info.value.history) == 3


def test_an_error_that_takes_no_attribute_is_raised_as_it_is(net, two_batches):
    class Ends(list):
        def __iter__(self):
            raise error

    error = FrozenError()
    with pytest.raises(FrozenError) as info:
        train(net, ModelData(".", Ends(two_batches.trn_dl)), [])
    assert info.value is error


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_on_train_end_be_finished(net, two_batches, number):
    def struck(run):
        signal.raise_signal(number)
        done.append("whole")

    done, ends = [], Recorder()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's `&` ignores it
    try:
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            train(net, two_batches, [At("on_train_end", struck), ends])
    finally:
        signal.signal(signal.SIGINT, before)
    assert done == ["whole"] and ends.log[-1][0] == "on_train_end"


# ---- definitions -------------------------------------------------------------------------


def test_a_misspelt_event_fails_when_the_class_is_defined():
    with pytest.raises(TypeError, match=r"Oops\.on_bacth_end .* did you mean on_batch_end\?"):
        type("Oops", (Callback,), {"on_bacth_end": lambda self, run: None})


def test_an_event_that_is_like_none_lists_them_all():
    with pytest.raises(TypeError, match="the events are on_train_begin, "):
        type("Oops", (Callback,), {"on_quux": lambda self, run: None})


@pytest.mark.parametrize(
    "handler", [lambda self: None, lambda self, run, metrics: None, lambda self, *, run: None]
)
def test_wrong_arguments_fail_when_the_class_is_defined(handler):
    with pytest.raises(TypeError, match=r"Oops\.on_batch_end .*def on_batch_end\(self, run\):"):
        type("Oops", (Callback,), {"on_batch_end": handler})


def test_further_arguments_with_defaults_are_fine():
    type("Fine", (Callback,), {"on_batch_end": lambda self, run, every=1: None, "on_gpu": True})


def test_the_run_is_slotted():
    assert "__dict__" not in dir(Run)

    class Misspells(Callback):
        def on_batch_end(self, run):
            run.skip_stepp = True

    with pytest.raises(AttributeError, match="skip_stepp"):
        train(fresh(), ModelData(".", [(torch.ones(2, 6), torch.zeros(2).long())]), [Misspells()])


def test_events_nobody_hears_are_one_empty_call():
    events = Events([At("on_batch_end", print)])
    assert all(getattr(events, e) is not _nobody for e in EVENTS if e not in TRAIN_EVENTS)
    silent = Events([Callback()])
    assert all(getattr(silent, e) is _nobody for e in EVENTS if e not in TRAIN_EVENTS)


TRAIN_EVENTS = ("on_train_begin", "on_train_end")  # fired by `Events.training`


# ---- what is deferred ----------------------------------------------------------------------


class Defers(Recorder):
    """Asks in each event, by `run.after`, for the event to be written down."""

    def _record(self, event, run):
        run.after(lambda run: self.log.append(event))


class Notes(Recorder):
    """Writes down each event as it comes."""

    def _record(self, event, run):
        self.log.append(f"during {event}")


def fail(run):
    raise RuntimeError("on purpose")


@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("first", [True, False])
def test_after_an_error_nothing_deferred_is_done(net, md, event, first):
    done = []
    callbacks = [Defers(done), At(event, fail)]
    with pytest.raises(RuntimeError, match="on purpose"):
        train(net, md, callbacks if first else callbacks[::-1])
    assert event not in done and "on_train_end" not in done


def test_what_is_deferred_waits_for_all_handlers_of_any_event(net, md):
    log = []
    train(net, md, [Defers(log), Notes(log)])
    for event in EVENTS:
        assert log.index(event) == log.index(f"during {event}") + 1


def test_a_checkpoint_is_not_written_after_an_error_elsewhere(net, md, tmp_path):
    """SaveBest has put back its weights by the time the first callback's on_train_end runs."""
    path = tmp_path / "run.ckpt"

    written = []
    look = At("on_epoch_begin", lambda run: written.append(path.read_bytes()), n=3)
    callbacks = [SaveBest("trn_loss"), Checkpoint(path), At("on_epoch_end", fail, n=3), look]
    with pytest.raises(RuntimeError, match="on purpose"):
        train(net, md, callbacks, epochs=4)
    assert written == [path.read_bytes()]


@pytest.mark.parametrize("order", ["pause first", "stop first"])
def test_a_stop_overrules_a_pause(net, md, order):
    class Asks(Callback):
        def on_validate_end(self, run):
            (run.pause if order == "pause first" else run.stop)("the first")

        def on_epoch_end(self, run):
            (run.stop if order == "pause first" else run.pause)("the second")
            seen.append((run.stopped, run.paused))

    seen = []
    history = train(net, md, [Asks()], epochs=3)
    reason = "the second" if order == "pause first" else "the first"
    assert seen == [(reason, False)] and history.stopped == reason and len(history) == 1


def test_the_last_batch_of_an_epoch(net, arrays):
    x, y, *_ = arrays
    parts = [
        (torch.from_numpy(x[i : i + 60]), torch.from_numpy(y[i : i + 60]))
        for i in range(0, 203, 60)
    ]
    found = []

    class Looks(Callback):
        def on_batch_end(self, run):
            found.append(run.last_batch)
            assert len(run.x) == len(parts[run.batch][0])

    train(net, ModelData(".", parts), [Looks()])
    assert found == [False, False, False, True] * 2


# ---- a second pass -------------------------------------------------------------------------


class SharpnessAware(Stepper):
    """SAM (Foret et al. 2020): the gradients are those a step up the hill."""

    def backward(self, run):
        super().backward(run)
        moved = []
        with torch.no_grad():
            for p in run.net.parameters():
                moved.append(0.05 * p.grad)
                p.add_(moved[-1])
        run.opt.zero_grad()
        run.objective(self.forward(run.net, run.x)).backward()
        with torch.no_grad():
            for p, step in zip(run.net.parameters(), moved, strict=True):
                p.sub_(step)


@pytest.mark.parametrize("kind", ["plain", "smoothed", "accumulated"])
def test_a_second_pass_has_the_loss_that_callbacks_made(net, md, kind):
    smoothed = nn.CrossEntropyLoss(label_smoothing=0.2 if kind == "smoothed" else 0.0)
    torch.manual_seed(5)
    plain = copy.deepcopy(net)
    opt = optim.SGD(plain.parameters(), lr=0.1)
    for x, y in md.trn_dl:
        opt.zero_grad()
        smoothed(plain(x), y).backward()
        with torch.no_grad():
            moved = [
                0.05 * p.grad * (len(y) if kind == "accumulated" else 1) for p in plain.parameters()
            ]
            for p, step in zip(plain.parameters(), moved, strict=True):
                p.add_(step)
        opt.zero_grad()
        smoothed(plain(x), y).backward()
        with torch.no_grad():
            for p, step in zip(plain.parameters(), moved, strict=True):
                p.sub_(step)
        opt.step()
    torch.manual_seed(5)
    callbacks = {"smoothed": [LabelSmoothing(0.2)], "accumulated": [GradAccumulation(1)]}
    train(net, md, callbacks.get(kind, []), epochs=1, stepper=SharpnessAware())
    for p, q in zip(plain.parameters(), net.parameters(), strict=True):
        torch.testing.assert_close(p, q, atol=1e-6, rtol=0)


def test_a_second_pass_refuses_a_loss_that_it_cannot_know(net, md):
    class Penalizes(Callback):
        changes_training = True

        def on_backward_begin(self, run):
            run.loss = run.loss + run.preds.square().mean()

    class Again(Callback):
        def on_backward_end(self, run):
            run.objective(run.preds)

    with pytest.raises(TypeError, match="transform_loss"):
        train(net, md, [Penalizes(), Again()])
