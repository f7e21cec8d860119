"""Mistakes in validation are found before the first step, and errors name where they came from."""

import dataclasses
import random
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torchmetrics
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from minifast import (
    ArrayLoader,
    Callback,
    ModelData,
    accuracy,
    fit,
    iter_predict,
    load_weights,
    predict,
    save_weights,
    validate,
)
from minifast.history import History
from minifast.metrics import whole_epoch
from minifast.plugins import load
from minifast.storage import CheckpointError

ROWS = torch.linspace(-1, 1, 80).reshape(20, 4), torch.arange(20) % 2


def batches(n=3, wide=4, label=1):
    return [(torch.ones(2, wide), torch.tensor([0, label])) for _ in range(n)]


def trained(trn=None, val=None, metrics=(), callbacks=(), crit=None, net=None, epochs=1, **options):
    net = net or nn.Linear(4, 2)
    opt = torch.optim.SGD(net.parameters(), lr=0.1)
    data = ModelData(".", batches() if trn is None else trn, val)
    crit = crit or nn.CrossEntropyLoss()
    return fit(net, data, epochs, crit, opt, metrics, callbacks, progress=False, **options)


class Steps(Callback):
    def __init__(self):
        self.n = 0

    def on_batch_end(self, run):
        self.n += 1


class Gives:
    """A metric object that computes what it is told to."""

    def __init__(self, value):
        self.value, self.rows = value, 0

    def reset(self):
        self.rows = 0

    def update(self, preds, targs):
        self.rows += len(targs)

    def compute(self):
        return self.value


def classes(kind, **options):
    return getattr(torchmetrics.classification, kind)(num_classes=2, **options)


LATE = {
    "a row of another width": {"val": batches(wide=5)},
    "a label out of range": {"val": batches(label=7)},
    "a label out of range in batch 1": {"val": batches(1) + batches(label=7)},
    "a dict for a batch": {"val": [{"x": torch.ones(2, 4), "y": torch.tensor([0, 1])}]},
    "a number for a batch": {"val": [5]},
    "no batch": {"val": []},
    "a dataset that raises": {"val": DataLoader(TensorDataset(torch.ones(3, 5), torch.ones(3)))},
    "workers": {"val": DataLoader(TensorDataset(torch.ones(3, 5), torch.ones(3)), num_workers=1)},
    "average=None": {"metrics": [classes("MulticlassAccuracy", average=None)]},
    "a confusion matrix": {"metrics": [classes("MulticlassConfusionMatrix")]},
    "a collection": {"metrics": [torchmetrics.MetricCollection([classes("MulticlassAccuracy")])]},
    "an object that updates with an error": {"metrics": [torchmetrics.MeanSquaredError()]},
    "a function of two epochs": {"metrics": [lambda preds: 0.0]},
} | {
    f"{kind} of {name}": {"metrics": [make(value)]}
    for kind, make in {
        "object": Gives,
        "function": lambda value: lambda preds, targs: value,
        "whole epoch": lambda value: whole_epoch(lambda preds, targs: value),
    }.items()
    for name, value in {
        "dict": {"a": 1},
        "tuple": (1.0, 2.0),
        "None": None,
        "vector": torch.ones(3),
        "array": np.ones(2),
        "text": "0.5",
    }.items()
}


@pytest.mark.parametrize("name", LATE)
@pytest.mark.parametrize("checks", ["on", "warn"])
def test_it_is_told_before_the_first_step(name, checks):
    case = {"val": batches(), "net": nn.Linear(4, 2)} | LATE[name]
    net, steps = case["net"], Steps()
    before = {k: t.clone() for k, t in net.state_dict().items()}
    callbacks = [] if name == "no batch" else [steps]
    with pytest.raises((TypeError, ValueError, IndexError, RuntimeError)) as caught:
        trained(callbacks=callbacks, checks=checks, **case)
    assert steps.n == 0
    assert all(torch.equal(t, before[k]) for k, t in net.state_dict().items())
    notes = " ".join(getattr(caught.value, "__notes__", []))
    assert "errors-and-fixes#" in str(caught.value) or "tried before the first step" in notes
    if "metrics" in LATE[name]:
        assert "metric" in str(caught.value)


@pytest.mark.parametrize("name", ["a row of another width", "object of vector"])
def test_with_checks_off_nothing_is_tried(name):
    steps = Steps()
    with pytest.raises((TypeError, ValueError, RuntimeError)):
        trained(callbacks=[steps], checks="off", **({"val": batches()} | LATE[name]))
    assert steps.n == 3


class Draws(Dataset):
    """Rows with noise from every global generator."""

    def __len__(self):
        return 20

    def __getitem__(self, i):
        noise = torch.rand(4) + random.random() + float(np.random.rand())
        return ROWS[0][i] + noise, ROWS[1][i]


class Once:
    """A stream that counts the batches it gave."""

    def __init__(self):
        self.given = 0

    def __iter__(self):
        for batch in batches():
            self.given += 1
            yield batch


def net_with_everything():
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 2))


VALIDATION = {
    "arrays": lambda: ArrayLoader(*ROWS, bs=6, shuffle=True, seed=3),
    "transformed": lambda: ArrayLoader(*ROWS, bs=6, tfm=lambda x: x + torch.rand_like(x)),
    "list": batches,
    "DataLoader": lambda: DataLoader(Draws(), 6, shuffle=True),
    "own generator": lambda: DataLoader(
        Draws(), 6, shuffle=True, generator=torch.Generator().manual_seed(1)
    ),
    "own class": Once,
}


@pytest.mark.parametrize("name", VALIDATION)
def test_trying_changes_nothing(name):
    """Weights, generators and the table are those of a fit that does not try."""
    found = []
    for checks in "on", "off":
        torch.manual_seed(0), random.seed(0), np.random.seed(0)
        net, metric = net_with_everything(), classes("MulticlassAccuracy", average="macro")
        trn = ArrayLoader(*ROWS, bs=6, shuffle=True)
        table = trained(
            trn, VALIDATION[name](), [accuracy, metric], net=net, checks=checks, epochs=2
        )
        state = [t.tolist() for t in net.state_dict().values()]
        generators = torch.get_rng_state().tolist(), random.getstate(), np.random.rand()
        found.append((list(table), state, generators))
    assert found[0] == found[1]


def test_a_stream_loses_no_batch():
    stream = Once()
    trained(val=stream)
    assert stream.given == 3
    rest = iter(batches(4))
    assert len(trained(val=rest)) == 1


def test_the_objects_themselves_are_not_touched():
    metric, lists = Gives(0.5), batches()
    seen = []

    class Before(Callback):
        def on_backward_end(self, run):
            seen.append((metric.rows, [x.tolist() for x, _ in lists]))

    trained(val=lists, metrics=[metric], callbacks=[Before()])
    assert seen[0] == (0, [[[1.0] * 4] * 2] * 3)


class Switches(Callback):
    """Makes validation right just before it."""

    def on_validate_begin(self, run):
        run.data.val_dl = batches()


def test_validation_that_a_callback_makes_right_is_not_refused():
    assert len(trained(val=batches(wide=5), callbacks=[Switches()])) == 1


class Auxiliary(nn.Linear):
    """Two outputs in training and one in validation, as Inception has it."""

    def forward(self, x):
        out = super().forward(x)
        return (out, out) if self.training else out


def test_metrics_get_the_output_of_validation():
    def loss(preds, y):
        return nn.functional.cross_entropy(preds[0] if isinstance(preds, tuple) else preds, y)

    history = trained(val=batches(), metrics=[accuracy], crit=loss, net=Auxiliary(4, 2))
    assert 0 <= history["accuracy"][0] <= 1


def test_a_metric_of_all_rows_may_need_more_of_them():
    @whole_epoch
    def needs_six(preds, targs):
        if len(targs) < 6:
            raise ValueError("too few rows")
        return 1.0

    assert trained(val=batches(3), metrics=[needs_six])["needs_six"] == [1.0]


@pytest.mark.parametrize("value", [{"a": 1}, (1, 2), None, torch.ones(3), np.ones(2), "0.5"])
def test_validate_says_the_same(value):
    net, crit = nn.Linear(4, 2), nn.CrossEntropyLoss()
    for metric in Gives(value), lambda p, t: value, whole_epoch(lambda p, t: value):
        with pytest.raises(TypeError, match="must return one number") as caught:
            validate(net, batches(), crit, [metric])
        assert any("the metric" in note for note in caught.value.__notes__)
    with pytest.raises(TypeError, match="must return one number"):
        validate(net, batches(), lambda preds, y: value)


@pytest.mark.parametrize(
    "value", [0.5, torch.tensor([0.5]), np.float64(0.5), np.array([0.5]), True]
)
def test_one_number_of_any_kind_is_taken(value):
    for metric in Gives(value), lambda p, t: value, whole_epoch(lambda p, t: value):
        assert float(np.ravel(value)[0]) in trained(val=batches(), metrics=[metric])[0].values()


# ---- which batch -------------------------------------------------------------------------


class Breaks:
    """Three batches, then the disk fails."""

    def __iter__(self):
        yield from batches()
        raise OSError("disk")


PLACES = {
    "a label in training": (lambda: trained(batches() + batches(label=7)), "batch 3 of epoch 0"),
    "a row in training": (lambda: trained(batches() + batches(wide=5)), "batch 3 of epoch 0"),
    "the loader in training": (lambda: trained(Breaks()), "trn_dl, for batch 3 of epoch 0"),
    "a batch of training": (lambda: trained([*batches(), 5]), "trn_dl, for batch 3 of epoch 0"),
    "a label in validation": (
        lambda: trained(val=batches() + batches(label=7)),
        "validation: batch 3",
    ),
    "the loader in validation": (lambda: trained(val=Breaks()), "validation: batch 3"),
    "validate": (
        lambda: validate(nn.Linear(4, 2), Breaks(), nn.CrossEntropyLoss()),
        "validation: batch 3",
    ),
    "predict": (lambda: predict(nn.Linear(4, 2), Breaks()), "prediction: batch 3"),
    "iter_predict": (lambda: list(iter_predict(nn.Linear(4, 2), Breaks())), "prediction: batch 3"),
    "the net in predict": (
        lambda: predict(nn.Linear(4, 2), batches() + batches(wide=5)),
        "prediction: batch 3",
    ),
}


@pytest.mark.parametrize("name", PLACES)
def test_an_error_in_a_later_batch_names_it(name):
    call, note = PLACES[name]
    with pytest.raises(Exception) as caught:
        call()
    assert any(note in each for each in caught.value.__notes__), caught.value.__notes__


def test_the_error_of_a_loader_is_the_same_object():
    error = OSError("disk")

    def broken():
        yield from batches()
        raise error

    with pytest.raises(OSError) as caught:
        trained(broken())
    assert caught.value is error


@pytest.mark.parametrize("function", ["predict", "validate"])
def test_a_batch_that_is_a_dict_is_told_by_its_keys(function):
    dl = [{"image": torch.ones(2, 4), "label": torch.tensor([0, 1])}]
    with pytest.raises(TypeError, match="dict with image, label"):
        if function == "predict":
            predict(nn.Linear(4, 2), dl)
        else:
            validate(nn.Linear(4, 2), dl, nn.CrossEntropyLoss())


# ---- as they were raised -----------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class FrozenError(Exception):
    code: int = 1


EVENTS = "on_train_begin on_epoch_begin on_batch_begin on_validate_begin on_epoch_end on_train_end"


@pytest.mark.parametrize("event", EVENTS.split())
@pytest.mark.parametrize("error", [StopIteration("end"), FrozenError()], ids=type)
def test_a_handlers_error_arrives_as_it_was_raised(event, error):
    def handler(run):
        raise error

    callback = Callback()
    setattr(callback, event, handler)
    with pytest.raises(type(error)) as caught:
        trained(val=batches(), callbacks=[callback])
    assert caught.value is error


KEYS = {
    "a column": lambda: History([{"epoch": 0}])["loss"],
    "a plug-in": lambda: load("EarlyStoping"),
    "a monitor": lambda: trained(callbacks=[load("EarlyStopping")()]),
}


@pytest.mark.parametrize("name", KEYS)
def test_a_key_error_prints_its_lines(name):
    with pytest.raises(LookupError) as caught:  # KeyError is one
        KEYS[name]()
    assert "\\n" not in str(caught.value) and str(caught.value) == caught.value.args[0]


# ---- advice ------------------------------------------------------------------------------


class Then(nn.Module):
    def __init__(self, first, then=lambda x: x):
        super().__init__()
        self.first, self.then, self.last = first, then, nn.Linear(1, 2)

    def forward(self, x):
        return self.then(self.first(x))


class Advice(NamedTuple):
    net: nn.Module
    x: torch.Tensor
    has: str
    not_: str = "\0"


ADVICE = {
    f"{name} of {dtype}": Advice(net, torch.ones(shape).to(dtype), "np.float32", "channels in")
    for name, net, shape in [
        ("Conv2d", nn.Conv2d(1, 2, 3), (2, 1, 8, 8)),
        ("Conv1d", nn.Conv1d(1, 2, 3), (2, 1, 8)),
        ("GRU", nn.GRU(3, 4, batch_first=True), (2, 5, 3)),
        ("LSTM", nn.LSTM(3, 4, batch_first=True), (2, 5, 3)),
        ("attention", nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), (2, 5, 4)),
    ]
    for dtype in (torch.int64, torch.uint8, torch.uint16, torch.int8)
} | {
    "complex": Advice(
        nn.Linear(4, 2, dtype=torch.complex64),
        torch.ones(2, 4, dtype=torch.complex128),
        "complex64",
        "float32)",
    ),
    "Embedding": Advice(nn.Embedding(5, 2), torch.ones(2, 4), "int64"),
    "Conv1d, channels last": Advice(nn.Conv1d(3, 2, 3), torch.ones(2, 8, 3), "(0, 2, 1)"),
    "Conv3d without channel": Advice(
        nn.Conv3d(1, 2, 3), torch.ones(2, 8, 8, 8), "len(x), 1, 8, 8, 8)"
    ),
    "Conv1d without channel": Advice(nn.Conv1d(1, 2, 3), torch.ones(2, 8), "len(x), 1, 8)"),
    "Conv2d, too large": Advice(
        nn.Conv2d(1, 2, 9), torch.ones(2, 1, 8, 8), "by hand", "1 channels in place of 1"
    ),
    "an attribute of a tensor": Advice(
        Then(nn.Linear(4, 2), lambda x: x.foo), torch.ones(2, 4), "traceback ends"
    ),
    "a call within forward": Advice(
        Then(nn.Linear(4, 2), lambda x: (lambda a, b: a)(x)), torch.ones(2, 4), "by hand", "loader"
    ),
    "LayerNorm": Advice(nn.LayerNorm(4), torch.ones(2, 6), "by hand"),
}


@pytest.mark.parametrize("name", ADVICE)
@pytest.mark.filterwarnings("ignore:Complex modules")
def test_advice_is_right_or_says_how_to_look_further(name):
    case = ADVICE[name]
    trn = [(case.x, torch.zeros(2, dtype=torch.int64))]
    with pytest.raises(Exception) as caught:
        trained(trn, net=case.net)
    text = str(caught.value)
    assert "errors-and-fixes#" in text and case.has in text and case.not_ not in text, text


# ---- files -------------------------------------------------------------------------------


class Extra(nn.Linear):
    def get_extra_state(self):
        return {"note": 1}

    def set_extra_state(self, state):
        pass


def test_safetensors_holds_tensors_only(tmp_path):
    with pytest.raises(TypeError, match="get_extra_state"):
        save_weights(Extra(2, 2), tmp_path / "net.safetensors")
    assert not list(tmp_path.iterdir())
    save_weights(Extra(2, 2), tmp_path / "net.pt")


def test_a_dtype_that_the_reader_does_not_know(tmp_path):
    header = b'{"weight":{"dtype":"F4","shape":[2,2],"data_offsets":[0,2]}}'
    path = tmp_path / "net.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(2))
    with pytest.raises(CheckpointError):
        load_weights(nn.Linear(2, 2), path)
