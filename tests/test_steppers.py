"""Steppers of the user's own: what is refused, whose errors they are, and the kit for them."""

import functools

import pytest
import torch
from torch import nn, optim
from torch.nn import functional as F  # noqa: N812

from minifast import Callback, Stepper, accuracy, fit
from minifast.plugins import EarlyStopping, Fast, MixedPrecision
from minifast.testing import STEPPER_CHECKS, check, example_data, example_net


def fitted(stepper=None, callbacks=(), crit=None, net=None, metrics=(), **options):
    torch.manual_seed(0)
    net = net or example_net()
    opt = optim.SGD(net.parameters(), lr=0.1)
    options = {"progress": False, **options}
    crit = crit or nn.NLLLoss()
    return fit(net, example_data(), 2, crit, opt, metrics, callbacks, stepper=stepper, **options)


def notes(info):
    return getattr(info.value, "__notes__", [])


# ---- when the class is defined -----------------------------------------------------------


@pytest.mark.parametrize(
    "name, arguments, meant",
    [
        ("forwrd", "self, net, x", "forward"),
        ("backwards", "self, run", "backward"),
        ("upadte", "self, run", "update"),
        ("setp", "self, run, events", "step"),
        ("zero_grads", "self, run", "zero_grad"),
        ("statedict", "self", "state_dict"),
        ("load_statedict", "self, state", "load_state_dict"),
    ],
)
def test_a_misspelled_method_fails_when_the_class_is_defined(name, arguments, meant):
    method = eval(f"lambda {arguments}: None")
    with pytest.raises(TypeError, match=f"Mine.{name} is never called: did you mean {meant}"):
        type("Mine", (Stepper,), {name: method})


@pytest.mark.parametrize(
    "name, arguments, wanted",
    [
        ("forward", "self, x", "self, net, x"),
        ("backward", "self", "self, run"),
        ("update", "run, opt, more", "self, run"),
        ("step", "self, run", "self, run, events"),
        ("state_dict", "self, run", "self"),
        ("load_state_dict", "self", "self, state"),
    ],
)
def test_a_method_with_other_arguments_fails_when_the_class_is_defined(name, arguments, wanted):
    with pytest.raises(TypeError) as info:
        type("Mine", (Stepper,), {name: eval(f"lambda {arguments}: None")})
    assert f"Mine.{name} must be callable as" in str(info.value)
    assert f"def {name}({wanted}):" in str(info.value)


def test_methods_of_its_own_and_other_right_signatures_are_taken():
    def adds(function):
        @functools.wraps(function)
        def with_more(self, run):
            return function(self, run, 1)

        return with_more

    class Mine(Stepper):
        steps = 0

        def updates(self):  # not callable like `update`
            return self.steps

        def backward2(self, run):  # used below
            return run.loss.backward()

        def update_ema(self, run): ...

        def forward(self, net, x, *more, scale=1.0):
            return super().forward(net, x)

        def backward(self, run):
            self.backward2(run)

        @adds
        def update(self, run, more):
            self.steps += more
            return super().update(run)

        step = functools.partialmethod(Stepper.step)

    class Both(Mine, Callback):
        def on_train_begin(self, run):
            self.steps = 0

    both = Both()
    fitted(both, [both])
    assert both.steps == 16


class Loose(Callback):
    """Base for the next tests."""


@pytest.mark.parametrize(
    "members, meant",
    [
        ({"statedict": lambda self: {}}, "state_dict"),
        ({"transform_losses": lambda self, run, preds, loss: loss}, "transform_loss"),
        ({"change_training": True}, "changes_training"),
        ({"before_batch": lambda self: None}, "on_batch_begin"),
        ({"after_loss": lambda self, run: None}, "on_backward_begin"),
        ({"must_preceed": ("EMA",)}, "must_precede"),
        ({"conflict_with": ("EMA",)}, "conflicts_with"),
    ],
)
def test_a_callbacks_other_members_can_be_misspelled_too(members, meant):
    with pytest.raises(TypeError, match=f"did you mean {meant}?"):
        type("Mine", (Loose,), members)


def test_a_callbacks_state_has_its_arguments():
    with pytest.raises(TypeError, match=r"must be callable as load_state_dict\(state\)"):
        type("Mine", (Loose,), {"load_state_dict": lambda self: None})


# ---- in its place ------------------------------------------------------------------------


class Plain(Stepper):
    """The plain step."""


@pytest.mark.parametrize(
    "wrong, fix",
    [
        ({"callbacks": [Plain()]}, r"stepper=Plain\(...\)"),
        ({"callbacks": [accuracy]}, r"metrics=\[accuracy\]"),
        ({"metrics": [EarlyStopping()]}, r"callbacks=\[EarlyStopping\(...\)\]"),
        ({"metrics": [Plain()]}, r"stepper=Plain\(...\)"),
        ({"stepper": EarlyStopping()}, r"callbacks=\[EarlyStopping\(...\)\]"),
        ({"stepper": EarlyStopping}, r"callbacks=\[EarlyStopping\(...\)\]"),
        ({"stepper": Plain}, r"stepper=Plain\(\)"),
    ],
)
def test_a_plugin_in_anothers_place_is_told_its_own(wrong, fix):
    with pytest.raises(TypeError, match=f"fix:    {fix}"):
        fitted(**wrong)


# ---- whose error it is -------------------------------------------------------------------


class Refuses(Stepper):
    """Raises an error on purpose, in one of its methods at one of its steps."""

    def __init__(self, method, step, error):
        self.method, self.when, self.error = method, step, error

    def maybe(self, method, run):
        if method == self.method and run.step == self.when:
            refuse(self.error)

    def step(self, run, events):
        self.maybe("step", run)
        return super().step(run, events)

    def backward(self, run):
        self.maybe("backward", run)
        super().backward(run)

    def update(self, run):
        self.maybe("update", run)
        super().update(run)


def refuse(error):
    raise error


@pytest.mark.parametrize("step", [0, 5, 11])
@pytest.mark.parametrize("method", ["step", "backward", "update"])
@pytest.mark.parametrize("kind", [ValueError, TypeError, RuntimeError, ZeroDivisionError])
def test_an_error_of_a_stepper_comes_out_as_it_is_with_its_name(kind, method, step):
    error = kind("this stepper needs gradients of one sign")
    with pytest.raises(kind) as info:
        fitted(Refuses(method, step, error))
    assert info.value is error and str(error) == "this stepper needs gradients of one sign"
    assert notes(info)[0].startswith("raised by Refuses.")
    assert f"epoch {step // 8}, step {step}" in notes(info)[0]


def test_an_error_in_the_steppers_own_arithmetic_is_the_steppers():
    class Wrong(Stepper):
        def update(self, run):
            F.binary_cross_entropy(torch.ones(2), torch.ones(3))

    with pytest.raises(ValueError, match="Please ensure they have the same size") as info:
        fitted(Wrong())
    assert notes(info) == ["raised by Wrong.update, epoch 0, step 0"]


class Passes(Stepper):
    """Calls what `Stepper` calls."""

    def forward(self, net, x):
        return net(x)

    def backward(self, run):
        run.loss.backward()

    def update(self, run):
        run.opt.step()


@pytest.mark.parametrize("stepper", [None, Passes(), Fast()], ids=str)
def test_errors_of_net_loss_and_gradients_are_explained_with_any_stepper(stepper):
    narrow = nn.Sequential(nn.Linear(5, 3), nn.LogSoftmax(1))
    frozen = nn.Sequential(nn.Linear(6, 3), nn.LogSoftmax(1)).requires_grad_(False)
    for wrong, entry in [
        ({"net": narrow}, "net-input"),
        ({"crit": lambda preds, y: nn.NLLLoss()(preds, y[:3])}, "the-loss"),
        ({"crit": lambda preds, y: F.nll_loss(preds, y[:3])}, "the-loss"),
        ({"crit": lambda preds, y: preds[:, 5].mean()}, "the-loss"),
        ({"net": frozen}, "no-gradient"),
    ]:
        with pytest.raises((ValueError, RuntimeError, IndexError)) as info:
            fitted(stepper, **wrong)
        assert f"errors-and-fixes#{entry}" in str(info.value)
        assert not any("Passes" in note for note in notes(info))


@pytest.mark.parametrize("when", [0, 5])
@pytest.mark.parametrize("checks", ["on", "off"])
@pytest.mark.parametrize("value", [None, 0.5, torch.ones(3), [1.0]], ids=str)
def test_a_step_that_does_not_return_its_loss_is_told_so(value, checks, when):
    class Returns(Stepper):
        def step(self, run, events):
            loss = super().step(run, events)
            return value if run.step == when else loss

    with pytest.raises(TypeError, match="the stepper's step must return the loss") as info:
        fitted(Returns(), checks=checks)
    assert type(value).__name__ in str(info.value)


def test_a_callback_that_changes_the_batch_or_the_loss_is_named():
    class Narrows(Callback):
        changes_training = True

        def on_batch_begin(self, run):
            run.x = run.x[:, :3]

    class Reads(Callback):
        changes_training = True

        def on_backward_begin(self, run):
            run.loss = run.loss.item()

    class Unused(Callback):
        def on_batch_end(self, run): ...

    with pytest.raises(RuntimeError, match="net cannot take") as info:
        fitted(callbacks=[Unused(), Narrows()])
    assert notes(info)[0].endswith("Narrows.on_batch_begin")
    with pytest.raises(TypeError, match="a callback has assigned a loss") as info:
        fitted(callbacks=[Unused(), Reads()])
    assert "run.loss = float, after on_backward_begin of Reads" in str(info.value)


# ---- the kit -----------------------------------------------------------------------------


class SharpnessAware(Stepper):
    """SAM: the gradient at the weights where the loss is worst within a small distance."""

    def __init__(self, rho=0.05):
        self.rho = rho

    def backward(self, run):
        parameters = [p for p in run.net.parameters() if p.requires_grad]
        kept = [p.grad for p in parameters]  # those of run.keep_grads
        first = torch.autograd.grad(run.loss, parameters)
        norm = torch.stack([g.norm() for g in first]).norm() + 1e-12
        with torch.no_grad():
            for p, g in zip(parameters, first, strict=True):
                p += self.rho * g / norm
        second = torch.autograd.grad(run.objective(self.forward(run.net, run.x)), parameters)
        with torch.no_grad():
            for p, g, was, again in zip(parameters, first, kept, second, strict=True):
                p -= self.rho * g / norm
                p.grad = again if was is None else was + again


class Alternates(Stepper):
    """Steps at every other batch, and counts them."""

    def __init__(self):
        self.count = 0

    def update(self, run):
        self.count += 1
        if self.count % 3:
            super().update(run)

    def state_dict(self):
        return {"count": self.count}

    def load_state_dict(self, state):
        self.count = state["count"]


class Counted(Alternates, Callback):
    """Begins to count in each fit."""

    changes_training = True

    def on_train_begin(self, run):
        self.count = 0


class Noisy(Stepper):
    """Adds noise to the gradients."""

    def __init__(self, std=1.0):
        self.std = std

    def backward(self, run):
        super().backward(run)
        for p in run.net.parameters():
            p.grad += self.std * torch.randn_like(p.grad)


class Normalized(Stepper):
    """Steps along the gradient by a fixed length."""

    def update(self, run):
        norm = nn.utils.clip_grad_norm_(run.net.parameters(), float("inf"))
        for p in run.net.parameters():
            p.grad /= norm
        super().update(run)


GOOD = [Stepper, Plain, Passes, SharpnessAware, Alternates, Counted, Noisy, Normalized]


@pytest.mark.parametrize("make", [*GOOD, Fast, MixedPrecision])
def test_good_steppers_pass(make):
    check(make)


class NeverSteps(Stepper):
    """Forgets to step."""

    def update(self, run): ...


class Silent(Stepper):
    """Forgets the events."""

    def step(self, run, events):
        run.preds = self.forward(run.net, run.x)
        run.loss = run.crit(run.preds, run.y)
        self.zero_grad(run)
        run.loss.backward()
        run.opt.step()
        return run.loss


class FiresTwice(Stepper):
    """Tells twice of its gradients, the second time when the step is over."""

    def step(self, run, events):
        loss = super().step(run, events)
        events.on_backward_end(run)
        return loss


class OwnLoss(Stepper):
    """Differentiates the loss that it had before the callbacks."""

    def backward(self, run):
        run.crit(run.preds, run.y).backward()


class SecondPass(SharpnessAware):
    """SAM whose second pass is of the criterion alone."""

    def backward(self, run):
        objective = run.crit
        parameters = [*run.net.parameters()]
        kept = [p.grad for p in parameters]
        first = torch.autograd.grad(run.loss, parameters)
        norm = torch.stack([g.norm() for g in first]).norm() + 1e-12
        for p, g in zip(parameters, first, strict=True):
            p.data += self.rho * g / norm
        loss = objective(self.forward(run.net, run.x), run.y)
        second = torch.autograd.grad(loss, parameters)
        for p, g, was, again in zip(parameters, first, kept, second, strict=True):
            p.data -= self.rho * g / norm
            p.grad = again if was is None else was + again


class AlwaysSteps(Stepper):
    """Steps before anything is asked of it."""

    def backward(self, run):
        super().backward(run)
        run.opt.step()

    def update(self, run): ...


class AlwaysForgets(Stepper):
    """Forgets all gradients before each backward pass."""

    def backward(self, run):
        run.opt.zero_grad()
        super().backward(run)


class ForgetsItsCount(Alternates):
    """Has a count, and does not say so in its state."""

    def state_dict(self):
        return {}

    def load_state_dict(self, state): ...


class CannotBeSaved(Alternates):
    """Has an object in its state."""

    def state_dict(self):
        return {"count": self.count, "odd": object()}


class KeepsGraphs(Stepper):
    """Keeps all losses with their graphs."""

    def __init__(self):
        self.losses = []

    def backward(self, run):
        super().backward(run)
        self.losses.append(run.loss)


class LeavesHooks(Stepper):
    """Hooks the net and leaves it so."""

    hook = None

    def forward(self, net, x):
        self.hook = self.hook or net.register_forward_hook(lambda module, args, out: None)
        return net(x)


class Undescribed(Stepper):
    def update(self, run):
        super().update(run)


BAD = {
    NeverSteps: "check_stepper_learns",
    Silent: "check_stepper_fires_events",
    FiresTwice: "check_stepper_fires_events",
    OwnLoss: "check_stepper_takes_the_loss_of_callbacks",
    SecondPass: "check_stepper_takes_the_loss_of_callbacks",
    AlwaysSteps: "check_stepper_honors_requests",
    AlwaysForgets: "check_stepper_honors_requests",
    ForgetsItsCount: "check_stepper_resumes_exactly",
    CannotBeSaved: "check_stepper_resumes_exactly",
    KeepsGraphs: "check_stepper_keeps_no_graph",
    LeavesHooks: "check_stepper_leaves_nothing",
    Undescribed: "check_stepper_names_itself",
}


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: bad.__name__)
def test_a_bad_stepper_fails_its_check(bad):
    failed = []
    for each in STEPPER_CHECKS:
        try:
            each(bad)
        except AssertionError as error:
            failed.append(each.__name__)
            assert bad.__name__ in str(error)
    assert failed == [BAD[bad]]


def test_the_kit_knows_a_stepper():
    with pytest.raises(AssertionError, match=r"NeverSteps.*changes no parameter"):
        check(NeverSteps)


def test_every_check_has_a_bad_stepper():
    assert {each.__name__ for each in STEPPER_CHECKS} == set(BAD.values())
