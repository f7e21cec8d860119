"""What training changes is saved, compared, restored and protected, all of it or nothing."""

import copy
import functools
import hashlib
import math
import random
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn, optim
from torch.utils.data import DataLoader

from minifast import ArrayLoader, Callback, ModelData, accuracy, fit
from minifast.checkpoint import CheckpointError, snapshot
from minifast.plugins import (
    EMA,
    SWA,
    Checkpoint,
    CosineRestarts,
    EarlyStopping,
    Freeze,
    GradAccumulation,
    MixedPrecision,
    OneCycle,
    SaveBest,
    Schedule,
    Warmup,
    lr_find,
)
from minifast.rng import random_state
from minifast.storage import MARK, as_data, load_weights, read_state, save_weights, write_state
from minifast.testing import example_data, example_fit, example_net

STEPS = 8  # batches in an epoch of `example_data`


class Keep(Callback):
    """Keeps the states after some batches (by their number) and epochs (by their name)."""

    def __init__(self, *places):
        self.places, self.states = places, {}

    def on_batch_end(self, run):
        if run.step in self.places:
            run.after(lambda run: self.states.__setitem__(run.step, snapshot(run)))

    def on_epoch_end(self, run):
        name = f"epoch {run.epoch}"
        if name in self.places:
            run.after(lambda run: self.states.__setitem__(name, snapshot(run)))


class Weighted(nn.Module):
    """A loss that learns how much each class counts, and counts its calls."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(3))
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(3), persistent=False)
        self.drop = nn.Dropout(0.2)

    def forward(self, preds, y):
        self.calls += 1
        if torch.is_grad_enabled():
            self.mean = 0.9 * self.mean + 0.1 * preds.detach().mean(0)
        return F.nll_loss(self.drop(preds) * self.scale.exp() + self.mean, y) + self.scale.mean()

    def loss(self, preds, y):
        return self(preds, y)


def closed_over(crit):
    return lambda preds, y: crit(preds, y)


def with_module(crit, preds, y):
    return crit(preds, y)


LOSSES = {
    "module": lambda crit: crit,
    "partial": lambda crit: functools.partial(with_module, crit),
    "method": lambda crit: crit.loss,
    "closure": closed_over,
}


def everything(net, crit, opt, holders=(), loader=None):
    """What training may change, as plain data that compares to the bit."""
    modules = [m for m in (net, crit) if isinstance(m, nn.Module)]
    tensors = [t.tolist() for m in modules for t in (*m.parameters(), *m.buffers())]
    tensors += [p.tolist() for group in opt.param_groups for p in group["params"]]
    grads = [None if p.grad is None else p.grad.tolist() for m in modules for p in m.parameters()]
    return repr([tensors, grads, opt.state_dict(), [h.state_dict() for h in holders]]) + repr(
        random_state(loader)
    )


def learned(callbacks=(), kind="module", epochs=2, resume=None, seed=0, stray=False, **options):
    torch.manual_seed(seed)
    net, crit, data = example_net().eval(), Weighted(), example_data()  # fit itself trains it
    bias = torch.zeros((), requires_grad=True)
    parameters = [*net.parameters(), *crit.parameters(), *([bias] if stray else [])]
    opt = optim.Adam(parameters, lr=0.02)
    loss = LOSSES[kind](crit)
    used = (lambda p, y: loss(p * (1 + bias), y)) if stray else loss
    history = fit(
        net, data, epochs, used, opt, callbacks=callbacks, resume=resume, progress=False, **options
    )
    return everything(net, crit, opt), repr(list(history)), crit, bias.detach()


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("window", [1, 3])
def test_a_loss_that_learns_is_resumed_with_the_net(kind, window, tmp_path):
    def callbacks():
        return [GradAccumulation(window)] if window > 1 else []

    keep = Keep(1, 5, STEPS, "epoch 0", 12)
    whole = learned([*callbacks(), keep], kind)
    assert whole[2].scale.abs().min() > 0.001
    for place, state in keep.states.items():
        write_state(tmp_path / "run", state)
        again = learned(callbacks(), kind, resume=tmp_path / "run", seed=1)
        assert again[:2] == whole[:2], place


def test_a_parameter_of_neither_net_nor_loss_is_resumed_by_its_place():
    keep = Keep(5, "epoch 0")
    whole = learned([GradAccumulation(2), keep], stray=True)
    assert whole[3] != 0
    for place, state in keep.states.items():
        again = learned([GradAccumulation(2)], stray=True, resume=state, seed=1)
        assert again[:2] == whole[:2], place
        assert torch.equal(again[3], whole[3])


def test_a_loss_of_other_parameters_is_refused():
    keep = Keep(5)
    learned([keep])
    keep.states[5]["loss"]["loss"]["scale"] = torch.zeros(4)
    with pytest.raises(CheckpointError, match=r"loss\.scale is float32\(4,\), here float32\(3,\)"):
        learned(resume=keep.states[5])
    with pytest.raises(CheckpointError, match="loss is too many"):
        example_fit([], resume=keep.states[5])


def test_save_best_keeps_the_loss_of_the_best_epoch():
    class At(Callback):
        def __init__(self):
            self.scales = []

        def on_epoch_end(self, run):
            run.values["score"] = -abs(run.epoch - 1)  # epoch 1 is the best
            self.scales.append(run.crit.scale.detach().clone())

    at, keep = At(), Keep("epoch 2")
    best = SaveBest("score", mode="max")
    whole = learned([at, best, keep], epochs=4)
    assert torch.equal(whole[2].scale, at.scales[1])
    assert not torch.equal(whole[2].scale, at.scales[3])
    again = learned([At(), SaveBest("score", mode="max")], epochs=4, resume=keep.states["epoch 2"])
    assert again[:2] == whole[:2]


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("fails", [False, True])
def test_lr_find_leaves_the_loss_alone(kind, fails):
    net, crit, data = example_net(), Weighted(), example_data()
    opt = optim.Adam([*net.parameters(), *crit.parameters()], lr=torch.tensor(0.02))
    net.train()
    crit(net(data.trn_dl.arrays[0][:9]), data.trn_dl.arrays[1][:9]).backward()
    opt.step()
    lr, before = opt.param_groups[0]["lr"], everything(net, crit, opt)

    class Fails(Callback):
        def on_batch_end(self, run):
            if fails and run.step == 5:
                raise ZeroDivisionError

    stepper = MixedPrecision(torch.float16)
    scale = stepper.state_dict()
    if fails:  # a stepper that was used before, and has a scale
        fit(net, data, 1, nn.NLLLoss(), opt, stepper=stepper, progress=False)
        scale, before = stepper.state_dict(), everything(net, crit, opt)
        assert scale["scaler"]
    try:
        lr_find(net, data, LOSSES[kind](crit), opt, callbacks=[Fails()], stepper=stepper)
    except ZeroDivisionError:
        assert fails
    assert everything(net, crit, opt) == before
    assert opt.param_groups[0]["lr"] is lr
    assert stepper.state_dict() == scale


def test_lr_find_starts_lasting_workers_for_itself_alone():
    def trained(find):
        torch.manual_seed(0)
        net, data = example_net(), example_data()
        rows = torch.utils.data.TensorDataset(*data.trn_dl.arrays)
        loader = torch.utils.data.DataLoader(
            rows, 30, shuffle=True, num_workers=1, persistent_workers=True
        )
        md, opt = ModelData(".", loader), optim.SGD(net.parameters(), lr=0.01)
        if find:
            lr_find(net, md, nn.NLLLoss(), opt, steps=5)
        fit(net, md, 2, nn.NLLLoss(), opt, progress=False)
        return everything(net, None, opt)

    assert trained(True) == trained(False)


def test_a_refused_first_batch_leaves_the_loss_as_it_was():
    class Refuses(Weighted):
        def forward(self, preds, y):
            return super().forward(preds, y).repeat(2)

    net, crit, data = example_net(), Refuses(), example_data()
    opt = optim.SGD([*net.parameters(), *crit.parameters()], lr=0.1)
    before = everything(net, crit, opt)
    with pytest.raises(TypeError, match="crit"):
        fit(net, data, 1, crit, opt, progress=False)
    assert (crit.calls.item(), everything(net, crit, opt)) == (0, before)


# ---- metrics, extra states, lazy nets, complex weights -----------------------------------


class Calls:
    """A metric that counts over epochs."""

    def __init__(self):
        self.calls = 0

    def __call__(self, preds, targs):
        return 0.0

    def reset(self):
        self.calls += 1

    def update(self, preds, targs): ...

    def compute(self):
        return float(self.calls)

    def state_dict(self):
        return {"calls": self.calls}

    def load_state_dict(self, state):
        self.calls = state["calls"]


def with_metric(callbacks, resume=None):
    torch.manual_seed(0)
    net = example_net()
    opt = optim.SGD(net.parameters(), lr=0.01)
    return fit(
        net, example_data(), 4, nn.NLLLoss(), opt, [Calls(), accuracy], callbacks, resume=resume,
        progress=False,
    )["Calls"]  # fmt: skip


def test_a_metric_that_counts_over_epochs_is_resumed():
    keep = Keep("epoch 1", 19)
    whole = with_metric([keep])
    assert len(set(whole)) == 4
    for state in keep.states.values():
        assert with_metric([], resume=state) == whole


class Extra(nn.Linear):
    """A layer that has a state of its own."""

    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.seen = {"batches": 0, "of": ["train"]}

    def forward(self, x):
        self.seen = {"batches": self.seen["batches"] + self.training, "of": ["train"]}
        return super().forward(x)

    def get_extra_state(self):
        return self.seen

    def set_extra_state(self, state):
        self.seen = state


@pytest.mark.parametrize("make", [EMA, SWA, SaveBest, lambda: Schedule(decay, "batch")])
def test_states_that_are_not_tensors_go_with_the_weights(make):
    def trained(callbacks, resume=None):
        torch.manual_seed(0)
        net = nn.Sequential(Extra(6, 4), nn.ReLU(), nn.Linear(4, 3), nn.LogSoftmax(1))
        opt = optim.SGD(net.parameters(), lr=0.01)
        fit(net, example_data(), 2, nn.NLLLoss(), opt, callbacks=callbacks, resume=resume)
        lr_find(net, example_data(), nn.NLLLoss(), opt)
        return everything(net, None, opt), net[0].seen["batches"]

    keep = Keep(3, 11, "epoch 0")
    whole = trained([make(), keep])
    assert whole[1] == 2 * STEPS
    for state in keep.states.values():
        assert trained([make()], state) == whole


def decay(opt):
    return optim.lr_scheduler.ExponentialLR(opt, 0.9)


class Rotates(nn.Module):
    """Multiplies by complex weights."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.ones(6, 3, dtype=torch.complex64))

    def forward(self, x):
        return (x.to(torch.complex64) @ self.w).real.log_softmax(1)


def test_complex_weights_are_averaged():
    seen = []

    class Sees(Callback):
        def on_batch_end(self, run):
            seen.append(run.net.w.detach().clone())

    torch.manual_seed(0)
    net = Rotates()
    opt = optim.SGD(net.parameters(), lr=0.1)
    fit(net, example_data(), 1, nn.NLLLoss(), opt, callbacks=[Sees(), EMA(0.5)], progress=False)
    wanted = seen[0]
    for w in seen[1:]:
        wanted = 0.5 * wanted + 0.5 * w
    assert (net.w - wanted).abs().max() < 1e-6 < (net.w - seen[-1]).abs().max()


@pytest.mark.parametrize("other", ["parameters", "groups"])
def test_an_optimizer_with_its_parameters_in_another_order_is_refused(other):
    def learns(order, states=None, **options):
        net = nn.Sequential(nn.Linear(16, 16, bias=False), nn.Linear(16, 16, bias=False))
        parts = [net[i].weight for i in order]
        groups = [{"params": [p]} for p in parts] if other == "groups" else parts
        opt, data = optim.Adam(groups, lr=0.01), ArrayLoader(torch.ones(8, 16), torch.ones(8, 16))
        keep = Keep(states)
        fit(net, ModelData(".", data), 2, nn.MSELoss(), opt, callbacks=[keep], progress=False,
            **options)  # fmt: skip

    class Keep(Callback):
        def __init__(self, states):
            self.states = states

        def on_batch_end(self, run):
            if self.states is not None:
                self.states.append(snapshot(run))

    states = []
    learns([0, 1], states)
    learns([0, 1], resume=states[0])
    with pytest.raises(
        CheckpointError, match=r"parameter 0 is net\.0\.weight, here net\.1\.weight"
    ):
        learns([1, 0], resume=states[0])


def lazy():
    net = nn.Sequential(nn.LazyLinear(4), nn.LazyBatchNorm1d(), nn.ReLU(), nn.LazyLinear(3))
    return net, optim.Adam(net.parameters(), lr=0.02)


def test_lazy_nets_train_find_a_rate_and_resume():
    torch.manual_seed(0)
    net, opt = lazy()
    lr_find(net, example_data(), nn.CrossEntropyLoss(), opt)
    assert opt.param_groups[0]["lr"] == 0.02 and not opt.state
    assert all(p.isfinite().all() and p.abs().max() < 2 for p in net.parameters())
    fit(net, example_data(), 1, nn.CrossEntropyLoss(), opt, progress=False)

    def trained(callbacks, seed, resume=None):
        torch.manual_seed(seed)
        net, opt = lazy()
        fit(net, example_data(), 2, nn.CrossEntropyLoss(), opt, callbacks=callbacks, resume=resume)
        return everything(net, None, opt)

    keep = Keep(3, "epoch 0")
    whole = trained([keep], 0)
    for state in keep.states.values():
        assert trained([], 1, state) == whole


@pytest.mark.parametrize(
    "odd",
    [
        lambda: torch.eye(2).to_sparse(),
        lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
        lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
    ],
)
@pytest.mark.filterwarnings("ignore:.*prototype stage", "ignore:.*quantiz", "ignore:.*deprecated")
def test_what_cannot_be_read_again_is_refused_when_it_is_written(odd, tmp_path):
    with pytest.raises(TypeError, match=r"state\['net'\]\['odd'\] is a"):
        as_data({"net": {"odd": odd()}}, "state")


def test_moments_of_a_larger_dtype_than_the_weights_stay_so():
    class Precise(optim.Optimizer):
        """Momentum in float32 for weights in bfloat16."""

        def __init__(self, params):
            super().__init__(params, {"lr": 0.05})

        @torch.no_grad()
        def step(self, closure=None):
            for group in self.param_groups:
                for p in group["params"]:
                    m = self.state[p].setdefault("m", torch.zeros_like(p, dtype=torch.float32))
                    m.mul_(0.9).add_(p.grad.float())
                    p.sub_((group["lr"] * m).to(p.dtype))

    class Half(nn.Sequential):
        def forward(self, x):
            return super().forward(x.bfloat16()).float().log_softmax(1)

    def trained(callbacks, resume=None):
        torch.manual_seed(0)
        net = Half(nn.Linear(6, 3)).bfloat16()
        opt = Precise(net.parameters())
        fit(net, example_data(), 2, nn.NLLLoss(), opt, callbacks=callbacks, resume=resume)
        return everything(net, None, opt)

    keep = Keep(3, "epoch 0")
    whole = trained([keep])
    for state in keep.states.values():
        assert trained([], state) == whole


def test_a_buffer_whose_numbers_stand_for_many_is_left_alone():
    net = nn.Sequential(nn.Linear(6, 3), nn.LogSoftmax(1))
    net.register_buffer("places", torch.arange(3.0).expand(4, 3), persistent=False)
    opt = optim.SGD(net.parameters(), lr=0.1)
    lr_find(net, example_data(), nn.NLLLoss(), opt)
    assert net.places.stride() == (0, 1)


# ---- inside an epoch ---------------------------------------------------------------------


class Growing(Callback):
    """Trains on more rows in each epoch."""

    changes_training = True

    def on_train_begin(self, run):
        self.whole = run.data

    def on_epoch_begin(self, run):
        x, y = (a[: 24 * (run.epoch + 1)] for a in self.whole.trn_dl.arrays)
        loader = ArrayLoader(x, y, bs=self.whole.trn_dl.bs, shuffle=True)
        run.data = ModelData(self.whole.path, loader, self.whole.val_dl)


class Drawn(Growing):
    """Trains on rows that are drawn for each epoch, in an order from a generator."""

    def on_epoch_begin(self, run):
        rows = np.random.permutation(60)[: 30 + 5 * run.epoch]
        x, y = (a[rows] for a in self.whole.trn_dl.arrays)
        loader = ArrayLoader(x, y, bs=8, shuffle=True, seed=run.epoch)
        run.data = ModelData(self.whole.path, loader, self.whole.val_dl)


class Nudges(Callback):
    """Changes weights, optimizer and generators when an epoch begins: once, not at each resume."""

    changes_training = True

    @torch.no_grad()
    def on_epoch_begin(self, run):
        run.net[0].weight += 0.01 * torch.randn(16, 6)
        run.opt.param_groups[0]["lr"] *= 0.5
        for state in run.opt.state.values():
            state["momentum_buffer"].zero_()


class Sum(Callback):
    """Adds up what an epoch's batches say."""

    def on_epoch_begin(self, run):
        self.sum = 0.0

    def on_batch_end(self, run):
        self.sum += run.loss.item()

    def on_epoch_end(self, run):
        run.values["sum"] = self.sum

    def state_dict(self):
        return {"sum": self.sum}

    def load_state_dict(self, state):
        self.sum = state["sum"]


INSIDE = {
    "freeze": lambda: [Freeze("0", "1")],
    "freeze until": lambda: [Freeze("0", "1", until=1)],
    "growing": lambda: [Growing()],
    "drawn": lambda: [Drawn(), Sum()],
    "nudges": lambda: [Nudges()],
    "sum": lambda: [Sum()],
    "averages": lambda: [EMA(0.8), SaveBest("accuracy", mode="max")],
    "SWA": lambda: [SWA()],
    "accumulation": lambda: [GradAccumulation(3)],
    "schedule": lambda: [Schedule(decay, "batch")],
    "warmup": lambda: [OneCycle(0.05), Warmup(11)],
    "restarts": lambda: [CosineRestarts(), Freeze("0", until=1), GradAccumulation(2)],
}


@pytest.mark.parametrize("kind", INSIDE)
def test_a_resume_inside_an_epoch_is_right_by_construction(kind):
    places = 1, 2, 3, 5, 7, 10, 13, "epoch 0"

    def fitted(callbacks, **options):
        ends = []

        class Ends(Callback):
            def on_train_end(self, run):
                ends.append(everything(run.net, None, run.opt, run.callbacks[:-2]))

        history = example_fit([*callbacks, Ends(), Callback()], epochs=2, **options)
        return repr(list(history)), ends

    keep = Keep(*places)
    whole = fitted([*INSIDE[kind](), keep])
    del keep.places
    assert len(keep.states) >= 6
    for place, state in keep.states.items():
        assert fitted([*INSIDE[kind](), Callback()], resume=state) == whole, place


def test_other_rows_of_the_epoch_are_refused():
    keep = Keep(2)
    example_fit([Growing(), keep])

    class Other(Growing):
        def on_epoch_begin(self, run):
            super().on_epoch_begin(run)
            run.data = self.whole

    Other.__name__ = "Growing"
    with pytest.raises(CheckpointError, match="rows to train on: 24, here 60"):
        example_fit([Other()], resume=keep.states[2])


def test_what_was_opened_before_a_state_is_refused_is_closed():
    class Hooks(Growing):
        def on_epoch_begin(self, run):
            super().on_epoch_begin(run)
            self.hook = run.net.register_forward_hook(lambda *args: None)
            self.net = run.net

        def on_epoch_end(self, run):
            self.hook.remove()

        def on_train_end(self, run):
            self.hook.remove()

    keep = Keep(2)
    example_fit([Hooks(), keep])
    keep.states[2]["size"]["rows to train on"] = 7
    hooks = Hooks()
    with pytest.raises(CheckpointError, match="rows to train on: 7, here 24") as refused:
        example_fit([hooks], resume=keep.states[2])
    assert not hooks.net._forward_hooks and not hasattr(refused.value, "__notes__")


def test_a_stop_when_a_resumed_epoch_begins_is_kept():
    class Stops(Callback):
        def on_epoch_begin(self, run):
            if run.epoch == 1:
                run.stop("enough")

    keep = Keep(11)
    example_fit([keep], epochs=2)
    history = example_fit([Stops()], epochs=2, resume=keep.states[11])
    assert (history.stopped, len(history)) == ("enough", 1)


def test_an_epoch_that_ends_by_steps_has_as_many_batches_after_a_resume():
    counts = []

    class Counts(Callback):
        def on_epoch_end(self, run):
            counts.append(run.batch)

    keep = Keep(2, 7)
    whole = example_fit([keep, Counts()], epochs=2, steps=5)
    for state in keep.states.values():
        assert repr(example_fit([Counts()], epochs=2, steps=5, resume=state)) == repr(whole)
    assert set(counts) == {4}


def test_the_end_of_a_run_that_had_no_batch_left_is_written(tmp_path):
    keep = Keep(2 * STEPS)
    example_fit([keep], epochs=2)  # as if stopped between the last batch and validation
    path = tmp_path / "run"
    example_fit([Checkpoint(path)], epochs=2, resume=keep.states[2 * STEPS])
    assert read_state(path)["epoch"] == 2


# ---- comparing ---------------------------------------------------------------------------


def setting(opt=optim.Adam, bs=8, stepper=None, callbacks=(), seed=None, crit=None, order=1):
    torch.manual_seed(1)
    net, data = example_net(), example_data()
    x, y = data.trn_dl.arrays
    data = ModelData(".", ArrayLoader(x, y, bs=bs, shuffle=True, seed=seed), data.val_dl)
    made = opt([*net.parameters()][::order])
    return {
        "net": net, "data": data, "epochs": 2, "crit": crit or nn.NLLLoss(), "opt": made,
        "callbacks": callbacks, "stepper": stepper, "progress": False,
    }  # fmt: skip


def half(dtype):
    return lambda: {"stepper": MixedPrecision(dtype)}


OTHERS = {
    "AdamW": ({}, lambda: {"opt": optim.AdamW}),
    "SGD": ({}, lambda: {"opt": functools.partial(optim.SGD, lr=0.1)}),
    "from SGD": (lambda: {"opt": functools.partial(optim.SGD, lr=0.1)}, dict),
    "amsgrad": ({}, lambda: {"opt": functools.partial(optim.Adam, amsgrad=True)}),
    "reversed": ({}, lambda: {"order": -1}),
    "batch size": (lambda: {"bs": 16}, lambda: {"bs": 15}),
    "seeded": ({}, lambda: {"seed": 3}),
    "not seeded": (lambda: {"seed": 3}, dict),
    "float16 to bfloat16": (half(torch.float16), half(torch.bfloat16)),
    "bfloat16 to float16": (half(torch.bfloat16), half(torch.float16)),
    "a loss that learns": ({}, lambda: {"crit": Weighted()}),
    "callbacks": (lambda: {"callbacks": (EMA(),)}, lambda: {"callbacks": (SWA(),)}),
}


@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.parametrize("place", [3, "epoch 0"])
def test_another_run_is_refused_and_nothing_has_changed(kind, place):
    then, now = OTHERS[kind]
    keep = Keep(place)
    first = setting(**(then() if callable(then) else then))
    fit(**{**first, "callbacks": [*first["callbacks"], keep]})
    other = setting(**now())
    refused(other, keep.states[place])


def refused(arguments, state):
    """Whether the state is refused; if so, everything must be as before."""
    net, opt, crit = arguments["net"], arguments["opt"], arguments["crit"]
    loader = arguments["data"].trn_dl
    ends = Ends(loader)
    callbacks = [*arguments["callbacks"], ends]
    with pytest.raises(CheckpointError):
        fit(**{**arguments, "callbacks": callbacks}, resume=state)
    assert everything(net, crit, opt, loader=loader) == ends.before
    assert ends.run.step == ends.run.epoch == 0 and not ends.run.history
    assert ends.run.stopped is None


class Ends(Callback):
    """Holds the run, and what there was before anything was loaded."""

    def __init__(self, loader):
        self.loader = loader

    def on_train_begin(self, run):
        self.run, self.before = run, everything(run.net, run.crit, run.opt, loader=self.loader)


class Rejects(Callback):
    """Cannot load its state."""

    def state_dict(self):
        return {"a": 1}

    def load_state_dict(self, state):
        raise OSError("no room")


@pytest.mark.parametrize("place", [3, "epoch 0"])
def test_an_error_while_loading_undoes_all_of_it(place):
    def callbacks():
        return [EMA(0.8), SaveBest("val_loss"), GradAccumulation(2), Rejects()]

    keep = Keep(place)
    first = setting(callbacks=callbacks(), seed=1)
    fit(**{**first, "callbacks": [*first["callbacks"], keep]})
    other = setting(callbacks=callbacks(), seed=1)
    with pytest.raises(CheckpointError, match=r"OSError: no room \(in the state of Rejects"):
        fit(**other, resume=keep.states[place])
    refused(setting(callbacks=callbacks(), seed=1), keep.states[place])


# ---- a state with one leaf changed -------------------------------------------------------


def leaves(value, path=()):
    if isinstance(value, dict):
        for key, part in value.items():
            yield from leaves(part, (*path, key))
            yield (*path, key)
    elif isinstance(value, list | tuple):
        for i, part in enumerate(value[:3]):
            yield from leaves(part, (*path, i))
    else:
        yield path


def changed(leaf, rng):
    """Another value in a leaf's place."""
    if isinstance(leaf, torch.Tensor):
        shape = leaf.shape
        return rng.choice([
            leaf.double(), leaf.new_zeros((*shape, 2)), None, "text", leaf.tolist(), {},
            torch.full_like(leaf, math.nan) if leaf.is_floating_point() else leaf.flatten()[:1],
            -leaf - 1 if leaf.is_floating_point() else leaf.float(), leaf.flatten()[:-1],
        ])  # fmt: skip
    number = isinstance(leaf, int | float)
    near = [-1, 0, 1, 1e300, 10**400, -(10**9), math.nan, math.inf, -math.inf] if number else [3]
    return rng.choice([None, "text", [], {}, {"a": 1}, torch.zeros(2), True, 0.5, *near])


def replaced(state, path, rng):
    state = copy.deepcopy(state)
    holder = state
    for i, key in enumerate(path[:-1]):
        if isinstance(holder[key], tuple):  # so that it can be written to
            holder[key] = list(holder[key])
        holder = holder[path[i]]
    if isinstance(holder, dict) and rng.random() < 0.2:
        del holder[path[-1]]
    else:
        holder[path[-1]] = changed(holder[path[-1]], rng)
    return state


KINDS = {
    "sgd": lambda: setting(
        functools.partial(optim.SGD, lr=0.05, momentum=0.9), seed=4,
        callbacks=(EMA(0.8), SaveBest(), Schedule(decay, "batch")),
    ),
    "adam": lambda: setting(
        callbacks=(GradAccumulation(3), EarlyStopping(), OneCycle(0.01), Sum()),
    ),
    "float16": lambda: setting(
        functools.partial(optim.RMSprop, lr=1e-3), stepper=MixedPrecision(torch.float16),
        callbacks=(SWA(), Freeze("0", until=1)), crit=Weighted(),
    ),
}  # fmt: skip


@pytest.mark.parametrize("tries", [8, pytest.param(40, marks=pytest.mark.full)])
@pytest.mark.parametrize("place", [4, "epoch 0"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_state_with_one_leaf_changed_is_refused_or_trains_on(kind, place, tries):
    keep = Keep(place)
    first = KINDS[kind]()
    fit(**{**first, "callbacks": [*first["callbacks"], keep]})
    state = keep.states[place]
    paths = [path for path in leaves(state) if path[0] not in ("began", "order", "random")]
    paths += [path for path in leaves(state["random"], ("random",)) if len(path) < 5]
    bad = []
    rng = random.Random(f"{kind}{place}")
    for _ in range(tries):
        path = rng.choice(paths)
        changed_state = replaced(state, path, rng)
        arguments = KINDS[kind]()
        net, opt, crit = arguments["net"], arguments["opt"], arguments["crit"]
        loader = arguments["data"].trn_dl
        ends = Ends(loader)
        try:
            fit(**{**arguments, "callbacks": (*arguments["callbacks"], ends)}, resume=changed_state)
        except CheckpointError:
            if everything(net, crit, opt, loader=loader) != ends.before or ends.run.history:
                bad.append((path, "changed"))
        except Exception as error:
            holder = changed_state
            for key in path[:-1]:
                holder = holder[key]
            bad.append((path, holder.get(path[-1], "gone") if isinstance(holder, dict) else holder,
                        repr(error)[:200]))  # fmt: skip
    assert not bad, "\n".join(map(repr, bad))


@pytest.mark.parametrize("place", [4, "epoch 0"])
@pytest.mark.parametrize("which", ["order", "random"])
def test_a_generator_that_cannot_be_restored_is_known_before_anything_changes(place, which):
    keep = Keep(place)
    example_fit([keep], epochs=2)
    state = copy.deepcopy(keep.states[place])
    state[which]["numpy"]["state"]["pos"] = 10**6  # NumPy itself would read there
    torch.manual_seed(5)
    net = example_net()
    before = copy.deepcopy(net.state_dict())
    opt = optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    with pytest.raises(CheckpointError):
        fit(net, example_data(), 2, nn.NLLLoss(), opt, [accuracy], progress=False, resume=state)
    assert all(torch.equal(t, before[name]) for name, t in net.state_dict().items())


# ---- float16 -----------------------------------------------------------------------------


class Skips(Callback):
    """Skips some steps."""

    changes_training = True

    def on_backward_end(self, run):
        if run.step % 4 == 2:
            run.skip_step = True


class Overflows(Callback):
    """Gives some batches a loss whose gradients overflow."""

    changes_training = True

    def on_backward_begin(self, run):
        if run.step in (1, 2, 9):
            run.loss = run.loss * 1e36


def in_half(callbacks, resume=None):
    scales = []

    class Scale(Callback):
        def on_batch_end(self, run):
            scales.append(run.stepper.scaler.get_scale())

    torch.manual_seed(0)
    net = example_net()
    opt = optim.SGD(net.parameters(), lr=0.01)
    stepper = MixedPrecision(torch.float16)
    fit(
        net, example_data(), 2, nn.NLLLoss(), opt, stepper=stepper, resume=resume,
        callbacks=[Skips(), Overflows(), Scale(), *callbacks], progress=False,
    )  # fmt: skip
    return everything(net, None, opt, [stepper]), scales


def test_float16_is_resumed_with_its_scale_after_skipped_steps_too():
    places = 1, 2, 3, 4, 7, 10, 11, "epoch 0"
    keep = Keep(*places)
    whole, scales = in_half([keep])
    plain, _ = in_half([])
    assert whole == plain  # a snapshot changes nothing
    assert len(set(scales)) > 2
    for place, state in keep.states.items():
        again, after = in_half([], state)
        assert again == whole, place
        assert after[1:] == scales[len(scales) - len(after) + 1 :], place


def test_the_scale_of_a_gpu_is_gone_on_with_elsewhere():
    keep = Keep(3)
    in_half([keep])
    assert "device" not in keep.states[3]["stepper"][1]  # the scaler is made where the net is


# ---- smaller things ----------------------------------------------------------------------


def test_a_checkpoint_says_at_once_that_its_path_is_a_folder(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine").write_text("text")
    with pytest.raises(IsADirectoryError, match="run"):
        example_fit([Checkpoint(tmp_path / "run")])
    assert (tmp_path / "run" / "mine").read_text() == "text"
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize("keep", [1, 2])
def test_a_name_that_cannot_be_taken_leaves_the_old_file(keep, tmp_path, monkeypatch):
    path = tmp_path / "state"
    write_state(path, {"a": 1}, keep)
    real = Path.replace

    def replace(self, target):
        if self.suffix == ".tmp":
            raise OSError(5, "the disk failed")
        return real(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    with pytest.raises(OSError, match="the disk failed"):
        write_state(path, {"a": 2}, keep)
    monkeypatch.undo()
    assert read_state(path) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["state"]


def nested(make, depth=45):
    part = make(torch.ones(1), None)
    for _ in range(depth):
        part = make(part, part)
    return part


def cycle():
    part = {"a": torch.ones(1)}
    part["b"] = [part]
    return part


BOMBS = {
    "lists": lambda: {"weight": nested(lambda a, b: [a, b])},
    "dicts": lambda: nested(lambda a, b: {"a": a, "b": b}),
    "tuples": lambda: {"weight": nested(lambda a, b: (a, b))},
    "long lists": lambda: {"weight": nested(lambda a, b: [a] * 1000, 4)},
    "a cycle": cycle,
}


@pytest.mark.parametrize("kind", BOMBS)
@pytest.mark.parametrize("whole", [False, True])
def test_lists_that_contain_each_other_over_and_over_are_refused(kind, whole, tmp_path):
    """A few kilobytes would take forever to read: each level doubles what is below it."""
    path = tmp_path / "net.pt"
    torch.save(BOMBS[kind](), path)
    assert path.stat().st_size < 20_000
    if whole:  # with a sum that is right
        raw = path.read_bytes()
        path.write_bytes(raw + hashlib.sha256(raw).digest() + MARK)
    with pytest.raises(CheckpointError, match="contain each other"):
        load_weights(nn.Linear(2, 2), path)
    with pytest.raises(CheckpointError):
        example_fit([], resume=path)


def test_parts_that_are_shared_are_read(tmp_path):
    betas = (0.9, 0.999)
    state = {"groups": [{"lr": 0.1, "betas": betas} for _ in range(200)], "t": [torch.ones(2)] * 50}
    write_state(tmp_path / "state", state)
    assert read_state(tmp_path / "state")["groups"] == state["groups"]


def test_a_checkpoint_behind_a_link(tmp_path):
    (tmp_path / "disk").mkdir()
    link = tmp_path / "run.ckpt"
    link.symlink_to(tmp_path / "disk" / "there")
    for epochs in 1, 2, 3:
        history = example_fit([Checkpoint(link)], epochs=epochs, resume=link)
    assert link.is_symlink() and history["val_loss"] == example_fit([], epochs=3)["val_loss"]
    (tmp_path / "disk" / "there").write_bytes(b"damaged")
    with pytest.warns(UserWarning, match="taken is the one before"):
        again = example_fit([], epochs=3, resume=link)
    assert again["val_loss"] == history["val_loss"]
    save_weights(nn.Linear(2, 2), link)
    assert link.is_symlink()


def test_asking_a_net_whether_it_takes_one_row_draws_nothing():
    class Takes(nn.BatchNorm1d):
        """Takes one row as well."""

        def forward(self, x):
            return super().forward(x) if len(x) > 1 else x

    def trained(checks):
        torch.manual_seed(0)
        x, y = (a[:17] for a in example_data().trn_dl.arrays)
        net = nn.Sequential(nn.Dropout(0.5), Takes(6), nn.Linear(6, 3), nn.LogSoftmax(1))
        opt = optim.SGD(net.parameters(), lr=0.1)
        data = ModelData(".", ArrayLoader(x, y, bs=8, shuffle=True))
        fit(net, data, 2, nn.NLLLoss(), opt, checks=checks, progress=False)
        return everything(net, None, opt)

    assert trained("on") == trained("off")


# ---- a batch drawn ahead -------------------------------------------------------------------


class Jittered(torch.utils.data.Dataset):
    """Rows that are augmented in the main process, as each batch is drawn."""

    def __len__(self):
        return 40

    def __getitem__(self, i):
        return torch.ones(6) * i / 40 + 0.1 * torch.randn(6), i % 3


class Endless:
    """A stream without a length, which draws as it goes."""

    def __iter__(self):
        for i in range(7):
            yield torch.randn(5, 6) + i, torch.arange(5) % 3


@pytest.mark.parametrize("kind", ["DataLoader", "stream", "tfm"])
@pytest.mark.parametrize("step", [3, 5, 6, 9])
def test_a_batch_that_was_drawn_ahead_is_the_same_after_a_resume(kind, step):
    def once(resume=None, **options):
        torch.manual_seed(0 if resume is None else 99)
        net = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.Linear(8, 3))
        opt = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
        loaders = {
            "DataLoader": lambda: DataLoader(Jittered(), 6, shuffle=True),
            "stream": Endless,
            "tfm": lambda: ArrayLoader(
                torch.ones(40, 6), torch.arange(40) % 3, bs=6, tfm=lambda x: x + torch.randn(6)
            ),
        }
        keep = Keep(step)
        callbacks = [GradAccumulation(4), keep]
        md = ModelData(".", loaders[kind]())
        fit(net, md, 2, nn.CrossEntropyLoss(), opt, (), callbacks, progress=False, resume=resume)
        return net.state_dict(), torch.get_rng_state(), keep.states.get(step)

    weights, generator, state = once()
    resumed, generator_resumed, _ = once(resume=state)
    assert all(torch.equal(t, resumed[name]) for name, t in weights.items())
    assert torch.equal(generator, generator_resumed)


@pytest.mark.parametrize("before", [False, True], ids=["the first file", "a file before"])
def test_a_file_that_cannot_be_read_ends_the_fit_at_its_first_write(tmp_path, monkeypatch, before):
    path = tmp_path / "run.ckpt"
    if before:
        example_fit([Checkpoint(path)], epochs=1)
    kept = path.read_bytes() if before else None
    newer = type("_rebuild_tensor_v4", (), {"__call__": lambda self, *args: None})
    monkeypatch.setattr(torch._utils, "_rebuild_tensor_v4", newer, raising=False)

    def written_otherwise(self, protocol):  # as a later release of PyTorch may write a tensor
        return newer, (0,)

    monkeypatch.setattr(torch.Tensor, "__reduce_ex__", written_otherwise)
    newer.__module__, newer.__qualname__ = "torch._utils", "_rebuild_tensor_v4"
    with pytest.raises(CheckpointError, match="could be written, but not be read again") as refused:
        example_fit([Checkpoint(path, every=3)], epochs=2)
    assert "_rebuild_tensor_v4" in str(refused.value) and torch.__version__ in str(refused.value)
    assert (path.read_bytes() if path.exists() else None) == kept
    assert [file.name for file in tmp_path.iterdir()] == (["run.ckpt"] if before else [])


def test_the_first_file_of_a_fit_is_read_back_and_no_other(tmp_path, monkeypatch):
    read = []
    load = torch.load
    monkeypatch.setattr(
        torch, "load", lambda *args, **kwargs: read.append(1) or load(*args, **kwargs)
    )
    callback = Checkpoint(tmp_path / "run.ckpt", every=3)
    for fits in 1, 2:
        example_fit([callback], epochs=2)
        assert len(read) == fits
