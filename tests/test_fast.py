"""`Fast` gives, bit for bit, what the optimizer gives with fused=True, and hands on the rest."""

import copy

import pytest
import torch
from torch import nn, optim

from minifast import ModelData, fit, set_lrs
from minifast.plugins import Fast, Schedule
from minifast.testing import example_data, example_fit

from .test_callback import At
from .test_equals_plain_loop import same

OPTIMIZERS = {
    "sgd": (optim.SGD, {"lr": 0.1}),
    "sgd, momentum": (optim.SGD, {"lr": 0.1, "momentum": 0.9}),
    "sgd, nesterov": (optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
    "sgd, everything": (
        optim.SGD,
        {"lr": 0.1, "momentum": 0.9, "dampening": 0.1, "weight_decay": 0.01, "maximize": True},
    ),
    "adam": (optim.Adam, {}),
    "adam, amsgrad": (optim.Adam, {"lr": 0.01, "amsgrad": True, "weight_decay": 0.1}),
    "adam, other betas": (optim.Adam, {"betas": (0.5, 0.9), "eps": 1e-3}),
    "adamw": (optim.AdamW, {"lr": 0.01}),
    "adam, decoupled": (optim.Adam, {"decoupled_weight_decay": True, "weight_decay": 0.1}),
}


def make_net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 3),
        nn.LogSoftmax(dim=1),
    )  # fmt: skip


def grouped(net):
    """Two groups with rates and decays of their own, the first one's bias in neither."""
    return [
        {"params": [net[0].weight, net[1].weight, net[1].bias], "lr": 0.02},
        {"params": [net[4].weight, net[4].bias], "weight_decay": 0.05},
    ]


@pytest.mark.parametrize("groups", [False, True], ids=["one group", "two groups"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_fast_is_fused_to_the_bit(name, groups):
    kind, options = OPTIMIZERS[name]
    batches = list(example_data().trn_dl)
    results = []
    for way in "fused", "fast":
        net = make_net()
        params = grouped(net) if groups else net.parameters()
        opt = kind(params, **options, **({"fused": True} if way == "fused" else {}))
        torch.manual_seed(1)
        stepper = Fast() if way == "fast" else None
        for rate in 0.05, 0.01:  # the rate is read at each step
            set_lrs(opt, rate)
            data = ModelData(".", batches)
            fit(net, data, 2, nn.NLLLoss(), opt, progress=False, stepper=stepper)
        state = opt.state_dict()
        for group in state["param_groups"]:
            del group["fused"]
        results.append((dict(net.state_dict()), state))
    assert same(results[0], results[1])


class SometimesDeaf(nn.Module):
    """Two layers of which one takes part in every other batch only: its gradients are missing."""

    def __init__(self):
        super().__init__()
        self.always, self.sometimes = nn.Linear(6, 3), nn.Linear(6, 3)
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        scores = self.always(x)
        return (scores + self.sometimes(x) if self.calls % 2 == 0 else scores).log_softmax(dim=1)


@pytest.mark.parametrize(
    "kind", [lambda p, **o: optim.SGD(p, lr=0.1, momentum=0.9, **o), optim.Adam]
)
def test_missing_gradients(kind):
    batches = list(example_data().trn_dl)
    results = []
    for fused, stepper in (False, None), (False, Fast()):
        torch.manual_seed(0)
        net = SometimesDeaf()
        opt = kind(net.parameters(), fused=fused or None)
        fit(net, ModelData(".", batches), 2, nn.NLLLoss(), opt, progress=False, stepper=stepper)
        results.append([p.detach() for p in net.parameters()])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_the_state_goes_on_in_an_ordinary_fit_and_back():
    batches = list(example_data().trn_dl)
    results = []
    for steppers in (None, None, None), (Fast(), None, Fast()):
        net = make_net()
        opt = optim.Adam(net.parameters(), lr=0.01)
        torch.manual_seed(1)
        for stepper in steppers:
            opt.load_state_dict(copy.deepcopy(opt.state_dict()))
            fit(net, ModelData(".", batches), 1, nn.NLLLoss(), opt, progress=False, stepper=stepper)
        results.append(net[0].weight.detach())
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)


def test_hooks_of_the_net_and_of_tensors_are_heard():
    heard = []
    net = make_net()
    net[0].register_forward_hook(lambda *args: heard.append("forward"))
    net[4].register_full_backward_hook(lambda *args: heard.append("backward"))
    net[4].weight.register_hook(lambda grad: heard.append("grad"))
    opt = optim.SGD(net.parameters(), lr=0.1)
    data = ModelData(".", list(example_data().trn_dl)[:2])
    fit(net, data, 1, nn.NLLLoss(), opt, progress=False, stepper=Fast())
    assert sorted(heard) == sorted(["forward", "backward", "grad"] * 2)


def test_autograd_is_told_that_the_weights_changed():
    net = make_net()
    before = net[0].weight._version
    opt = optim.Adam(net.parameters())
    data = ModelData(".", list(example_data().trn_dl)[:3])
    fit(net, data, 1, nn.NLLLoss(), opt, progress=False, stepper=Fast())
    assert net[0].weight._version > before


class Sub(optim.SGD):
    """An optimizer that torch does not know."""


def hooked(params):
    opt = optim.SGD(params, lr=0.1)
    opt.register_step_post_hook(lambda *args: None)
    return opt


NOT_COVERED = {
    "another optimizer": (lambda p: optim.RMSprop(p, lr=0.01), "RMSprop is not SGD, Adam or AdamW"),
    "a subclass": (lambda p: Sub(p, lr=0.1), "Sub is not SGD"),
    "a step hook": (hooked, "has hooks on its step"),
    "fused": (lambda p: optim.SGD(p, lr=0.1, fused=True), "was asked for"),
    "foreach": (lambda p: optim.SGD(p, lr=0.1, foreach=True), "was asked for"),
}


@pytest.mark.parametrize("case", NOT_COVERED)
def test_what_is_not_covered_takes_the_ordinary_step_and_is_told_once(case):
    make, why = NOT_COVERED[case]
    batches = list(example_data().trn_dl)
    results = []
    for stepper in None, Fast():
        net = make_net()
        opt = make(net.parameters())
        torch.manual_seed(1)

        def train(net=net, opt=opt, stepper=stepper):
            data = ModelData(".", batches)
            fit(net, data, 2, nn.NLLLoss(), opt, progress=False, stepper=stepper)

        if stepper is None:
            train()
        else:
            with pytest.warns(UserWarning, match=f"Fast takes the ordinary step: .*{why}") as told:
                train()
            assert len(told) == 1
        results.append((dict(net.state_dict()), opt.state_dict()))
    assert same(*results)


def test_float64_and_schedulers_of_torchs_take_the_ordinary_step():
    net = make_net().double()
    opt = optim.SGD(net.parameters(), lr=0.1)
    data = ModelData(".", [(x.double(), y) for x, y in example_data().trn_dl])
    with pytest.warns(UserWarning, match="not dense, float32 and on the CPU"):
        fit(net, data, 1, nn.NLLLoss(), opt, progress=False, stepper=Fast())
    halve = Schedule(lambda opt: optim.lr_scheduler.StepLR(opt, 1, 0.5), "epoch")
    with pytest.warns(UserWarning, match="step was replaced, as schedulers of torch do"):
        example_fit([halve], stepper=Fast())


def test_callbacks_work_as_with_the_ordinary_step():
    def skip(run):
        run.skip_step = True

    plain = example_fit([At("on_backward_end", skip, 3)], epochs=2)
    fast = example_fit([At("on_backward_end", skip, 3)], epochs=2, stepper=Fast())
    assert fast["val_loss"] == pytest.approx(plain["val_loss"], rel=1e-4)
