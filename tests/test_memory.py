"""When a fit is over, its net, data, optimizer and callbacks go with their last name.

Without Python's garbage collector, that is: what waits for it keeps the memory of a GPU, and ends
the workers of a DataLoader late and slowly.
"""

import gc
import weakref

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from minifast import ArrayLoader, Callback, ModelData, accuracy, fit, predict, validate
from minifast.callback import EVENTS
from minifast.metrics import f1
from minifast.plugins import (
    EMA,
    SWA,
    ActivationStats,
    Fast,
    GradAccumulation,
    GradientStats,
    LabelSmoothing,
    LossRecorder,
    MixUp,
    OneCycle,
    SaveBest,
    lr_find,
)

X = torch.randn(23, 3, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long()


def breaks(event, error):
    def handle(self, run):
        raise error("enough")

    return type("Breaks", (Callback,), {event: handle})()


class Linear(nn.Linear):
    """Fails in train mode, eval mode, or later in an epoch."""

    fails: bool | int = False

    def forward(self, x):
        if self.training is self.fails or len(x) == self.fails:
            raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")
        return super().forward(x)


def fails(preds, targs):
    raise RuntimeError("only batches of spatial targets supported")


def not_a_number(preds, targs):
    return preds.mean() * torch.nan


def trained(loader, net=None, callbacks=(), crit=None, metrics=(), stepper=None):
    """Weak references to what a fit was given, and how it ended; no other references are left."""
    net, crit = net or nn.Linear(3, 2), crit or nn.CrossEntropyLoss()
    opt, data = torch.optim.SGD(net.parameters(), lr=0.01), ModelData(".", loader, loader)
    given = [net, loader, opt, data, *callbacks]
    try:
        fit(net, data, 2, crit, opt, metrics, callbacks, stepper=stepper, progress=False)
    except BaseException as error:
        return [weakref.ref(each) for each in given], type(error)
    return [weakref.ref(each) for each in given], None


def loader_of(kind):
    if kind == "arrays":
        return ArrayLoader(X, Y, bs=5)
    return DataLoader(TensorDataset(X, Y), 5)


def failing(when):
    net = Linear(3, 2)
    net.fails = when
    return net


CASES = {
    "nothing": (dict, None),
    "metrics": (lambda: {"metrics": [accuracy, f1]}, None),
    "stepper": (lambda: {"stepper": Fast()}, None),
    "another width": (lambda: {"net": nn.Linear(4, 2)}, RuntimeError),
    "net": (lambda: {"net": failing(True)}, RuntimeError),
    "net, last batch": (lambda: {"net": failing(3)}, RuntimeError),
    "net, evaluated": (lambda: {"net": failing(False)}, RuntimeError),
    "loss": (lambda: {"crit": fails}, RuntimeError),
    "metric": (lambda: {"metrics": [fails]}, TypeError),
    "nan": (lambda: {"crit": not_a_number}, FloatingPointError),
}
for event in EVENTS:
    CASES[event] = (lambda event=event: {"callbacks": [breaks(event, OSError)]}, OSError)
CASES["Ctrl-C"] = (
    lambda: {"callbacks": [breaks("on_batch_end", KeyboardInterrupt)]},
    KeyboardInterrupt,
)
PLUGINS = [
    *(EMA, GradientStats, ActivationStats, LossRecorder, SaveBest),
    *(lambda: GradAccumulation(2), lambda: LabelSmoothing(0.1), lambda: MixUp(0.4)),
    *(lambda: OneCycle(0.1), lambda: SWA(1)),
]
for make in PLUGINS:
    CASES[type(make()).__name__] = (lambda make=make: {"callbacks": [make()]}, None)


@pytest.fixture
def no_collector():
    trained(loader_of("arrays"))  # PyTorch imports more at the first step, with cycles of its own
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize("kind", ["arrays", "DataLoader"])
@pytest.mark.parametrize("case", CASES)
def test_what_a_fit_was_given_goes_with_its_last_name(case, kind, no_collector):
    make, error = CASES[case]
    left, ended = trained(loader_of(kind), **make())
    assert ended is error
    assert [each() for each in left if each() is not None] == []


@pytest.mark.parametrize("what", [validate, predict, lr_find])
@pytest.mark.parametrize("fails_when", [None, False, 3])
def test_what_the_others_were_given_goes_too(what, fails_when, no_collector):
    net, dl = failing(fails_when), loader_of("DataLoader")
    if what is lr_find:
        net.fails = True if fails_when is False else fails_when
    crit, opt = nn.CrossEntropyLoss(), torch.optim.SGD(net.parameters(), lr=0.01)
    data = ModelData(".", dl)
    more = {validate: (dl, crit), predict: (dl,), lr_find: (data, crit, opt)}[what]
    try:
        what(net, *more)
    except RuntimeError:
        assert fails_when is not None
    left = [weakref.ref(each) for each in (net, dl, opt, data)]
    del net, dl, opt, data, more
    assert [each() for each in left if each() is not None] == []
