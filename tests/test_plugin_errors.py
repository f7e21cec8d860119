"""What plugins refuse, what they say of each other, and what they leave after an error."""

import json
import math

import pytest
import torch
from torch import nn, optim
from torch.optim import lr_scheduler
from torch.optim.lr_scheduler import ExponentialLR, ReduceLROnPlateau, StepLR

from minifast import Callback, ModelData, fit
from minifast.checkpoint import snapshot
from minifast.plugins import (
    EMA,
    ActivationStats,
    CosineRestarts,
    Freeze,
    GradAccumulation,
    GradClip,
    JSONLogger,
    LabelSmoothing,
    MixUp,
    OneCycle,
    SaveBest,
    Schedule,
    Warmup,
)
from minifast.testing import example_data, example_fit


def small(make=optim.SGD, **options):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    return net, make(net.parameters(), lr=0.1, **options)


def train(net, opt, callbacks, data=None, crit=None, epochs=1, **options):
    crit = crit or nn.CrossEntropyLoss()
    data = data or example_data()
    return fit(net, data, epochs, crit, opt, (), callbacks, progress=False, **options)


# ---- what plugins say of each other ------------------------------------------------------


class MyClip(GradClip):
    """Another GradClip."""


class MyEMA(EMA):
    """Another EMA."""


def test_subclasses_and_classes_count_in_what_plugins_say_of_each_other():
    class Before(Callback):
        must_precede = (GradClip,)

    class Never(Callback):
        conflicts_with = (SaveBest, "EMA")

    for wrong in [MyClip(1.0), GradAccumulation(4)], [MyClip(1.0), Before()]:
        with pytest.raises(ValueError, match="callbacks has MyClip before"):
            example_fit(wrong)
        example_fit(wrong[::-1])
    for wrong in [Never(), SaveBest()], [MyEMA(0.5), Never()], [MyEMA(0.5), EMA(0.5)]:
        for callbacks in wrong, wrong[::-1]:
            with pytest.raises(ValueError, match="which cannot be combined") as info:
                example_fit([Callback(), *callbacks])
            assert "conflicting-callbacks" in str(info.value)


@pytest.mark.parametrize("name", ["must_precede", "conflicts_with"])
@pytest.mark.parametrize("value", ["GradClip", GradClip, (GradClip(1.0),), None], ids=str)
def test_what_a_plugin_says_of_others_is_a_tuple_of_classes(name, value):
    wrong = type("Wrong", (Callback,), {name: value})
    with pytest.raises(TypeError, match=f"Wrong.{name} must be a tuple of classes"):
        example_fit([wrong()])


def test_a_handler_on_the_object_is_called():
    calls = []

    class Any(Callback):
        def __init__(self, **handlers):
            vars(self).update(handlers)

    example_fit([Any(on_epoch_end=lambda run: calls.append(run.epoch))], epochs=2)
    assert calls == [0, 1]
    with pytest.raises(TypeError, match=r"Any\.on_bacth_end .* did you mean on_batch_end\?"):
        example_fit([Any(on_bacth_end=print)])
    with pytest.raises(TypeError, match=r"Any\.on_batch_end must be callable as on_batch_end"):
        example_fit([Any(on_batch_end=lambda: None)])
    example_fit([Any(on_gpu=True)])


def test_the_repr_of_a_callback_that_holds_much_is_short():
    class Holds(Callback):
        def __init__(self, values, net, text):
            self.values, self.net, self.text = values, net, text

    held = Holds([0.5] * 10**5, nn.Sequential(*[nn.Linear(9, 9)] * 99), "x" * 10**5)
    assert len(repr(held)) < 500 and "\n" not in repr(held)
    assert repr(MyClip(0.5)) == "MyClip(max_norm=0.5, max_value=None)"


# ---- schedules ---------------------------------------------------------------------------


def test_a_scheduler_of_another_optimizer_is_refused():
    net, opt = small()
    _, other = small()
    with pytest.raises(ValueError, match="the scheduler is of another optimizer"):
        train(net, opt, [Schedule(StepLR(other, 1), "epoch")])
    used = Schedule(StepLR(opt, 1, 0.5), "epoch")
    train(net, opt, [used], epochs=2)
    assert opt.param_groups[0]["lr"] == 0.025
    train(net, opt, [used])  # the same scheduler counts on
    assert opt.param_groups[0]["lr"] == 0.0125
    fresh, opt = small()
    with pytest.raises(ValueError, match="the scheduler is of another optimizer"):
        train(fresh, opt, [used])
    assert opt.param_groups[0]["lr"] == 0.1


def test_a_class_of_schedulers_makes_one_and_anything_else_is_refused():
    for make in ReduceLROnPlateau, lambda opt: ReduceLROnPlateau(opt):
        net, opt = small()
        train(net, opt, [Schedule(make, "epoch")], epochs=2)
    for wrong in small()[1], 3, None:
        with pytest.raises(TypeError, match="Schedule needs a scheduler"):
            Schedule(wrong, "epoch")
    net, opt = small()
    with pytest.raises(TypeError, match="a function that makes one, got NoneType"):
        train(net, opt, [Schedule(lambda opt: None, "epoch")])


@pytest.mark.parametrize(
    ("step", "monitor", "val", "error"),
    [
        ("batch", "val_loss", True, "cannot step after each batch"),
        ("epoch", "val_loss", False, "monitor='val_loss' must be a column"),
    ],
)
def test_a_plateau_without_its_column_is_refused_before_the_first_step(step, monitor, val, error):
    net, opt = small()
    data, before = example_data(), net[0].weight.clone()
    data = data if val else ModelData(".", data.trn_dl)
    with pytest.raises((ValueError, KeyError), match=error):
        train(net, opt, [Schedule(ReduceLROnPlateau, step, monitor)], data)
    assert torch.equal(net[0].weight, before)


def test_a_plateau_whose_column_never_comes_says_so():
    net, opt = small()
    with pytest.raises(KeyError, match=r"(?s)monitor='acc' must be a column.*trn_loss, val_loss"):
        train(net, opt, [Schedule(ReduceLROnPlateau, "epoch", "acc")])


def test_a_schedule_that_cannot_begin_applies_nothing_of_an_earlier_fit():
    cycle = OneCycle([0.1])
    net, opt = small(momentum=0.9)
    train(net, opt, [cycle])
    net, opt = small(optim.Adam)
    opt.add_param_group({"params": [nn.Parameter(torch.ones(1))]})
    with pytest.raises(ValueError, match="1 learning rates for 2 groups"):
        train(net, opt, [cycle])
    assert [group["betas"] for group in opt.param_groups] == [(0.9, 0.999)] * 2
    assert [group["lr"] for group in opt.param_groups] == [0.1] * 2


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: CosineRestarts(mult=0.5), "mult"),
        (lambda: CosineRestarts(mult=0), "mult"),
        (lambda: CosineRestarts(mult=math.inf), "mult"),
        (lambda: CosineRestarts(epochs=0), "epochs"),
        (lambda: CosineRestarts(epochs=-1), "epochs"),
        (lambda: CosineRestarts(epochs="1"), "epochs"),
        (lambda: CosineRestarts(min_factor=math.nan), "min_factor"),
        (lambda: OneCycle(0), "max_lr"),
        (lambda: OneCycle("0.1"), "max_lr"),
        (lambda: OneCycle([0.1, -1]), "max_lr"),
        (lambda: OneCycle(0.1, div=0), "div"),
        (lambda: OneCycle(0.1, final_div=0), "final_div"),
        (lambda: OneCycle(0.1, pct_start=30), "pct_start"),
        (lambda: OneCycle(0.1, moms=0.9), "moms"),
        (lambda: OneCycle(0.1, moms=(0.9,)), "moms"),
        (lambda: OneCycle(0.1, moms=(0.95, 1.0)), "moms"),
        (lambda: Warmup(-1), "batches"),
        (lambda: Warmup(2.5), "batches"),
        (lambda: LabelSmoothing("0.1"), "eps"),
        (lambda: LabelSmoothing(1), "eps"),
        (lambda: MixUp(0), "alpha"),
        (lambda: MixUp(math.nan), "alpha"),
        (lambda: MixUp(None), "alpha"),
    ],
)
def test_an_argument_out_of_range_is_refused_when_it_is_given(make, name):
    with pytest.raises((TypeError, ValueError), match=f"^{name} (must be|cannot be)"):
        make()


def test_a_cycle_shorter_than_a_batch_is_refused():
    with pytest.raises(ValueError, match="shorter than a batch"):
        example_fit([CosineRestarts(epochs=0.1)])


@pytest.mark.parametrize("mult", [1, 1.5, 2, 3])
def test_cycles_of_any_length_by_their_closed_form(mult):
    schedule = CosineRestarts(epochs=1, mult=mult)
    schedule.length, begin, length = 5.5, 0.0, 5.5
    for step in range(200):
        if step >= begin + length:
            begin, length = begin + length, length * mult
        expected = (1 + math.cos(math.pi * (step - begin) / length)) / 2
        assert schedule.factor(step) == pytest.approx(expected, abs=1e-9), step


class Sized:
    """Says that it has other batches than it yields."""

    def __init__(self, batches, size):
        self.batches, self.size = batches, size

    def __len__(self):
        return self.size

    def __iter__(self):
        return iter(self.batches)


@pytest.mark.parametrize("make", [lambda: OneCycle(0.3), CosineRestarts, lambda: CosineRestarts(1)])
@pytest.mark.parametrize(("size", "ending"), [(5, "was held"), (11, "was cut off"), (8, None)])
def test_a_length_that_is_not_true_is_told_and_nothing_climbs_again(make, size, ending, recwarn):
    batches = list(example_data().trn_dl)
    seen = []

    class See(Callback):
        def on_backward_end(self, run):
            seen.append(run.opt.param_groups[0]["lr"])

    def lrs(size, n):
        seen.clear()
        net, opt = small(momentum=0.9)
        train(net, opt, [make(), See()], ModelData(".", Sized(batches[:n], size)))
        assert opt.param_groups[0] | {"params": 0} == small(momentum=0.9)[1].param_groups[0] | {
            "params": 0
        }
        return [*seen]

    found = lrs(size, 8)
    warned = [str(w.message) for w in recwarn]
    assert len(warned) == bool(ending) and all(ending in text for text in warned)
    if size < 8:
        right = lrs(size, size)
        assert found == right + right[-1:] * (8 - size)


def test_a_longer_fit_resumed_says_that_the_course_is_another():
    states = []

    class Keep(Callback):
        def on_epoch_begin(self, run):
            if run.epoch == 1:
                states.append(snapshot(run))

    example_fit([Keep(), OneCycle(0.1)], epochs=2)
    with pytest.warns(UserWarning, match="laid out for 16 batches .* now for 24"):
        example_fit([Keep(), OneCycle(0.1)], epochs=3, resume=states[0])


# ---- smoothing and mixing ----------------------------------------------------------------


def batch(kind):
    torch.manual_seed(3)
    shape = (12, 4, 5) if kind == "pixels" else (12,)
    x = torch.randn(12, 6, 4, 5) if kind == "pixels" else torch.randn(12, 6)
    y = torch.randint(0, 3, shape)
    if kind == "probabilities":
        return x, torch.randn(12, 3).softmax(1)
    if kind in ("ignored", "pixels"):
        y[::2] = -100
    return x, y


def grads(kind, callbacks, crit, log_probabilities=False):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(6, 3, 1) if kind == "pixels" else nn.Linear(6, 3))
    if log_probabilities:
        net.append(nn.LogSoftmax(dim=1))
    opt = optim.SGD(net.parameters(), lr=1.0)
    before = net[0].weight.detach().clone()
    torch.manual_seed(7)
    train(net, opt, callbacks, ModelData(".", [batch(kind)]), crit, checks="off")
    return before - net[0].weight.detach()


@pytest.mark.parametrize("weight", [None, torch.tensor([1.0, 5.0, 0.5])], ids=["", "weighted"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("kind", ["labels", "ignored", "pixels", "probabilities"])
def test_label_smoothing_is_pytorchs(kind, weight, reduction):
    how = {"weight": weight, "reduction": reduction}
    expected = grads(kind, [], nn.CrossEntropyLoss(label_smoothing=0.2, **how))
    found = grads(kind, [LabelSmoothing(0.2)], nn.CrossEntropyLoss(**how))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    if kind != "probabilities":
        found = grads(kind, [LabelSmoothing(0.2)], nn.NLLLoss(**how), True)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("weight", [None, torch.tensor([1.0, 5.0, 0.5])], ids=["", "weighted"])
@pytest.mark.parametrize("kind", ["labels", "ignored", "probabilities"])
def test_a_smoothed_mixture_is_the_mixture_of_two_smoothed_losses(kind, weight):
    smoothed = nn.CrossEntropyLoss(weight=weight, label_smoothing=0.2)
    expected = grads(kind, [MixUp(0.4)], smoothed)
    found = grads(kind, [MixUp(0.4), LabelSmoothing(0.2)], nn.CrossEntropyLoss(weight=weight))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


class Several(nn.Module):
    """Takes anything, and gives the sum of what it can multiply."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(6, 3)

    def forward(self, x, other=None):
        return self.a(x) + (0 if other is None else self.a(other))


X, Y = torch.randn(8, 6), torch.randint(0, 3, (8,))


@pytest.mark.parametrize(
    ("x", "y", "problem"),
    [
        (((X * 10).long(),), Y, "int64 of shape"),
        ((X, X > 0), Y, "bool of shape"),
        (({"x": X, "other": X > 0},), Y, "bool of shape"),
        ((X, X[:4]), Y, "float32 of shape"),
        ((X,), Y[:4], "int64 of shape"),
        ((X,), ["a"] * 8, "str"),
    ],
)
def test_mixup_refuses_what_cannot_be_mixed(x, y, problem):
    net = Several()
    opt = optim.SGD(net.parameters(), lr=0.1)
    before, generator = net.a.weight.clone(), torch.get_rng_state()
    with pytest.raises(TypeError, match=f"MixUp cannot mix the batch's [xy]\n  got: *{problem}"):
        train(net, opt, [MixUp()], ModelData(".", [(*x, y)]), checks="off")
    assert torch.equal(net.a.weight, before) and torch.equal(torch.get_rng_state(), generator)


def test_mixup_of_dicts_and_of_several_targets():
    def crit(preds, targets):
        return (
            nn.functional.cross_entropy(preds, targets[0])
            + (preds.sum(1) - targets[1]).abs().mean()
        )

    def learned(batch):
        torch.manual_seed(0)
        net = Several()
        train(net, optim.SGD(net.parameters(), lr=0.1), [MixUp()], ModelData(".", [batch]), crit)
        return net.a.weight.detach()

    targets = Y, torch.randn(8)
    named = learned(({"x": X, "other": X * 2}, targets))
    assert torch.equal(named, learned((X, X * 2, targets)))
    torch.manual_seed(0)
    net = Several()
    t = torch.distributions.Beta(torch.tensor(0.4), torch.tensor(0.4)).sample().item()
    order = torch.randperm(8)
    preds = net(X.lerp(X[order], 1 - t), (X * 2).lerp((X * 2)[order], 1 - t))
    loss = t * crit(preds, targets) + (1 - t) * crit(preds, [y[order] for y in targets])
    opt = optim.SGD(net.parameters(), lr=0.1)
    loss.backward()
    opt.step()
    assert torch.equal(net.a.weight.detach(), named)


# ---- gradients, parts of a net -----------------------------------------------------------


def test_the_clipped_norm_is_that_of_the_nets_parameters_for_several_groups():
    """To the bit, over many steps."""

    def groups(net):
        decayed = [p for p in net.parameters() if p.ndim > 1]
        rest = [p for p in net.parameters() if p.ndim < 2]
        return optim.SGD([{"params": rest}, {"params": decayed[::-1], "weight_decay": 0.1}], lr=1.0)

    batches = list(example_data().trn_dl) * 5
    net, _ = small()
    train(net, groups(net), [GradClip(0.1)], ModelData(".", batches))
    other, _ = small()
    opt = groups(other)
    for x, y in batches:
        opt.zero_grad()
        nn.functional.cross_entropy(other(x), y).backward()
        nn.utils.clip_grad_norm_(other.parameters(), 0.1)
        opt.step()
    for a, b in zip(net.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("limit", [{"max_norm": 0.01}, {"max_value": 0.002}], ids=str)
def test_sparse_gradients_are_clipped_as_dense_ones(limit):
    batches = [(torch.tensor([[1, 1], [3, 0]]), torch.tensor([0, 2]))] * 3
    learned = []
    for sparse in True, False:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Embedding(5, 3, sparse=sparse), nn.Flatten(), nn.Linear(6, 3))
        train(
            net, optim.SGD(net.parameters(), lr=1.0), [GradClip(**limit)], ModelData(".", batches)
        )
        learned.append([p.detach() for p in net.parameters()])
    torch.testing.assert_close(*learned)


def test_a_freeze_that_cannot_begin_frees_nothing_of_an_earlier_net():
    net, opt = small()
    freeze = Freeze("2")
    train(net, opt, [freeze])
    net[2].requires_grad_(False)
    other = nn.Sequential(nn.Linear(6, 3))
    with pytest.raises(ValueError, match="Freeze wants parts of the net"):
        train(other, optim.SGD(other.parameters(), lr=0.1), [freeze])
    assert not any(p.requires_grad for p in net[2].parameters())


def test_one_parameter_is_held_by_one_freeze():
    net, opt = small()
    with pytest.raises(ValueError, match="two Freeze callbacks hold the same parameters"):
        train(net, opt, [Freeze("0", until=1), Freeze(net)])
    assert all(p.requires_grad for p in net.parameters())
    net.insert(0, nn.Linear(6, 6))
    opt = optim.SGD(net.parameters(), lr=0.1)
    before = net[1].weight.clone(), net[3].weight.clone()
    train(net, opt, [Freeze("1", until=1), Freeze("3")], epochs=2)
    assert not torch.equal(net[1].weight, before[0]) and torch.equal(net[3].weight, before[1])


def test_layers_of_another_net_are_refused():
    net, opt = small()
    with pytest.raises(ValueError, match="layers must be modules of the net that is trained"):
        train(net, opt, [ActivationStats([nn.ReLU()])])


def test_a_paused_and_resumed_log_is_that_of_the_whole_run(tmp_path):
    states = []

    class Pauses(Callback):
        def on_epoch_end(self, run):
            if run.epoch == 1:
                run.after(lambda run: states.append(snapshot(run)))
                run.pause("for now")

    whole = example_fit([JSONLogger(tmp_path / "log")], epochs=3)
    paused = example_fit([JSONLogger(tmp_path / "parts"), Pauses()], epochs=3)
    assert paused.stopped == "for now"
    example_fit([JSONLogger(tmp_path / "parts"), Callback()], epochs=3, resume=states[0])
    assert (tmp_path / "parts").read_text() == (tmp_path / "log").read_text()
    rows = [json.loads(line) for line in (tmp_path / "parts").read_text().splitlines()]
    assert [row["val_loss"] for row in rows] == whole["val_loss"]


def test_schedulers_of_one_optimizer_in_groups_are_its_own():
    net, opt = small()
    chained = lr_scheduler.ChainedScheduler([ExponentialLR(opt, 0.5), StepLR(opt, 1, 0.5)])
    train(net, opt, [Schedule(chained, "epoch")])
    assert opt.param_groups[0]["lr"] == pytest.approx(0.025)
