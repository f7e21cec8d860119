"""The stock: each plug-in against an oracle, all of them against the kit, and in random orders."""

import copy
import itertools
import json
import random
import subprocess
import sys
import tomllib
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from torch import nn, optim
from torch.optim import lr_scheduler, swa_utils

from minifast import ArrayLoader, Callback, ModelData, fit, plugins
from minifast.callback import EVENTS, hears
from minifast.checks import check_callbacks
from minifast.plugins import (
    EMA,
    SWA,
    ActivationStats,
    Checkpoint,
    Compiled,
    CosineRestarts,
    CSVLogger,
    EarlyStopping,
    Freeze,
    GradAccumulation,
    GradClip,
    GradientStats,
    JSONLogger,
    LabelSmoothing,
    LivePlot,
    LossRecorder,
    MixedPrecision,
    MixUp,
    MLflow,
    OneCycle,
    Profile,
    SaveBest,
    Schedule,
    TensorBoard,
    TerminateOnNaN,
    TimeLimit,
    Warmup,
    class_weights,
    lr_find,
    preview,
)
from minifast.testing import CHECKS, example_data, example_fit, example_net

from .test_callback import At, Recorder


class EveryBatch(Callback):
    """Calls a function at one event."""

    def __init__(self, event, action):
        self.event, self.action = event, action

    def on_batch_begin(self, run):
        if self.event == "on_batch_begin":
            self.action(run)

    def on_batch_end(self, run):
        if self.event == "on_batch_end":
            self.action(run)


class FixedValues(Callback):
    """Puts a given column in the table, an entry an epoch."""

    def __init__(self, *values, name="score"):
        self.given, self.name = values, name

    def on_epoch_end(self, run):
        run.values[self.name] = self.given[run.epoch]


def weights(net):
    return {name: t.detach().clone() for name, t in net.state_dict().items()}


def assert_equal(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


def assert_close(a, b, **tolerance):
    for name in a:
        torch.testing.assert_close(a[name], b[name], **tolerance)


def small(seed=0, lr=0.1, momentum=0.9):
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3), nn.LogSoftmax(dim=1))
    return net, optim.SGD(net.parameters(), lr=lr, momentum=momentum)


def train(net, opt, callbacks=(), epochs=1, data=None, crit=None, **options):
    data = example_data() if data is None else data
    crit = crit or nn.NLLLoss()
    return fit(net, data, epochs, crit, opt, (), callbacks, progress=False, **options)


# ---- the kit over all of them, and the registry ------------------------------------------

FOLDER = Path(__file__).parent
MAKE = {
    "ActivationStats": lambda tmp: ActivationStats(),
    "CSVLogger": lambda tmp: CSVLogger(tmp / "log.csv"),
    "Checkpoint": lambda tmp: Checkpoint(tmp / "run.ckpt", every=3),
    "CosineRestarts": lambda tmp: CosineRestarts(0.7, mult=2),
    "EMA": lambda tmp: EMA(0.9),
    "EarlyStopping": lambda tmp: EarlyStopping(patience=1),
    "Freeze": lambda tmp: Freeze("0", "1", until=1),
    "GradAccumulation": lambda tmp: GradAccumulation(3),
    "GradClip": lambda tmp: GradClip(0.1),
    "GradientStats": lambda tmp: GradientStats(),
    "JSONLogger": lambda tmp: JSONLogger(tmp / "log.jsonl"),
    "LabelSmoothing": lambda tmp: LabelSmoothing(0.2),
    "LivePlot": lambda tmp: LivePlot(seconds=0.001),
    "LossRecorder": lambda tmp: LossRecorder(),
    "MLflow": lambda tmp: MLflow(tmp / "runs"),
    "MixUp": lambda tmp: MixUp(0.4),
    "OneCycle": lambda tmp: OneCycle(0.1),
    "Profile": lambda tmp: Profile(tmp / "trace.json", skip=1, batches=1),
    "SWA": lambda tmp: SWA(start=1),
    "SaveBest": lambda tmp: SaveBest(),
    "Schedule": lambda tmp: Schedule(lambda opt: lr_scheduler.StepLR(opt, 3, 0.5), "batch"),
    "TensorBoard": lambda tmp: TensorBoard(tmp / "tb", every=2),
    "TerminateOnNaN": lambda tmp: TerminateOnNaN(),
    "TimeLimit": lambda tmp: TimeLimit("1h"),
    "Warmup": lambda tmp: Warmup(5),
}
BY_KIT = list(MAKE)


def test_every_callback_of_the_stock_is_put_to_the_kit():
    callbacks = {p.name for p in plugins.available() if p.kind == "callback"}
    assert callbacks == set(MAKE)


@pytest.fixture(autouse=True)
def folders_for_mlflow(monkeypatch):
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", BY_KIT)
def test_the_stock_passes_the_kit(name, check, tmp_path):
    check(lambda: MAKE[name](tmp_path))


def test_entry_points_and_the_stock_name_the_same_things():
    pyproject = tomllib.loads((FOLDER.parent / "pyproject.toml").read_text())
    groups = pyproject["project"]["entry-points"]
    named = groups["minifast.callbacks"] | groups["minifast.steppers"]
    stock = {name: f"minifast.plugins.{module}:{name}" for name, module in plugins.STOCK.items()}
    functions = {"class_weights", "lr_find", "preview"}
    assert named == {name: value for name, value in stock.items() if name not in functions}
    for name in plugins.STOCK:
        assert getattr(plugins, name).__module__ == f"minifast.plugins.{plugins.STOCK[name]}"


def test_listing_imports_no_plug_in():
    code = """
import sys
from minifast import plugins
found = plugins.available()
assert len(found) > 20 and all(plugin.summary() for plugin in found)
assert not [m for m in sys.modules if m.startswith('minifast.plugins.')], sys.modules
from minifast.plugins import EarlyStopping
loaded = {m for m in sys.modules if m.startswith('minifast.plugins.')}
used = {'early_stopping', '_best', '_monitor'}
assert loaded == {f'minifast.plugins.{name}' for name in used}, loaded
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_command_lists_what_is_installed():
    out = subprocess.run(
        [sys.executable, "-m", "minifast", "plugins"], capture_output=True, text=True, check=True
    ).stdout
    (line,) = [line for line in out.splitlines() if " EarlyStopping " in line]
    assert "minifast 0." in line and "Stops when a column of the table has not improved" in line


def test_load_tells_what_there_is():
    assert plugins.load("EMA") is EMA
    with pytest.raises(LookupError, match="names no installed plug-in"):
        plugins.load("Nothing")
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        plugins.Nothing  # noqa: B018


# ---- order -------------------------------------------------------------------------------


def accepted(callbacks):
    """Whether the list makes sense to `fit`."""
    try:
        check_callbacks(callbacks)
    except ValueError:
        return False
    return True


def random_order(seed, tmp_path):
    """Some of the stock in an order that makes sense, with recorders between."""
    rng = random.Random(seed)
    slow_or_early = "Profile", "MLflow", "EarlyStopping", "CosineRestarts"
    names = [name for name in BY_KIT if name not in slow_or_early]
    chosen = rng.sample(names, rng.randint(2, 8))
    for one, other in ("EMA", "SWA"), ("OneCycle", "Schedule"):
        if {one, other} <= set(chosen):
            chosen.remove(one)
    while True:
        rng.shuffle(chosen)
        built = [MAKE[name](tmp_path) for name in chosen]
        if accepted(built):
            return built


def counted(callback, log):
    """The callback, of a class that also writes down each event that it hears."""

    def counting(event):
        def handler(self, run):
            log.append((id(self), event))
            getattr(super(kind, self), event)(run)

        return handler

    heard = {event: counting(event) for event in EVENTS if hears(callback, event)}
    kind = type(type(callback).__name__, (type(callback),), heard)
    callback.__class__ = kind
    return callback


@pytest.mark.parametrize("seed", range(100))
def test_nobody_misses_an_event_in_any_order(seed, tmp_path):
    counts = []
    built = [counted(callback, counts) for callback in random_order(seed, tmp_path)]
    log = []
    first, last = Recorder(log, "first"), Recorder(log, "last")
    stop = seed % 3 == 0 and [At("on_batch_end", lambda run: run.stop("now"), n=10)]
    example_fit([first, *built, *(stop or []), last], epochs=2)
    events = [event for who, event in log if who == "first"]
    assert events == [event for who, event in log if who == "last"]
    assert [who for who, _ in log] == ["first", "last"] * len(events)
    for callback in built:
        mine = [event for who, event in counts if who == id(callback)]
        assert mine == [event for event in events if hears(callback, event)]
    assert [events.count(e) for e in ("on_train_begin", "on_train_end")] == [1, 1]
    assert events.count("on_batch_end") == (10 if stop else 16)


@pytest.mark.parametrize(
    ("wrong", "late", "early"),
    [
        ([GradClip(1.0), GradAccumulation(2)], "GradClip", "GradAccumulation"),
        ([LabelSmoothing(), MixUp()], "LabelSmoothing", "MixUp"),
        ([GradAccumulation(2), MixUp()], "GradAccumulation", "MixUp"),
        ([SaveBest(), EMA()], "SaveBest", "EMA"),
    ],
    ids=lambda v: str(v),
)
def test_an_order_that_makes_no_sense_is_refused(wrong, late, early):
    with pytest.raises(ValueError, match=f"callbacks has {late} before {early}"):
        example_fit(wrong)
    example_fit(wrong[::-1])


def test_the_same_object_twice_is_refused():
    stop = EarlyStopping()
    with pytest.raises(ValueError, match="the same object twice"):
        example_fit([stop, stop])
    example_fit([EarlyStopping(), EarlyStopping("accuracy")])


def test_the_composition_of_the_issue_in_every_order_that_makes_sense():
    results = []
    for order in itertools.permutations(
        ["MixUp", "GradAccumulation", "EMA", "OneCycle", "SaveBest"]
    ):
        built = [MAKE[name](None) for name in order]
        if not accepted(built):
            with pytest.raises(ValueError, match="makes no sense"):
                example_fit(built)
        else:
            results.append(example_fit(built, epochs=2)[-1]["val_loss"])
    assert len(results) == 30
    assert len(set(results)) == 1


# ---- when to stop, what to keep ----------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "options", "epochs"),
    [
        ([1, 2, 3, 2, 2, 2, 9], {"patience": 2}, 5),
        ([3, 2, 1, 2, 2, 2, 0], {"patience": 2, "mode": "min"}, 5),
        ([1, 1.05, 1.09, 1.09, 5, 5, 5], {"patience": 3, "min_delta": 0.1}, 4),
        ([1, float("nan"), float("nan"), 2, 3, 4, 5], {"patience": 2}, 3),
        ([1, 2, 3, 4, 5, 6, 7], {"patience": 1}, 7),
    ],
)
def test_early_stopping_by_a_recorded_sequence(values, options, epochs):
    stop = EarlyStopping("score", **{"mode": "max"} | options)
    history = example_fit([FixedValues(*values), stop], epochs=7)
    assert len(history) == epochs
    assert (history.stopped is None) == (epochs == 7)


def test_early_stopped_weights_are_those_of_a_shorter_fit():
    net, opt = small(lr=0.5)
    history = train(net, opt, [EarlyStopping(patience=1)], epochs=50)
    assert history.stopped
    short, opt = small(lr=0.5)
    train(short, opt, epochs=len(history))
    assert_equal(weights(net), weights(short))


def test_the_direction_goes_by_the_name():
    values = [1, 2, 3, 4]
    for name, epochs in ("my_loss", 2), ("rmse", 2), ("accuracy", 4), ("auc", 4):
        history = example_fit([FixedValues(*values, name=name), EarlyStopping(name, 1)], epochs=4)
        assert len(history) == epochs, name


def test_a_column_that_is_not_there_is_told():
    with pytest.raises(KeyError, match=r"(?s)'acc' must be a column.*trn_loss, val_loss, accuracy"):
        example_fit([EarlyStopping("acc")])


class Ends(Callback):
    """Ends training in its own way after the third epoch."""

    def __init__(self, how):
        self.how = how

    def on_epoch_begin(self, run):
        if run.epoch == 3 and isinstance(self.how, BaseException):
            raise self.how
        if run.epoch == 3 and self.how == "stop":
            run.stop("enough")


@pytest.mark.parametrize("how", ["whole", "stop", ValueError("x"), KeyboardInterrupt()], ids=repr)
def test_save_best_restores_however_training_ended(how):
    net, opt = small()
    kept = {}

    class Copy(Callback):
        def on_epoch_end(self, run):
            kept[run.epoch] = weights(run.net)

    callbacks = [FixedValues(1, 3, 2, 0), Copy(), SaveBest("score", mode="max"), Ends(how)]
    try:
        train(net, opt, callbacks, epochs=4)
    except (ValueError, KeyboardInterrupt) as error:
        assert error is how
    assert_equal(weights(net), kept[1])


def test_save_best_may_only_keep():
    net, opt = small()
    keep = SaveBest("score", mode="max", restore=False)
    train(net, opt, [FixedValues(2, 1), keep], epochs=2)
    assert keep.best.epoch == 0
    assert not torch.equal(keep.weights["0.weight"], net[0].weight)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("batch", [0, 3, 7, 9])
def test_terminate_on_nan_stops_at_the_batch(bad, batch):
    def poison(run):
        if run.step == batch:
            run.x[0, 0] = bad

    history = example_fit([EveryBatch("on_batch_begin", poison), TerminateOnNaN()], epochs=3)
    assert f"at batch {batch % 8} of epoch {batch // 8}, lr 0.05" in history.stopped
    assert len(history) == batch // 8


def test_time_limit():
    clock = iter(range(0, 1000, 10))
    steps = []
    history = example_fit(
        [TimeLimit("1min", clock=lambda: next(clock)), EveryBatch("on_batch_end", steps.append)],
        epochs=9,
    )
    assert len(steps) == 6
    assert history.stopped == "the time limit of 1min is up"


@pytest.mark.parametrize(
    "bad",
    [
        *("", "10", "ten minutes", "5 parsecs", "0s", "1min and more", "1..5s", ".s"),
        *(0, -1, float("nan"), None, [1]),
    ],
)
def test_a_limit_that_is_no_time_is_told(bad):
    with pytest.raises(ValueError, match="limit must be a time, got"):
        TimeLimit(bad)


# ---- rates -------------------------------------------------------------------------------


def rates_of(callbacks, epochs=3, opt_fn=None, key="lr"):
    seen = []

    class Rates(Callback):
        def on_backward_end(self, run):
            group = run.opt.param_groups[0]
            seen.append(group[key] if key != "betas" else group[key][0])

    net, opt = small()
    if opt_fn:
        opt = opt_fn(net.parameters())
    before = copy.deepcopy(opt.param_groups[0] | {"params": None})
    train(net, opt, [*callbacks, Rates()], epochs)
    return seen, before, opt.param_groups[0] | {"params": None}


def rates_by_torch(make, steps=24, opt_fn=None, key="lr"):
    net, opt = small()
    if opt_fn:
        opt = opt_fn(net.parameters())
    scheduler = make(opt)
    seen = []
    for _ in range(steps):
        value = opt.param_groups[0][key]
        seen.append(value if key != "betas" else value[0])
        opt.step()
        scheduler.step()
    return seen


@pytest.mark.parametrize("pct", [0.3, 0.5, 0.1])
@pytest.mark.parametrize(
    ("opt_fn", "moment"),
    [(partial(optim.SGD, lr=0.1, momentum=0.9), "momentum"), (optim.Adam, "betas")],
)
def test_one_cycle_is_torchs(pct, opt_fn, moment):
    ours = OneCycle(0.4, pct_start=pct)
    for key in "lr", moment:
        seen, before, after = rates_of([ours], opt_fn=opt_fn, key=key)
        expected = rates_by_torch(
            lambda opt: lr_scheduler.OneCycleLR(opt, 0.4, total_steps=24, pct_start=pct),
            steps=24,
            opt_fn=opt_fn,
            key=key,
        )
        assert seen == pytest.approx(expected, rel=1e-9)
        assert before == after


def test_one_cycle_takes_a_rate_for_each_group():
    net, _ = small()
    opt = optim.SGD([{"params": [p]} for p in net.parameters()], lr=0.1)
    tops = []

    class Rates(Callback):
        def on_batch_end(self, run):
            tops.append([group["lr"] for group in run.opt.param_groups])

    train(net, opt, [OneCycle([1.0, 2.0, 3.0, 4.0]), Rates()])
    assert np.max(tops, axis=0) == pytest.approx([1.0, 2.0, 3.0, 4.0], rel=0.1)
    with pytest.raises(ValueError, match="2 learning rates for 4 groups"):
        train(net, opt, [OneCycle([1.0, 2.0])])
    assert [group["lr"] for group in opt.param_groups] == [0.1] * 4


@pytest.mark.parametrize(("epochs", "mult"), [(1, 1), (1, 2), (2, 1), (0.5, 2)])
def test_cosine_restarts_are_torchs(epochs, mult):
    seen, before, after = rates_of([CosineRestarts(epochs, mult)], epochs=4)
    expected = rates_by_torch(
        lambda opt: lr_scheduler.CosineAnnealingWarmRestarts(opt, int(8 * epochs), mult), 32
    )
    assert seen == pytest.approx(expected, abs=1e-12)
    assert before == after


def test_warmup_scales_whatever_rate_there_is():
    seen, before, after = rates_of([Warmup(4)])
    assert seen == pytest.approx([0.025, 0.05, 0.075] + [0.1] * 21)
    assert before == after
    plain, *_ = rates_of([CosineRestarts()])
    warmed, *_ = rates_of([CosineRestarts(), Warmup(4)])
    assert warmed == pytest.approx([plain[0] / 4, plain[1] / 2, plain[2] * 3 / 4, *plain[3:]])


@pytest.mark.parametrize(
    "make",
    [
        lambda opt: lr_scheduler.StepLR(opt, 5, 0.5),
        lambda opt: lr_scheduler.ExponentialLR(opt, 0.9),
        lambda opt: lr_scheduler.CosineAnnealingLR(opt, 24),
        lambda opt: lr_scheduler.SequentialLR(
            opt,
            [lr_scheduler.LinearLR(opt, 0.1, 1, 4), lr_scheduler.ExponentialLR(opt, 0.9)],
            [4],
        ),
    ],
)
def test_a_scheduler_of_torchs_by_the_batch(make):
    seen, _, _ = rates_of([Schedule(make, "batch")])
    assert seen == pytest.approx(rates_by_torch(make))


def test_a_scheduler_by_the_epoch_and_by_a_column():
    seen, _, _ = rates_of([Schedule(lambda opt: lr_scheduler.StepLR(opt, 1, 0.5), "epoch")])
    assert seen == pytest.approx([0.1] * 8 + [0.05] * 8 + [0.025] * 8)
    plateau = Schedule(
        lambda opt: lr_scheduler.ReduceLROnPlateau(opt, patience=0, factor=0.5), "epoch", "score"
    )
    seen, _, _ = rates_of([FixedValues(1, 2, 3), plateau])
    assert seen == pytest.approx([0.1] * 16 + [0.05] * 8)


@pytest.mark.parametrize("callback", [OneCycle(0.1), CosineRestarts()])
def test_a_loader_without_length_is_told(callback):
    x, y = torch.ones(4, 6), torch.zeros(4).long()
    net, opt = small()
    with pytest.raises(ValueError, match="trn_dl has no length"):
        train(net, opt, [callback], data=ModelData(".", iter([(x, y)])))


# ---- lr_find -----------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("kind", ["sgd", "adam", "after a fit", "with gradients"])
def test_a_fit_after_lr_find_is_the_fit_without_it(seed, kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    results = []
    for find in False, True:
        torch.manual_seed(seed)
        net, data = example_net(), example_data()
        opt = (optim.Adam if kind == "adam" else partial(optim.SGD, lr=0.1, momentum=0.9))(
            net.parameters()
        )
        if kind == "after a fit":
            train(net, opt, data=data)
        if kind == "with gradients":
            nn.NLLLoss()(net(torch.ones(4, 6)), torch.zeros(4).long()).backward()
        net.eval()
        grads = [p.grad is None for p in net.parameters()]
        if find:
            before = copy.deepcopy((net.state_dict(), opt.state_dict(), torch.get_rng_state()))
            found = lr_find(net, data, nn.NLLLoss(), opt)
            assert str(before) == str((net.state_dict(), opt.state_dict(), torch.get_rng_state()))
            assert grads == [p.grad is None for p in net.parameters()]
            assert not net.training
            assert found.lrs[0] == 1e-6 and len(found.lrs) == len(found.losses)
        train(net, opt, data=data)
        results.append(weights(net))
    assert_equal(*results)
    assert list(tmp_path.iterdir()) == []


def test_lr_find_leaves_everything_after_an_error_too():
    net, opt = small()
    before = weights(net)
    with pytest.raises(ZeroDivisionError):
        lr_find(net, example_data(), nn.NLLLoss(), opt,
                callbacks=[At("on_batch_end", lambda run: 1 / 0, 5)])  # fmt: skip
    assert_equal(weights(net), before)
    assert opt.param_groups[0]["lr"] == 0.1


def test_lr_find_suggests_a_rate_that_learns_and_stops_when_the_loss_runs_away():
    # For the mean of (w - x)² / 2 gradient descent runs away above a rate of 2.
    data = ModelData(".", ArrayLoader(np.ones((64, 1)), np.full((64, 1), 3.0), bs=8, seed=0))
    net = nn.Linear(1, 1, bias=False)
    opt = optim.SGD(net.parameters(), lr=1.0)
    found = lr_find(net, data, lambda p, y: ((p - y) ** 2).mean() / 2, opt, end_lr=100)
    assert 0.01 < found.suggestion < 2
    assert 2 < found.lrs[-1] < 100
    assert len(found.plot().axes[0].lines) == 2


def test_lr_find_that_cannot_begin_says_so():
    net, opt = small()
    with pytest.raises(ValueError, match="the loss runs away at once"):
        lr_find(net, example_data(), lambda p, y: p.sum() * float("nan"), opt)


# ---- gradients and weights ---------------------------------------------------------------


def plain_loop(net, opt, batches, change=lambda: None, crit=None):
    crit = crit or nn.NLLLoss()
    for x, y in batches:
        opt.zero_grad()
        crit(net(x), y).backward()
        change()
        opt.step()


@pytest.mark.parametrize("kind", ["norm", "value"])
def test_grad_clip_is_torchs(kind):
    batches = list(example_data().trn_dl)
    net, opt = small(lr=1.0)
    clip = GradClip(max_norm=0.1) if kind == "norm" else GradClip(max_value=0.01)
    train(net, opt, [clip], data=ModelData(".", batches))
    other, opt = small(lr=1.0)
    torchs = {
        "norm": lambda: nn.utils.clip_grad_norm_(other.parameters(), 0.1),
        "value": lambda: nn.utils.clip_grad_value_(other.parameters(), 0.01),
    }
    plain_loop(other, opt, batches, torchs[kind])
    assert_equal(weights(net), weights(other))


@pytest.mark.parametrize("bad", [{}, {"max_norm": 1, "max_value": 1}])
def test_grad_clip_wants_one_limit(bad):
    with pytest.raises(ValueError, match="one of them, above 0"):
        GradClip(**bad)


@pytest.mark.parametrize("bad", [0, -1, float("nan"), "1", [1.0]])
def test_grad_clip_wants_a_limit_above_0(bad):
    for name in "max_norm", "max_value":
        with pytest.raises((TypeError, ValueError), match=f"{name} must be above 0, got"):
            GradClip(**{name: bad})


@pytest.mark.parametrize(
    "sizes", [[4, 4, 4, 4], [4, 4, 4], [4, 4, 4, 4, 4, 3], [3, 5, 1, 2, 7], [9]]
)
@pytest.mark.parametrize("n", [1, 2, 3, 5])
@pytest.mark.parametrize("length", [True, False], ids=["with a length", "without"])
def test_accumulated_batches_are_one_big_batch(sizes, n, length):
    x, y = torch.randn(sum(sizes), 6), torch.randint(0, 3, (sum(sizes),))
    parts = list(zip(x.split(sizes), y.split(sizes), strict=True))
    groups = [parts[i : i + n] for i in range(0, len(parts), n)]
    big = [tuple(torch.cat(side) for side in zip(*group, strict=True)) for group in groups]

    class NoLength:
        def __iter__(self):
            return iter(parts)

    net, opt = small()
    data = ModelData(".", parts if length else NoLength(), parts)
    train(net, opt, [GradAccumulation(n)], epochs=2, data=data)
    other, opt = small()
    for _ in range(2):
        plain_loop(other, opt, big)
    assert_close(weights(net), weights(other), rtol=1e-5, atol=1e-6)


def test_clipping_what_was_accumulated_is_clipping_the_big_batch():
    parts = list(example_data().trn_dl)
    big = [tuple(torch.cat(side) for side in zip(*parts[i : i + 4], strict=True)) for i in (0, 4)]
    results = []
    for batches, callbacks in (
        (parts, [GradAccumulation(4), GradClip(0.05)]),
        (big, [GradClip(0.05)]),
    ):
        net, opt = small(lr=1.0)
        train(net, opt, callbacks, data=ModelData(".", batches))
        results.append(weights(net))
    assert_close(*results, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.99])
def test_ema_is_torchs(decay):
    batches = list(example_data().trn_dl)
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3), nn.LogSoftmax(dim=1))
    other = copy.deepcopy(net)
    ema = EMA(decay)
    train(net, optim.SGD(net.parameters(), lr=0.1), [ema], data=ModelData(".", batches), epochs=2)
    average = swa_utils.AveragedModel(
        other, multi_avg_fn=swa_utils.get_ema_multi_avg_fn(decay), use_buffers=True
    )
    opt = optim.SGD(other.parameters(), lr=0.1)
    for _ in range(2):
        for x, y in batches:
            opt.zero_grad()
            nn.NLLLoss()(other(x), y).backward()
            opt.step()
            average.update_parameters(other)
    expected = weights(average.module)
    del expected["1.num_batches_tracked"]  # a count: torch averages it, we copy it
    assert_close(expected, weights(net), rtol=1e-5, atol=1e-6)


def test_ema_validates_with_the_average_and_trains_with_the_weights():
    net, opt = small()
    data = example_data()
    ema = EMA(0.9)
    history = train(net, opt, [ema], epochs=3, data=data)
    with torch.no_grad():
        x, y = next(iter(data.val_dl.in_order(100)))
        assert history[-1]["val_loss"] == pytest.approx(nn.NLLLoss()(net(x), y).item(), rel=1e-5)
    plain, opt = small()
    assert train(plain, opt, epochs=3)["trn_loss"] == history["trn_loss"]


def test_swa_is_the_mean_of_the_epochs_as_07_recorded_it():
    # Weights 1, 2, 3, 4 with start 2: nothing, 2, 2.5, 3. (0.7 counts epochs from 1, we from 0.)
    net = nn.Linear(1, 1, bias=False)
    found = []

    class Set(Callback):
        def on_batch_end(self, run):
            run.net.weight.data.fill_(run.epoch + 1.0)

        def on_validate_end(self, run):
            found.append(run.net.weight.item())

    batches = [(torch.ones(2, 1), torch.ones(2, 1))]
    opt = optim.SGD(net.parameters(), lr=0.0)
    data = ModelData(".", batches, batches)
    train(net, opt, [Set(), SWA(start=1)], epochs=4, data=data, crit=nn.MSELoss())
    assert found == [1, 2, 2.5, 3]
    assert net.weight.item() == 3


@pytest.mark.parametrize("validate", [True, False])
def test_swa_without_validation_is_the_same(validate):
    data = example_data()
    if not validate:
        data.val_dl = None
    net, opt = small()
    ends = []

    class Copy(Callback):
        def on_batch_end(self, run):
            if run.batch + 1 == run.n_batches:
                ends.append(weights(run.net))

    train(net, opt, [Copy(), SWA()], epochs=3, data=data)
    mean = {name: torch.stack([end[name] for end in ends]).mean(0) for name in ends[0]}
    assert_close(weights(net), mean, rtol=1e-5, atol=1e-6)


def test_save_best_keeps_the_average_that_was_validated():
    net, opt = small()
    seen = {}

    class Copy(Callback):
        def on_validate_end(self, run):
            seen[run.epoch] = weights(run.net)

    keep = SaveBest("score", mode="max")
    train(net, opt, [EMA(0.9), FixedValues(1, 3, 2), Copy(), keep], epochs=3)
    assert_equal(weights(net), seen[1])


def test_freeze_until_an_epoch():
    torch.manual_seed(0)
    net = example_net()
    opt = optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    states = []

    class Copy(Callback):
        def on_epoch_end(self, run):
            states.append(weights(run.net))

    start = weights(net)
    train(net, opt, [Freeze(net[0], net[1], until=2), Copy()], epochs=3)
    for state in states[:2]:
        for name in start:
            assert torch.equal(state[name], start[name]) == name.startswith(("0.", "1.")), name
    assert not torch.equal(states[2]["0.weight"], start["0.weight"])
    assert not torch.equal(states[2]["1.running_mean"], start["1.running_mean"])
    assert all(p.requires_grad for p in net.parameters())


def test_freeze_leaves_what_was_frozen_before_frozen():
    net, opt = small()
    net[0].bias.requires_grad_(False)
    with pytest.raises(ZeroDivisionError):
        train(net, opt, [Freeze(net[0]), At("on_batch_end", lambda run: 1 / 0)])
    assert [p.requires_grad for p in net.parameters()] == [True, False, True, True]


def test_freeze_wants_parts_of_the_net():
    net, opt = small()
    for freeze in Freeze(nn.Linear(2, 2)), Freeze(), Freeze("7"):
        with pytest.raises(ValueError, match="Freeze wants parts of the net"):
            train(net, opt, [freeze])


def test_mixed_precision_is_torchs_autocast():
    batches = list(example_data().trn_dl)
    net, opt = small()
    train(net, opt, data=ModelData(".", batches), stepper=MixedPrecision())
    other, opt = small()
    for x, y in batches:
        with torch.autocast("cpu", torch.bfloat16):
            preds = other(x)
        opt.zero_grad()
        nn.NLLLoss()(preds.float(), y).backward()
        opt.step()
    assert_equal(weights(net), weights(other))
    plain, opt = small()
    train(plain, opt, data=ModelData(".", batches))
    assert not torch.equal(plain[0].weight, net[0].weight)
    assert net[0].weight.dtype == torch.float32


@pytest.mark.parametrize("skips", [False, True])
def test_float16_scales_the_loss_as_torchs_scaler_does(skips):
    batches = list(example_data().trn_dl)

    def skip(run):
        run.skip_step = True

    callbacks = [At("on_backward_end", skip, n) for n in (1, 4)] if skips else []
    net, opt = small()
    train(net, opt, callbacks, data=ModelData(".", batches), stepper=MixedPrecision(torch.float16))
    other, opt = small()
    scaler = torch.amp.GradScaler("cpu")
    for i, (x, y) in enumerate(batches):
        with torch.autocast("cpu", torch.float16):
            preds = other(x)
        opt.zero_grad()
        scaler.scale(nn.NLLLoss()(preds.float(), y)).backward()
        scaler.unscale_(opt)
        if not (skips and i in (0, 3)):
            scaler.step(opt)
        scaler.update()
    assert_equal(weights(net), weights(other))


def test_half_precision_that_does_not_serve_is_told():
    with pytest.raises(ValueError, match="dtype does not serve"):
        MixedPrecision(torch.float32)
    with pytest.raises(ValueError, match="to add up gradients"):
        example_fit([GradAccumulation(2)], stepper=MixedPrecision(torch.float16))
    example_fit([GradAccumulation(2)], stepper=MixedPrecision())


def test_a_compiled_net_keeps_its_names():
    data = ModelData(".", list(example_data().trn_dl))
    net, opt = small()
    train(net, opt, stepper=Compiled(backend="eager"), epochs=2, data=data)
    expected, opt = small()
    train(expected, opt, epochs=2, data=data)
    assert_close(weights(net), weights(expected))
    assert list(net.state_dict()) == ["0.weight", "0.bias", "2.weight", "2.bias"]


# ---- data and loss -----------------------------------------------------------------------


def test_mixup_by_hand():
    batches = list(example_data().trn_dl)
    net, opt = small()
    torch.manual_seed(5)
    train(net, opt, [MixUp(0.4)], data=ModelData(".", batches))
    other, opt = small()
    torch.manual_seed(5)
    for x, y in batches:
        t = torch.distributions.Beta(torch.tensor(0.4), torch.tensor(0.4)).sample().item()
        order = torch.randperm(len(y))
        preds = other(x.lerp(x[order], 1 - t))
        opt.zero_grad()
        (t * nn.NLLLoss()(preds, y) + (1 - t) * nn.NLLLoss()(preds, y[order])).backward()
        opt.step()
    assert_equal(weights(net), weights(other))


@pytest.mark.parametrize("crit", [nn.NLLLoss(), nn.CrossEntropyLoss()])
@pytest.mark.parametrize("eps", [0.0, 0.1, 0.5])
def test_label_smoothing_is_torchs(crit, eps):
    batches = list(example_data().trn_dl)
    results = []
    for callbacks, loss in (
        ([LabelSmoothing(eps)], crit),
        ([], nn.CrossEntropyLoss(label_smoothing=eps)),
    ):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(6, 3))
        if isinstance(loss, nn.NLLLoss):
            net.append(nn.LogSoftmax(dim=1))
        opt = optim.SGD(net.parameters(), lr=0.1)
        train(net, opt, callbacks, data=ModelData(".", batches), crit=loss)
        results.append(net[0].weight)
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "crit",
    [
        nn.MSELoss(),
        nn.functional.nll_loss,
        nn.CrossEntropyLoss(label_smoothing=0.1),
        type("Own", (nn.NLLLoss,), {})(),
    ],
    ids=["another loss", "a function", "smoothed already", "a subclass"],
)
def test_label_smoothing_refuses_other_losses(crit):
    net, opt = small()
    with pytest.raises(ValueError, match="LabelSmoothing does not fit the loss"):
        train(net, opt, [LabelSmoothing()], crit=crit)


@pytest.mark.parametrize("seed", range(10))
def test_class_weights_are_sklearns(seed):
    y = np.random.default_rng(seed).integers(0, 4, 50)
    y[:4] = range(4)
    expected = compute_class_weight("balanced", classes=np.arange(4), y=y)
    np.testing.assert_allclose(class_weights(y), expected, rtol=1e-6)
    np.testing.assert_allclose(class_weights(torch.from_numpy(y)), expected, rtol=1e-6)


# ---- watching ----------------------------------------------------------------------------


def test_csv_logger_writes_the_history(tmp_path):
    path = tmp_path / "log.csv"
    history = example_fit([FixedValues(1, 2, 3), CSVLogger(path)], epochs=3)
    frame = pd.read_csv(path)
    assert list(frame.columns) == history.columns
    for name in history.columns:
        assert frame[name].tolist() == pytest.approx(history[name], rel=1e-12)
    assert [p.name for p in tmp_path.iterdir()] == ["log.csv"]


def test_json_logger_writes_lines(tmp_path):
    path = tmp_path / "log.jsonl"
    values = FixedValues(1.5, float("nan"), torch.tensor(2.5))
    stop = At("on_epoch_end", lambda run: run.stop("x"), 3)
    history = example_fit([values, JSONLogger(path), stop], epochs=5)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line.get("epoch") for line in lines] == [0, 1, 2, None]
    assert [line["score"] for line in lines[:3]] == [1.5, "nan", 2.5]
    assert lines[0]["val_loss"] == history[0]["val_loss"]
    assert lines[3] == {"stopped": "x"}


def test_tensorboard_reads_what_was_written(tmp_path):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    history = example_fit([TensorBoard(tmp_path, every=4)], epochs=3)
    events = reader.EventAccumulator(str(tmp_path)).Reload()
    for name in "trn_loss", "val_loss", "accuracy":
        found = events.Scalars(f"epoch/{name}")
        assert [event.step for event in found] == [0, 1, 2]
        assert [event.value for event in found] == pytest.approx(history[name], rel=1e-6)
    assert [event.step for event in events.Scalars("batch/trn_loss")] == [4, 8, 12, 16, 20, 24]


@pytest.mark.parametrize("how", ["whole", "stop", ValueError("x")], ids=repr)
def test_mlflow_reads_what_was_logged(tmp_path, how):
    mlflow = pytest.importorskip("mlflow")
    log = MLflow(tmp_path / "runs", "digits", "first", {"note": "small"})
    net, opt = small()
    history = []

    class Copy(Callback):
        def on_epoch_end(self, run):
            history.append(dict(run.values))

    try:
        train(net, opt, [Copy(), log, Ends(how)], epochs=4)
    except ValueError as error:
        assert error is how
    client = mlflow.MlflowClient((tmp_path / "runs").as_uri())
    run = client.get_run(log.run_id)
    assert client.get_experiment(run.info.experiment_id).name == "digits"
    assert run.info.run_name == "first"
    assert run.info.status == ("KILLED" if isinstance(how, ValueError) else "FINISHED")
    assert run.data.params == {"epochs": "4", "crit": "NLLLoss", "opt": "SGD", "lr": "0.1",
                               "parameters": "83", "note": "small"}  # fmt: skip
    logged = client.get_metric_history(log.run_id, "val_loss")
    assert [metric.step for metric in logged] == list(range(len(history)))
    assert [metric.value for metric in logged] == [row["val_loss"] for row in history]


def test_profile_writes_a_trace(tmp_path):
    profile = Profile(tmp_path / "trace.json", skip=2, batches=3)
    example_fit([profile])
    trace = json.loads((tmp_path / "trace.json").read_text())
    calls = [
        event for event in trace["traceEvents"] if event.get("name") == "aten::native_batch_norm"
    ]
    assert len(calls) == 3
    assert "Self CPU" in profile.table


def test_activation_stats_are_numpys():
    batches = list(example_data().trn_dl)
    watch = ActivationStats()
    net, opt = small()
    inputs = []
    net[1].register_forward_hook(lambda m, x, out: inputs.append(out.detach().clone().numpy()))
    train(net, opt, [watch], data=ModelData(".", batches), epochs=2)
    found = watch.stats["1"]
    assert found["mean"] == pytest.approx([a.mean() for a in inputs], abs=1e-6)
    assert found["std"] == pytest.approx([a.std() for a in inputs], abs=1e-6)
    assert found["dead"] == pytest.approx([(a == 0).all(0).mean() for a in inputs])
    assert len(watch.plot().axes) == 3


def test_activation_stats_of_some_layers_and_dead_ones():
    net, opt = small()
    with torch.no_grad():
        net[0].bias.fill_(-100)
    watch = ActivationStats([net[1]])
    train(net, opt, [watch])
    assert list(watch.stats) == ["1"]
    assert watch.stats["1"]["dead"][0] == 1


def test_gradient_stats_are_the_length_of_what_is_stepped_by():
    lengths = []

    class Lengths(Callback):
        def on_backward_end(self, run):
            if not run.skip_step:
                flat = torch.cat([p.grad.flatten() for p in run.net.parameters()])
                lengths.append(flat.norm().item())

    stats = GradientStats()
    history = example_fit([GradAccumulation(3), GradClip(0.5), stats, Lengths()])
    assert len(lengths) == 3
    assert stats.norms == pytest.approx(lengths, rel=1e-5)
    assert history[0]["grad_norm"] == pytest.approx(np.mean(lengths), rel=1e-5)
    assert max(lengths) <= 0.5 + 1e-6


def test_the_loss_recorder_has_what_each_batch_was_learned_with():
    net, opt = small()
    seen, recorder = [], LossRecorder()

    class See(Callback):
        def on_backward_begin(self, run):
            seen.append((run.loss.item(), run.opt.param_groups[0]["lr"]))

    train(net, opt, [OneCycle(0.1), See(), recorder], epochs=2)
    assert list(zip(recorder.losses, recorder.lrs, strict=True)) == seen
    assert recorder.momentums[0] == pytest.approx(0.95)
    assert min(recorder.momentums) == pytest.approx(0.85, abs=1e-3)
    assert len(recorder.plot_lr().axes) == 2 and len(recorder.plot_loss().axes) == 1


@pytest.mark.parametrize("make", [optim.SGD, optim.Adam])
def test_the_preview_is_what_a_fit_does(make):
    net, _ = small()
    groups = [{"params": net[0].parameters(), "lr": 0.1}, {"params": net[1:].parameters()}]
    opt = make(groups, lr=0.2)
    before, generator = copy.deepcopy(opt.state_dict()), torch.get_rng_state()
    schedule = [OneCycle([0.1, 0.5]), Warmup(3)]
    course = preview(schedule, opt, batches=len(example_data().trn_dl), epochs=2)
    assert opt.state_dict() == before and torch.equal(torch.get_rng_state(), generator)
    recorder = LossRecorder()
    train(net, opt, [*schedule, recorder], epochs=2)
    assert (course.lrs, course.momentums) == (recorder.lrs, recorder.momentums)


def test_the_live_plot_has_the_running_losses():
    live, seen = LivePlot(seconds=1e-9), []

    class See(Callback):
        def on_batch_end(self, run):
            seen.append((run.step, run.running_loss.value()))

    history = example_fit([live, See()], epochs=2)
    assert [point for point in live.running if point in seen] == live.running
    assert [loss for _, loss in live.epochs["val_loss"]] == history["val_loss"]
    (ax,) = live.plot().axes
    assert [line.get_label() for line in ax.lines] == ["running loss", "val_loss"]


# ---- plug-ins from elsewhere: two forward passes, the batch by its gradient, another loader --


def test_what_the_contract_allows_others_to_write(tmp_path):
    class Twice(Callback):
        """R-Drop: two passes through the dropout, held together."""

        changes_training = True

        def on_backward_begin(self, run):
            again = run.stepper.forward(run.net, run.x)
            run.loss = run.loss + (run.preds.exp() * (run.preds - again)).sum(1).mean()

    class Adversarial(Callback):
        """The batch moved a little against the net, by its own gradient."""

        changes_training = True

        def on_batch_begin(self, run):
            x = run.x.clone().requires_grad_()
            loss = run.crit(run.stepper.forward(run.net, x), run.y)
            run.x = run.x + 0.1 * torch.autograd.grad(loss, x)[0].sign()

    class Growing(Callback):
        """More rows each epoch."""

        changes_training = True

        def on_train_begin(self, run):
            self.whole = run.data

        def on_epoch_begin(self, run):
            x, y = self.whole.trn_dl.arrays
            rows = min(20 * (run.epoch + 1), len(x))
            loader = ArrayLoader(x[:rows], y[:rows], bs=8, shuffle=True)
            run.data = ModelData(self.whole.path, loader, self.whole.val_dl)

    for kind in Twice, Adversarial, Growing:
        for check in CHECKS:
            check(kind)
        both = [kind(), MixUp(), GradAccumulation(2), EMA(0.9), OneCycle(0.1), SaveBest()]
        ended = nullcontext()
        if kind is Growing:  # which has fewer batches than the loader that fit was given
            ended = pytest.warns(UserWarning, match="laid out for the 16 batches .* had 8: it was")
        with ended:
            assert len(example_fit(both, epochs=2)) == 2
