"""All pairs of built-in callbacks, and lists at random, against one plain loop that does it all."""

import copy
import functools
import itertools
import random

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn, optim
from torch.optim import lr_scheduler

from minifast import Callback, ModelData, fit
from minifast.checkpoint import snapshot
from minifast.checks import check_callbacks
from minifast.plugins import (
    EMA,
    SWA,
    CosineRestarts,
    Freeze,
    GradAccumulation,
    GradClip,
    LabelSmoothing,
    LossRecorder,
    MixUp,
    OneCycle,
    Profile,
    SaveBest,
    Schedule,
    Warmup,
    lr_find,
    preview,
)

from .test_plugins import MAKE as STOCK

EPOCHS = 2
ROWS = 4, 4, 2, 4, 3  # of the batches of an epoch


def exponential(opt):
    return lr_scheduler.ExponentialLR(opt, 0.8)


CHANGES = {
    "CosineRestarts": lambda: CosineRestarts(0.6, mult=2),  # 3 batches, 6, 12, ...
    "EMA": lambda: EMA(0.5),
    "Freeze": lambda: Freeze("0", until=1),
    "GradAccumulation": lambda: GradAccumulation(3),
    "GradClip": lambda: GradClip(0.3),
    "LabelSmoothing": lambda: LabelSmoothing(0.2),
    "MixUp": lambda: MixUp(0.4),
    "OneCycle": lambda: OneCycle(0.3),
    "SWA": lambda: SWA(),
    "SaveBest": lambda: SaveBest(),
    "Schedule": lambda: Schedule(exponential, "batch"),
    "Warmup": lambda: Warmup(7),
}
WATCHES = [name for name in STOCK if name not in CHANGES and name != "MLflow"]


def fresh():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3))
    net.append(nn.LogSoftmax(dim=1)).double()  # a BatchNorm of two rows magnifies rounding
    return net, optim.SGD(net.parameters(), lr=0.2, momentum=0.9)


@functools.cache
def data():
    torch.manual_seed(1)
    batches = [
        (torch.randn(n, 6, dtype=torch.double), torch.randint(0, 3, (n,))) for n in (*ROWS, 8)
    ]
    return ModelData(".", batches[:-1], batches[-1:])


def course(has):
    """What sets the learning rate and the momentum of each batch: PyTorch's own schedulers."""
    shadow = optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.2, momentum=0.9)
    schedulers = [exponential(shadow) for name in has if name == "Schedule"]
    if "OneCycle" in has:
        n = EPOCHS * len(ROWS)
        schedulers.append(lr_scheduler.OneCycleLR(shadow, 0.3, total_steps=n))
    if "CosineRestarts" in has:
        schedulers.append(lr_scheduler.CosineAnnealingWarmRestarts(shadow, 3, 2))
    return shadow, schedulers


@functools.cache
def plain(*has):  # noqa: C901
    """Trains by hand; gives weights, `val_loss` of the epochs, learning rates of the batches."""
    (net, opt), md = fresh(), data()
    shadow, schedulers = course(has)
    torch.manual_seed(2)
    frozen = [*net[0].parameters()] if "Freeze" in has else []
    average, means, losses, best, lrs = None, 0, [], None, []
    for epoch in range(EPOCHS):
        net.train()
        for p in frozen:
            p.requires_grad_(epoch > 0)
        rows = 0
        for i, (x, y) in enumerate(md.trn_dl):
            step = epoch * len(ROWS) + i
            warm = min((step + 1) / 7, 1) if "Warmup" in has else 1
            (group,) = shadow.param_groups
            opt.param_groups[0].update(lr=group["lr"] * warm, momentum=group["momentum"])
            targets = [(1.0, y)]
            if "MixUp" in has:
                t = torch.distributions.Beta(torch.tensor(0.4), torch.tensor(0.4)).sample().item()
                order = torch.randperm(len(y))
                x, targets = t * x + (1 - t) * x[order], [(t, y), (1 - t, y[order])]
            eps = 0.2 if "LabelSmoothing" in has else 0.0
            preds = net(x)
            loss = sum(t * F.cross_entropy(preds, y, label_smoothing=eps) for t, y in targets)
            if not rows:
                opt.zero_grad()
            rows += len(y)
            accumulates = "GradAccumulation" in has
            (loss * len(y) if accumulates else loss).backward()
            lrs.append(group["lr"] * warm)
            stepped = not accumulates or i in (2, 4)
            if stepped:
                grads = [p.grad for p in net.parameters() if p.grad is not None]
                for grad in grads:
                    grad /= rows if accumulates else 1
                for _ in range(has.count("GradClip")):
                    nn.utils.clip_grad_norm_(net.parameters(), 0.3)
                opt.step()
                rows = 0
                if "EMA" in has:
                    average = mixed(average, net, 0.5)
            shadow.step()
            for scheduler in schedulers if stepped or "Schedule" not in has else ():
                scheduler.step()
        if "SWA" in has:
            means += 1
            average = mixed(average, net, 1 / means)
        trained = copy.deepcopy(net.state_dict())
        net.load_state_dict(average or trained)
        net.eval()
        with torch.no_grad():
            losses.append(sum(F.nll_loss(net(x), y).item() for x, y in md.val_dl))
        if losses[-1] == min(losses):
            best = copy.deepcopy(net.state_dict())
        if epoch + 1 < EPOCHS:
            net.load_state_dict(trained)
    return (best if "SaveBest" in has else net.state_dict()), losses, lrs


def mixed(average, net, part):
    """The average with the weights taken in; what is not a float is copied."""
    new = {name: t.clone() for name, t in net.state_dict().items()}
    for name in average or ():
        if new[name].is_floating_point():
            new[name] = average[name] + part * (new[name] - average[name])
    return new


class Rates(Callback):
    """Notes the learning rates with which the batches are learned."""

    def __init__(self):
        self.lrs = []

    def on_backward_end(self, run):
        self.lrs.append(run.opt.param_groups[0]["lr"])


def assert_is_the_plain_loop(callbacks, names):
    net, opt = fresh()
    torch.manual_seed(2)
    rates = Rates()
    history = fit(net, data(), EPOCHS, nn.NLLLoss(), opt, (), [rates, *callbacks], progress=False)
    weights, losses, lrs = plain(*sorted(n for n in names if n in CHANGES))
    found = {name: t for name, t in net.state_dict().items() if "num_batches" not in name}
    torch.testing.assert_close(found, {name: weights[name] for name in found}, rtol=1e-7, atol=1e-9)
    assert history["val_loss"] == pytest.approx(losses, rel=1e-7)
    assert rates.lrs == pytest.approx(lrs, rel=1e-9)


NEVER = [  # of these never two in one list
    {"EMA", "SWA"},
    {"OneCycle", "CosineRestarts"},
    {"OneCycle", "Schedule"},
    {"CosineRestarts", "Schedule"},
    *({name} for name in ("Profile", "EMA", "SWA", "OneCycle", "CosineRestarts", "Warmup")),
    *({name} for name in ("MixUp", "LabelSmoothing", "GradAccumulation")),
]
WRONG_ORDER = {
    ("LabelSmoothing", "MixUp"),
    ("GradAccumulation", "MixUp"),
    ("GradAccumulation", "LabelSmoothing"),
    ("GradClip", "GradAccumulation"),
    ("GradientStats", "GradAccumulation"),
    ("SaveBest", "EMA"),
    ("SaveBest", "SWA"),
}


@pytest.mark.parametrize("first", CHANGES)
def test_every_pair_is_the_plain_loop_or_refused(first, tmp_path):
    make = {name: lambda name=name: STOCK[name](tmp_path) for name in WATCHES} | CHANGES
    for pair in itertools.chain.from_iterable([(first, name), (name, first)] for name in make):
        callbacks = [make[name]() for name in pair]
        if set(pair) in NEVER:
            with pytest.raises(ValueError, match="cannot be combined"):
                check_callbacks(callbacks)
        elif pair in WRONG_ORDER:
            with pytest.raises(ValueError, match="makes no sense"):
                check_callbacks(callbacks)
        elif pair == ("Freeze", "Freeze"):
            with pytest.raises(ValueError, match="two Freeze callbacks hold the same parameters"):
                assert_is_the_plain_loop(callbacks, pair)
        else:
            assert_is_the_plain_loop(callbacks, pair)


@pytest.mark.parametrize("name", [*WATCHES, "MLflow"])
def test_two_that_watch_may_be_in_one_list(name, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    (tmp_path / "other").mkdir()
    two = [STOCK[name](tmp_path), STOCK[name](tmp_path / "other")]
    if {name} in NEVER:
        with pytest.raises(ValueError, match="cannot be combined"):
            check_callbacks(two)
    else:
        assert_is_the_plain_loop(two, ())


def test_a_profiler_within_a_profiler_is_refused():
    other = torch.profiler.profile(acc_events=True)  # without it PyTorch 2.10 warns
    with other, pytest.raises(RuntimeError, match="is running already"):
        assert_is_the_plain_loop([Profile(skip=1, batches=1)], ())


@pytest.mark.parametrize("seed", range(40))
def test_lists_at_random_are_the_plain_loop(seed):
    rng = random.Random(seed)
    while True:
        names = rng.sample([*CHANGES], rng.randint(3, 8))
        callbacks = [CHANGES[name]() for name in names]
        try:
            check_callbacks(callbacks)
        except ValueError:
            continue
        break
    assert_is_the_plain_loop(callbacks, names)


# ---- schedules with a warm-up ------------------------------------------------------------

SCHEDULERS = {
    "exponential": exponential,
    "cosine": lambda opt: lr_scheduler.CosineAnnealingLR(opt, 10),
    "one cycle": lambda opt: lr_scheduler.OneCycleLR(opt, 0.3, total_steps=11),
    "cyclic": lambda opt: lr_scheduler.CyclicLR(opt, 0.01, 0.3, step_size_up=3),
    "step": lambda opt: lr_scheduler.StepLR(opt, 2, 0.5),
    "chained": lambda opt: lr_scheduler.ChainedScheduler([exponential(opt), exponential(opt)]),
    "sequential": lambda opt: lr_scheduler.SequentialLR(
        opt, [lr_scheduler.LinearLR(opt, 0.1, 1, 4), exponential(opt)], [4]
    ),
}


def learned_with(callbacks, epochs=EPOCHS, resume=None):
    """The learning rate and the momentum of each batch, and those after the fit."""
    net, opt = fresh()
    seen = []

    class See(Callback):
        def on_backward_end(self, run):
            (group,) = run.opt.param_groups
            seen.append((group["lr"], group["momentum"]))

    callbacks = [*callbacks, See()]
    fit(net, data(), epochs, nn.NLLLoss(), opt, (), callbacks, progress=False, resume=resume)
    (group,) = opt.param_groups
    return [*seen, (group["lr"], group["momentum"])]


def by_hand(make, warm=0):
    """A loop in which the scheduler knows nothing of the warm-up."""
    _, opt = fresh()
    scheduler = make(opt)
    (group,) = opt.param_groups
    seen = []
    for step in range(EPOCHS * len(ROWS)):
        seen.append((group["lr"] * min((step + 1) / max(warm, 1), 1), group["momentum"]))
        opt.step()
        scheduler.step()
    return [*seen, (group["lr"], group["momentum"])]


def flat(pairs):
    return [number for pair in pairs for number in pair]


@pytest.mark.parametrize("order", [1, -1], ids=["schedule first", "warm-up first"])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_scheduler_with_a_warm_up_steps_from_its_own_learning_rates(name, order):
    make = SCHEDULERS[name]
    callbacks = [Schedule(make, "batch"), Warmup(5)][::order]
    assert flat(learned_with(callbacks)) == pytest.approx(flat(by_hand(make, 5)), rel=1e-12)


def test_the_warm_up_of_an_exponential_in_numbers():
    lrs = [lr / 2 for lr, _ in learned_with([Schedule(exponential, "batch"), Warmup(5)])]
    assert lrs[:6] == pytest.approx([0.02, 0.032, 0.0384, 0.04096, 0.04096, 0.032768])


@pytest.mark.parametrize("name", ["OneCycle", "CosineRestarts"])
def test_the_warm_up_of_a_course_is_the_same_in_both_orders(name):
    course = CHANGES[name]
    whole = learned_with([course()])
    expected = [(lr * min((i + 1) / 5, 1), m) for i, (lr, m) in enumerate(whole[:-1])]
    for order in 1, -1:
        found = learned_with([course(), Warmup(5)][::order])
        assert flat(found) == pytest.approx(flat([*expected, (0.2, 0.9)]), rel=1e-12)


class Fails(Callback):
    def __init__(self, event, step):
        self.event, self.step = event, step

    def _at(self, event, run):
        if (event, run.step) == (self.event, self.step):
            raise ZeroDivisionError

    def on_batch_begin(self, run):
        self._at("on_batch_begin", run)

    def on_backward_end(self, run):
        self._at("on_backward_end", run)

    def on_batch_end(self, run):
        self._at("on_batch_end", run)


@pytest.mark.parametrize("event", ["on_batch_begin", "on_backward_end", "on_batch_end"])
@pytest.mark.parametrize("name", ["OneCycle", "CosineRestarts", "Schedule", None])
def test_an_error_in_a_batch_leaves_no_scaled_learning_rate(event, name):
    """The optimizer then has the schedule's own, or for a course those of before the fit."""
    for order in itertools.permutations([name, "Warmup", "Fails"] if name else ["Warmup", "Fails"]):
        net, opt = fresh()
        callbacks = [Fails(event, 3) if n == "Fails" else CHANGES[n]() for n in order]
        with pytest.raises(ZeroDivisionError):
            fit(net, data(), 1, nn.NLLLoss(), opt, (), callbacks, progress=False)
        (group,) = opt.param_groups
        steps = 2 if event == "on_batch_end" else 3  # after an error nothing deferred is done
        own = [0.2 * 0.8**steps, 0.2 * 0.8**3] if name == "Schedule" else [0.2]
        assert any(group["lr"] == pytest.approx(lr) for lr in own), order
        assert group["momentum"] == 0.9


@pytest.mark.parametrize("first", [True, False], ids=["snapshot first", "snapshot last"])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_snapshot_between_a_batch_and_its_schedulers_step_resumes_exactly(name, first):
    states = []

    class Keep(Callback):
        def on_batch_end(self, run):
            run.after(lambda run: states.append(snapshot(run)))

    make = SCHEDULERS[name]
    callbacks = [Schedule(make, "batch"), Warmup(5)]
    callbacks.insert(0 if first else 2, Keep())
    whole = learned_with(callbacks)
    for done, state in enumerate(states, 1):
        rest = learned_with([Schedule(make, "batch"), Warmup(5)], resume=state)
        assert rest == whole[done:], done


def test_batches_whose_step_is_skipped_are_not_counted():
    class Skips(Callback):
        def on_backward_end(self, run):
            run.skip_step = run.step % 2 == 0

    found = learned_with([Schedule(exponential, "batch"), Skips(), Warmup(1)])
    assert [lr for lr, _ in found] == pytest.approx([0.2 * 0.8 ** (i // 2) for i in range(11)])


def test_two_schedulers_each_step_as_in_a_loop():
    halve = Schedule(lambda opt: lr_scheduler.StepLR(opt, 1, 0.5), "epoch")
    for order in 1, -1:
        found = learned_with([Schedule(exponential, "batch"), halve][::order])
        expected = [0.2 * 0.8**i * 0.5 ** (i // 5) for i in range(11)]
        assert [lr for lr, _ in found] == pytest.approx(expected)


def test_the_preview_and_the_recorder_show_the_warm_up():
    _, opt = fresh()
    for order in 1, -1:
        course = preview([Schedule(exponential, "batch"), Warmup(5)][::order], opt, batches=10)
        assert course.lrs == pytest.approx([lr for lr, _ in by_hand(exponential, 5)[:-1]])
    recorder = LossRecorder()
    learned_with([recorder, OneCycle(0.3), Warmup(3)])
    assert recorder.lrs == [lr for lr, _ in learned_with([OneCycle(0.3), Warmup(3)])[:-1]]


def test_the_finder_tries_its_own_learning_rates_during_a_warm_up():
    net, opt = fresh()
    rates = Rates()
    with_warm_up = [Warmup(50), rates]
    found = lr_find(net, data(), nn.NLLLoss(), opt, steps=20, end_lr=0.1, callbacks=with_warm_up)
    assert rates.lrs[: len(found.lrs)] == found.lrs
