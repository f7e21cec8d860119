"""Mistakes of a first week: each is answered in words, and nothing has changed."""

import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn, optim
from torch.nn import functional as F  # noqa: N812
from torch.utils.data import DataLoader, TensorDataset

from minifast import (
    ArrayLoader,
    Callback,
    ImageClassifierData,
    ModelData,
    accuracy,
    fit,
    load_weights,
    predict,
    save_weights,
    validate,
)
from minifast.metrics import f1
from minifast.plugins import (
    Checkpoint,
    CSVLogger,
    EarlyStopping,
    GradAccumulation,
    OneCycle,
    SaveBest,
    TimeLimit,
    class_weights,
)
from minifast.testing import example_fit, example_net

RNG = np.random.default_rng(0)
X = RNG.normal(size=(40, 6)).astype(np.float32)
Y = np.arange(40) % 3
IMAGES = RNG.normal(size=(40, 4, 4)).astype(np.float32)
Q = RNG.normal(size=40).astype(np.float32)  # a quantity
B = (np.arange(40) % 2).astype(np.float32)  # yes or no


def softmax(n=3):
    return nn.Sequential(nn.Linear(6, n), nn.LogSoftmax(dim=1))


def linear(n=3, wide=6):
    return nn.Linear(wide, n)


def convolution(channels=1):
    return nn.Sequential(
        nn.Conv2d(channels, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    )


def arrays(x, y, **options):
    """Training and validation data of the same rows."""
    return lambda: ImageClassifierData.from_arrays(".", (x, y), (x, y), bs=8, **options)


def batches(x, y, bs=8, **options):
    x, y = (a if isinstance(a, torch.Tensor) else torch.as_tensor(a) for a in (x, y))
    return lambda: ModelData(".", DataLoader(TensorDataset(x, y), bs, **options))


def changed(y, row, label):
    y = y.copy()
    y[row] = label
    return y


class With:
    """A fit with everything right but what is named."""

    def __init__(self, words, data=None, net=softmax, crit=nn.NLLLoss, opt=None, **options):
        self.words, self.data, self.net, self.crit = words, data or arrays(X, Y), net, crit
        self.opt, self.options = opt, options

    def __call__(self):
        torch.manual_seed(0)
        net = self.net()
        opt = self.opt(net) if self.opt else optim.SGD(net.parameters(), lr=0.1)
        crit = self.crit()
        before = {k: t.clone() for k, t in net.state_dict().items()} if net is not None else {}
        state = torch.get_rng_state()
        try:
            options = {"progress": False, **self.options}
            epochs = options.pop("epochs", 1)
            fit(net, self.data(), epochs, crit, opt, **options)
        finally:
            if not any(t.is_meta for t in before.values()):
                assert all(torch.equal(t, before[k]) for k, t in net.state_dict().items())
            assert torch.equal(state, torch.get_rng_state())


# ---- shapes ------------------------------------------------------------------------------

SHAPES = {
    "x shorter than y": With("differ in length", arrays(X[:30], Y)),
    "y shorter than x": With("differ in length", arrays(X, Y[:39])),
    "x is one number": With("has no rows", arrays(np.float32(3), Y)),
    "no rows": With("no rows", arrays(X[:0], Y[:0])),
    "ragged rows": With("every row of the same length", arrays([[1.0], [1.0, 2.0]], [0, 1])),
    "labels in a column": With("are a column", arrays(X, Y[:, None])),
    "labels in a column, loader": With("are a column", batches(X, Y[:, None])),
    "labels in a column, cross entropy": With(
        "are a column", arrays(X, Y[:, None]), linear, nn.CrossEntropyLoss
    ),
    "one-hot whole numbers": With("one-hot", arrays(X, np.eye(3, dtype=int)[Y]), crit=nn.NLLLoss),
    "one-hot floats into NLLLoss": With("one-hot", batches(X, np.eye(3, dtype=np.float32)[Y])),
    "one-hot, cross entropy of whole numbers": With(
        "one-hot", batches(X, np.eye(3, dtype=int)[Y]), linear, nn.CrossEntropyLoss
    ),
    "images into a linear net": With(
        r"nn.Flatten\(\)",
        arrays(IMAGES, Y),
        lambda: nn.Sequential(linear(wide=16)),
        nn.CrossEntropyLoss,
    ),
    "rows of another width": With(
        r"nn.Linear\(6, 3\)", net=lambda: linear(3, 5), crit=nn.CrossEntropyLoss
    ),
    "the second layer of another width": With(
        r"net.2, Linear.*nn.Linear\(8, 3\)",
        net=lambda: nn.Sequential(linear(8), nn.ReLU(), nn.Linear(9, 3)),
        crit=nn.CrossEntropyLoss,
    ),
    "images without channels": With(
        r"x.reshape\(len\(x\), 1, 4, 4\)", arrays(IMAGES, Y), convolution, nn.CrossEntropyLoss
    ),
    "flat images into convolutions": With(
        r"x.reshape\(len\(x\), 1, 4, 4\)",
        arrays(IMAGES.reshape(40, 16), Y),
        convolution,
        nn.CrossEntropyLoss,
    ),
    "channels last": With(
        "np.transpose",
        arrays(np.ones((40, 8, 8, 3)), Y),
        lambda: convolution(3),
        nn.CrossEntropyLoss,
    ),
    "colour into a net of gray": With(
        "Conv2d with 3 channels",
        arrays(np.ones((40, 3, 8, 8)), Y),
        convolution,
        nn.CrossEntropyLoss,
    ),
    "BatchNorm1d of another width": With(
        "5 channels|5 numbers|num_features|\\(rows, 5\\)",
        net=lambda: nn.Sequential(nn.BatchNorm1d(5), linear()),
        crit=nn.CrossEntropyLoss,
    ),
    "BatchNorm2d on flat rows": With(
        "second axis",
        net=lambda: nn.Sequential(nn.BatchNorm2d(6), linear()),
        crit=nn.CrossEntropyLoss,
    ),
    "one row, BatchNorm": With(
        "BatchNorm cannot take",
        arrays(X[:1], Y[:1]),
        lambda: nn.Sequential(nn.BatchNorm1d(6), softmax()),
    ),
    "batches of one row, BatchNorm": With(
        "BatchNorm cannot take",
        batches(X, Y, bs=1),
        lambda: nn.Sequential(nn.BatchNorm1d(6), softmax()),
    ),
    "a last batch of one row in a DataLoader, BatchNorm": With(
        "last batch has a single row",
        batches(X[:33], Y[:33]),
        lambda: nn.Sequential(nn.BatchNorm1d(6), softmax()),
    ),
    "quantities in a row, outputs in a column": With(
        r"y.reshape\(-1, 1\)", arrays(X, Q, continuous=True), lambda: linear(1), nn.MSELoss
    ),
    "the same, L1": With(
        r"y.reshape\(-1, 1\)", arrays(X, Q, continuous=True), lambda: linear(1), nn.L1Loss
    ),
    "the same, Huber": With(
        r"y.reshape\(-1, 1\)", arrays(X, Q, continuous=True), lambda: linear(1), nn.HuberLoss
    ),
    "the same, smooth L1": With(
        r"y.reshape\(-1, 1\)", arrays(X, Q, continuous=True), lambda: linear(1), nn.SmoothL1Loss
    ),
    "the same, a function": With(
        r"y.reshape\(-1, 1\)",
        arrays(X, Q, continuous=True),
        lambda: linear(1),
        lambda: F.mse_loss,
    ),
    "the same, a DataLoader": With(
        r"y.reshape\(-1, 1\)", batches(X, Q), lambda: linear(1), nn.MSELoss
    ),
    "outputs in a row, quantities in a column": With(
        r"y.ravel\(\)",
        arrays(X, Q[:, None], continuous=True),
        lambda: nn.Sequential(linear(1), nn.Flatten(0)),
        nn.MSELoss,
    ),
    "three outputs for one quantity": With(
        "differ in shape", arrays(X, Q[:, None], continuous=True), linear, nn.MSELoss
    ),
    "three outputs for quantities in a row": With(
        "differ in shape", arrays(X, Q, continuous=True), linear, nn.MSELoss
    ),
    "two quantities, three outputs": With(
        "differ in shape", arrays(X, np.stack([Q, Q], 1), continuous=True), linear, nn.MSELoss
    ),
    "yes or no in a row, outputs in a column": With(
        "differ in shape", arrays(X, B, continuous=True), lambda: linear(1), nn.BCEWithLogitsLoss
    ),
    "the same, BCELoss": With(
        "differ in shape",
        arrays(X, B, continuous=True),
        lambda: nn.Sequential(linear(1), nn.Sigmoid()),
        nn.BCELoss,
    ),
    "the net drops the rows' axis": With(
        "outputs do not fit", net=lambda: nn.Sequential(softmax(), nn.Flatten(0)), crit=nn.NLLLoss
    ),
    "the net mixes the rows": With(
        "outputs do not fit",
        arrays(X, Y),
        lambda: nn.Sequential(Reshaped(), linear(3, 12)),
        nn.CrossEntropyLoss,
    ),
    "validation rows of another width": With(
        "to validate with",
        lambda: ImageClassifierData.from_arrays(".", (X, Y), (X[:, :5], Y), bs=8),
    ),
    "validation images, training rows": With(
        "to validate with",
        lambda: ImageClassifierData.from_arrays(".", (X, Y), (IMAGES, Y), bs=8),
    ),
    "validation pair of two lengths": With(
        "differ in length",
        lambda: ImageClassifierData.from_arrays(".", (X, Y), (X, Y[:9]), bs=8),
    ),
}


class Reshaped(nn.Module):
    def forward(self, x):
        return x.reshape(-1, 12)


# ---- dtypes and labels -------------------------------------------------------------------

DTYPES = {
    "x is text": With("cannot become a tensor", arrays(np.full((40, 6), "a"), Y)),
    "x is objects": With("cannot become a tensor", arrays(X.astype(object), Y)),
    "x is a list of text": With("cannot become a tensor", arrays([["a"]] * 40, Y)),
    "x is dates": With("cannot become a tensor", arrays(np.zeros((40, 6), "M8[s]"), Y)),
    "x is None": With("cannot become a tensor", arrays([[None]] * 40, Y)),
    "x is a dict": With("cannot become a tensor", arrays({"a": X}, Y)),
    "y is text": With("cannot become a tensor", arrays(X, np.array(["cat", "dog"] * 20))),
    "y is objects": With("cannot become a tensor", arrays(X, Y.astype(object))),
    "y is dates": With("cannot become a tensor", arrays(X, np.zeros(40, "M8[s]"))),
    "y is None": With("cannot become a tensor|pair", arrays(X, None)),
    "whole numbers in x": With("different types.*int64", arrays((X * 9).astype(int), Y)),
    "small whole numbers in x": With("different types", arrays((X * 9).astype(np.int8), Y)),
    "truth values in x, a DataLoader": With("different types", batches(X > 0, Y)),
    "float64 in a DataLoader": With("different types.*float64", batches(X.astype(float), Y)),
    "float16 in a DataLoader": With("different types.*float16", batches(X.astype(np.float16), Y)),
    "uint8 in a DataLoader": With("different types.*uint8", batches(X.astype(np.uint8), Y)),
    "a net in float64": With("different types.*float64", net=lambda: softmax().double()),
    "a net in half precision": With("different types.*float16", net=lambda: softmax().half()),
    "half of a net in float64": With(
        "different types", net=lambda: nn.Sequential(linear(6), softmax().double())
    ),
    "floats into an embedding": With(
        "embedding", net=lambda: nn.Sequential(nn.Embedding(9, 3), nn.Flatten(), nn.Linear(18, 3))
    ),
    "a word that the embedding has not": With(
        "not a row of the embedding",
        arrays(np.full((40, 6), 9), Y),
        lambda: nn.Sequential(nn.Embedding(9, 3), nn.Flatten(), nn.Linear(18, 3)),
        nn.CrossEntropyLoss,
    ),
    "float labels": With("labels y are floats", arrays(X, Y.astype(float))),
    "float32 labels": With("labels y are floats", arrays(X, Y.astype(np.float32))),
    "float labels, cross entropy": With(
        "labels y are floats", arrays(X, Y.astype(float)), linear, nn.CrossEntropyLoss
    ),
    "float labels, a function": With(
        "labels y are floats", arrays(X, Y.astype(float)), crit=lambda: F.nll_loss
    ),
    "float labels in a column": With("labels y are floats", arrays(X, Y[:, None].astype(float))),
    "labels as a quantity": With("labels y are floats", arrays(X, Y, continuous=True)),
    "float labels in a DataLoader": With("labels y are floats", batches(X, Q)),
    "int32 labels in a DataLoader": With("no int64", batches(X, Y.astype(np.int32))),
    "int16 labels in a DataLoader": With("no int64", batches(X, Y.astype(np.int16))),
    "truth values as labels in a DataLoader": With("no int64", batches(X, Y > 0)),
    "labels that start at 1": With("start at 1", arrays(X, Y + 1)),
    "labels that start at 1, cross entropy": With(
        "start at 1", arrays(X, Y + 1), linear, nn.CrossEntropyLoss
    ),
    "labels that start at 1, DataLoader": With("start at 1", batches(X, Y + 1)),
    "a label too large in the first batch": With("label 7 .row 2", arrays(X, changed(Y, 2, 7))),
    "a label too large in the last row": With("label 3 .row 39", arrays(X, changed(Y, 39, 3))),
    "a label too large in validation": With(
        "val_dl's y holds the label 5",
        lambda: ImageClassifierData.from_arrays(".", (X, Y), (X, changed(Y, 39, 5)), bs=8),
    ),
    "a negative label": With("label -1", arrays(X, changed(Y, 0, -1))),
    "a negative label in the last row": With("label -1", arrays(X, changed(Y, 39, -1))),
    "a negative label, cross entropy": With(
        "label -7", arrays(X, changed(Y, 3, -7)), linear, nn.CrossEntropyLoss
    ),
    "classes 10, 20, 30": With("label 30", arrays(X, (Y + 1) * 10)),
    "nan in x": With("row 3 of the first batch", batches(changed(X, 3, np.nan), Y)),
    "infinity in x": With("nan or infinite", batches(changed(X, 3, np.inf), Y)),
    "nan in a quantity": With(
        "y has numbers", batches(X, changed(Q, 3, np.nan)[:, None]), lambda: linear(1), nn.MSELoss
    ),
}

# ---- losses ------------------------------------------------------------------------------


class OwnLoss(nn.Module):
    def __init__(self, gives):
        super().__init__()
        self.gives = gives

    def forward(self, preds, y):
        return self.gives(preds, y)


def own(gives):
    return lambda: OwnLoss(gives)


LOSSES = {
    "scores into NLLLoss": With("wants log-probabilities.*scores", net=linear),
    "scores into nll_loss": With("wants log-probabilities", net=linear, crit=lambda: F.nll_loss),
    "scores into NLLLoss, DataLoader": With("log-probabilities", batches(X, Y), linear),
    "probabilities into NLLLoss": With(
        "gives probabilities", net=lambda: nn.Sequential(linear(), nn.Softmax(dim=1))
    ),
    "softmax over the wrong axis": With(
        "log-probabilities", net=lambda: nn.Sequential(linear(), nn.LogSoftmax(dim=0))
    ),
    "ReLU behind LogSoftmax": With(
        "log-probabilities", net=lambda: nn.Sequential(softmax(), nn.ReLU())
    ),
    "scores into BCELoss": With(
        "wants probabilities", arrays(X, B[:, None], continuous=True), lambda: linear(1), nn.BCELoss
    ),
    "labels of whole numbers into BCELoss": With(
        "differ in type",
        arrays(X, B[:, None].astype(int)),
        lambda: nn.Sequential(linear(1), nn.Sigmoid()),
        nn.BCELoss,
    ),
    "labels of whole numbers into BCEWithLogitsLoss": With(
        "differ in type",
        batches(X, B[:, None].astype(int)),
        lambda: linear(1),
        nn.BCEWithLogitsLoss,
    ),
    "one output, cross entropy": With(
        "one output", arrays(X, np.zeros(40, int)), lambda: linear(1), nn.CrossEntropyLoss
    ),
    "a class": With("crit is no loss", crit=lambda: nn.NLLLoss),
    "text": With("crit is no loss", crit=lambda: "nll"),
    "None": With("crit is no loss", crit=lambda: None),
    "a module that is no loss": With(
        "crit cannot be called|loss cannot be computed", crit=lambda: nn.Linear(3, 1)
    ),
    "no reduction": With("reduction", crit=lambda: nn.NLLLoss(reduction="none")),
    "no reduction, cross entropy": With(
        "reduction", net=linear, crit=lambda: nn.CrossEntropyLoss(reduction="none")
    ),
    "a vector": With("does not give a loss.*shape .8,", crit=own(lambda p, y: p.sum(1))),
    "a float": With("does not give a loss.*item", crit=own(lambda p, y: p.mean().item())),
    "a tuple": With("does not give a loss.*tuple", crit=own(lambda p, y: (p.mean(), 0))),
    "nothing": With("does not give a loss.*None", crit=own(lambda p, y: None)),
    "an array": With(
        "does not give a loss|no way from the loss", crit=own(lambda p, y: p.detach().numpy().sum())
    ),
    "without a gradient": With("no way from the loss", crit=own(lambda p, y: p.detach().mean())),
    "of the labels only": With("no way from the loss", crit=own(lambda p, y: y.float().mean())),
    "a function of one": With("crit cannot be called", crit=lambda: lambda preds: preds.mean()),
    "a function of three": With("crit cannot be called", crit=lambda: lambda p, y, w: p.mean()),
    "that fails": With("loss cannot be computed", crit=own(lambda p, y: p @ y)),
}

# ---- optimizers, nets, devices -----------------------------------------------------------


def frozen():
    net = softmax()
    for p in net.parameters():
        p.requires_grad_(False)
    return net


class NoForward(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 3)

    def foward(self, x):
        return self.layer(x)


class Misspelt(NoForward):
    def forward(self, x):
        return self.layr(x)


class Two(NoForward):
    def forward(self, a, b):
        return self.layer(a + b)


class Detaches(NoForward):
    def forward(self, x):
        return self.layer(x).detach().log_softmax(1)


class GivesNumpy(NoForward):
    def forward(self, x):
        return self.layer(x).detach().numpy()


class GivesNothing(NoForward):
    def forward(self, x):
        self.layer(x)


NETS = {
    "a class": With("net is no nn.Module", net=lambda: linear(), opt=lambda net: SGD),
    "no forward": With("no forward", net=NoForward),
    "a misspelt layer": With("forward fails", net=Misspelt),
    "an input too many": With("another number of inputs", net=Two),
    "an input too few": With(
        "another number of inputs",
        lambda: ModelData(".", ArrayLoader(X, X, Y, bs=8)),
        net=softmax,
    ),
    "detached outputs": With("no way from the loss", net=Detaches),
    "numpy outputs": With("the net does not return a tensor", net=GivesNumpy),
    "no outputs": With("the net does not return a tensor", net=GivesNothing),
    "frozen": With("frozen|no way", net=frozen),
    "of another net": With(
        "optimizer of another net", opt=lambda net: optim.SGD(softmax().parameters(), lr=0.1)
    ),
    "Adam of another net": With(
        "optimizer of another net", opt=lambda net: optim.Adam(softmax().parameters())
    ),
    "an optimizer's class": With("opt is no optimizer", opt=lambda net: optim.SGD),
    "an optimizer's name": With("opt is no optimizer", opt=lambda net: "adam"),
    "no optimizer": With("opt is no optimizer", opt=lambda net: None),
    "parameters": With("opt is no optimizer", opt=lambda net: list(net.parameters())),
    "a scheduler": With(
        "opt is no optimizer",
        opt=lambda net: optim.lr_scheduler.StepLR(optim.SGD(net.parameters(), lr=1.0), 1),
    ),
    "LBFGS": With("closure", opt=lambda net: optim.LBFGS(net.parameters())),
    "half of it on the meta device": With(
        "one device", net=lambda: nn.Sequential(linear(6), softmax().to("meta"))
    ),
    "batches on another device": With(
        "one device",
        lambda: ModelData(".", [(torch.zeros(8, 6), torch.zeros(8, dtype=int))]),
        net=lambda: OnTwo(),
    ),
}
SGD = optim.SGD
NETS["a class"] = With("opt is no optimizer", net=softmax, opt=lambda net: SGD)


class OnTwo(NoForward):
    def forward(self, x):
        return self.layer(x.to("meta")).log_softmax(1)


# ---- epochs, batch size, and the other arguments -----------------------------------------


class NoCallback:
    def on_epoch_end(self, run): ...


TWICE = EarlyStopping()


def returns(value):
    def metric(preds, targs):
        return value

    return metric


def named(name):
    def metric(preds, targs):
        return 0.0

    metric.__name__ = name
    return metric


ARGUMENTS = {
    **{
        f"epochs is {value!r}": With("epochs cannot be", epochs=value)
        for value in (-1, 1.5, "3", True, np.float64(2), [1], float("nan"), float("inf"))
    },
    "epochs is None": With("epochs cannot be", epochs=None),
    **{
        f"bs is {value!r}": With(
            "bs cannot be",
            lambda v=value: ImageClassifierData.from_arrays(".", (X, Y), (X, Y), bs=v),
        )
        for value in (0, -1, 1.5, "64", None, True)
    },
    "checks is True": With("checks is none of its three", checks=True),
    "checks is a word": With("checks is none of its three", checks="yes"),
    "metrics is a function": With("metrics is no list", metrics=accuracy),
    "metrics is a name": With("metrics is no list", metrics="accuracy"),
    "metrics holds a name": With("metrics holds something else", metrics=["accuracy"]),
    "metrics holds a number": With("metrics holds something else", metrics=[1]),
    "metrics holds None": With("metrics holds something else", metrics=[None]),
    "metrics holds a class": With("metrics holds something else", metrics=[OwnLoss]),
    "a metric of one argument": With("the metric", metrics=[lambda preds: 0.0]),
    "a metric of three": With("the metric", metrics=[lambda a, b, c: 0.0]),
    "a metric that gives nothing": With("the metric.*NoneType", metrics=[returns(None)]),
    "a metric that gives a vector": With("the metric.*shape", metrics=[returns(torch.ones(8))]),
    "a metric that gives an array": With("the metric.*shape", metrics=[returns(np.ones(8))]),
    "a metric that gives a list": With("the metric.*list", metrics=[returns([1.0])]),
    "a metric that gives text": With("the metric.*str", metrics=[returns("good")]),
    "a metric that fails": With("the metric.*ZeroDivision", metrics=[lambda p, t: 1 / 0]),
    "a metric of numpy": With("the metric", metrics=[lambda p, t: np.argmax(p, dim=1)]),
    "a metric named epoch": With("a column of the table already", metrics=[named("epoch")]),
    "a metric named val_loss": With("a column of the table already", metrics=[named("val_loss")]),
    "a metric named trn_loss": With("a column of the table already", metrics=[named("trn_loss")]),
    "accuracy of a quantity": With(
        "the metric lambda",
        arrays(X, Q[:, None], continuous=True),
        lambda: nn.Sequential(linear(1), nn.Flatten(0), nn.Unflatten(0, (-1, 1))),
        nn.MSELoss,
        metrics=[lambda p, t: accuracy(p.squeeze(1), t)],
    ),
    "accuracy of one output": With(
        r"accuracy must have an output for each class.*accuracy_thresh\(0.0\)",
        arrays(X, B[:, None], continuous=True),
        lambda: linear(1),
        nn.BCEWithLogitsLoss,
        metrics=[accuracy],
    ),
    "f1 of three classes": With("f1 must have outputs for two classes", metrics=[f1]),
    "f1 of labels from 1": With(
        "f1 must have targets that are 0 or 1",
        lambda: ModelData(".", [(torch.ones(4, 6), torch.tensor([1, 2, 1, 2]))]),
        lambda: linear(2),
        own(lambda p, y: p.mean()),
        metrics=[f1],
    ),
    "no validation data to watch": With(
        "'val_loss' must be a column.*trn_loss",
        lambda: ModelData(".", ArrayLoader(X, Y)),
        callbacks=[EarlyStopping()],
    ),
    "no validation data to keep the best by": With(
        "'accuracy' must be a column.*trn_loss",
        lambda: ModelData(".", ArrayLoader(X, Y)),
        metrics=[accuracy],
        callbacks=[SaveBest("accuracy")],
    ),
    "a column that is not there": With(
        "'acc' must be a column.*trn_loss, val_loss, accuracy",
        metrics=[accuracy],
        callbacks=[EarlyStopping("acc")],
    ),
    "callbacks is a callback": With("callbacks is no list", callbacks=EarlyStopping()),
    "callbacks is a class": With("callbacks is no list", callbacks=EarlyStopping),
    "callbacks holds a class": With("callbacks holds something else", callbacks=[EarlyStopping]),
    "callbacks holds a function": With("callbacks holds something else", callbacks=[print]),
    "callbacks holds None": With("callbacks holds something else", callbacks=[None]),
    "callbacks holds a name": With("callbacks holds something else", callbacks=["ema"]),
    "callbacks holds no Callback": With("callbacks holds something", callbacks=[NoCallback()]),
    "the same callback twice": With("the same object twice", callbacks=[TWICE, TWICE]),
    "a stepper's class": With("stepper is no Stepper", stepper=Callback),
    "a stepper's name": With("stepper is no Stepper", stepper="fast"),
    "data is a loader": With("data has no trn_dl", lambda: ArrayLoader(X, Y)),
    "data is arrays": With("data has no trn_dl", lambda: (X, Y)),
    "data is None": With("data has no trn_dl", lambda: None),
    "data is a DataLoader": With(
        "data has no trn_dl", lambda: DataLoader(TensorDataset(torch.ones(4, 6)), 2)
    ),
    "arrays in place of pairs": With("pair", lambda: ImageClassifierData.from_arrays(".", X, Y)),
    "the training loader is None": With("trn_dl", lambda: ModelData(".", None)),
    "the training loader is an array": With("trn_dl", lambda: ModelData(".", X)),
    "the training loader is a number": With("trn_dl", lambda: ModelData(".", 3)),
    "batches of x alone": With("no input and target", lambda: ModelData(".", ArrayLoader(X))),
    "batches that are tensors": With(
        "no input and target", lambda: ModelData(".", DataLoader(torch.ones(8, 6), 4))
    ),
    "batches that are dicts": With(
        "no input and target.*a dict with x, y", lambda: ModelData(".", [{"x": X, "y": Y}])
    ),
    "batches of one": With("no input and target", lambda: ModelData(".", [(torch.ones(8, 6),)])),
    "batches that are text": With("no input and target", lambda: ModelData(".", ["xy"])),
    "batches that are numbers": With("no input and target", lambda: ModelData(".", [1, 2])),
    "a generator that is used up": With("no batch", lambda: ModelData(".", iter(()))),
    "an empty list": With("no batch", lambda: ModelData(".", [])),
}

PATHS = {
    "resume from nowhere": With("no checkpoint there", resume="nowhere/run.ckpt"),
    "resume from a folder": With("a folder", resume="."),
    "a checkpoint in no folder": With(
        "folder is not there", callbacks=[Checkpoint("nowhere/run.ckpt")]
    ),
    "a log in no folder": With("nowhere", callbacks=[CSVLogger("nowhere/log.csv")]),
    "resume from another file": With("no whole checkpoint", resume=__file__),
    "resume from a name with a nul": With("null|NUL|checkpoint", resume="a\0b"),
    "resume from a long name": With("too long|checkpoint", resume="a" * 5000),
}

CASES = {
    f"{family}: {name}": case
    for family, cases in (
        ("shapes", SHAPES),
        ("dtypes", DTYPES),
        ("losses", LOSSES),
        ("nets", NETS),
        ("arguments", ARGUMENTS),
        ("paths", PATHS),
    )
    for name, case in cases.items()
}
PAGE = Path(__file__).parents[1] / "docs" / "errors-and-fixes.md"
ANCHORS = set(re.findall(r"\{ #([a-z0-9-]+) \}", PAGE.read_text()))


@pytest.mark.parametrize("name", CASES)
@pytest.mark.filterwarnings("ignore:Using a target size", "ignore:.*LazyModule")
def test_a_mistake_is_answered_in_words(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    case = CASES[name]
    with pytest.raises(Exception, match=f"(?s){case.words}") as info:
        case()
    text = str(info.value)
    if not isinstance(info.value, OSError):
        assert all(part in text for part in ("\n  got:    ", "\n  wanted: ", "\n  fix:    ", "#"))
        assert len(text.splitlines()) == 5
        assert text.rpartition("#")[2] in ANCHORS
        assert "Traceback" not in text
    assert list(tmp_path.iterdir()) == []


def test_there_are_about_two_hundred():
    assert len(CASES) + len(OPTIONS) + len(SUSPICIOUS) >= 200


OPTIONS = {
    "Checkpoint every nothing": lambda: Checkpoint("x", every=0),
    "Checkpoint every word": lambda: Checkpoint("x", every="often"),
    "Checkpoint every half": lambda: Checkpoint("x", every=1.5),
    "Checkpoint keeps none": lambda: Checkpoint("x", keep=0),
    "TimeLimit of nothing": lambda: TimeLimit(0),
    "accumulation of none": lambda: GradAccumulation(0),
    "a mode of its own": lambda: EarlyStopping(mode="best"),
    "a column whose direction is not known": lambda: SaveBest("score"),
    "a column with words of both kinds": lambda: EarlyStopping("dice_loss"),
    "weights of float labels": lambda: class_weights([0.0, 1.0]),
    "weights of negative labels": lambda: class_weights([0, 1, -1]),
    "weights of one-hot labels": lambda: class_weights(np.eye(3, dtype=int)),
    "weights of more classes": lambda: class_weights([0, 1, 5], c=3),
    "weights of no labels": lambda: class_weights([-100, -100]),
    "weights of names": lambda: class_weights(np.array(["cat", "dog"])),
    "accuracy of one output": lambda: accuracy(torch.zeros(4, 1), torch.zeros(4, 1)),
    "validate with accuracy of one output": lambda: validate(
        linear(1), ArrayLoader(X, B[:, None]), nn.BCEWithLogitsLoss(), [accuracy]
    ),
    "another mode of its own": lambda: SaveBest(mode="up"),
    "a rate below 0": lambda: OneCycle(-1.0),
    "predict from an array": lambda: predict(softmax(), X),
    "predict from nothing": lambda: predict(softmax(), None),
    "predict by a class": lambda: predict(nn.Linear, ArrayLoader(X, Y)),
    "predict rows of another width": lambda: predict(softmax(), ArrayLoader(X[:, :5], Y)),
    "predict whole numbers": lambda: predict(softmax(), ArrayLoader((X * 9).astype(int), Y)),
    "predict images": lambda: predict(softmax(), ArrayLoader(IMAGES, Y)),
    "validate rows of another width": lambda: validate(
        softmax(), ArrayLoader(X[:, :5], Y), nn.NLLLoss()
    ),
    "validate labels out of range": lambda: validate(
        softmax(), ArrayLoader(X, Y + 7), nn.NLLLoss()
    ),
    "validate with an array": lambda: validate(softmax(), X, nn.NLLLoss()),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_so_is_one_elsewhere(name):
    with pytest.raises((TypeError, ValueError, RuntimeError, IndexError)) as info:
        OPTIONS[name]()
    text = str(info.value)
    assert all(part in text for part in ("\n  got:    ", "\n  wanted: ", "\n  fix:    ", "#"))


# ---- what is merely suspicious -----------------------------------------------------------

SUSPICIOUS = {
    "softmax before cross entropy": (
        "softmax is taken twice",
        With("", net=lambda: nn.Sequential(linear(), nn.Softmax(dim=1)), crit=nn.CrossEntropyLoss),
    ),
    "sigmoid before its loss": (
        "sigmoid is taken twice",
        With("", arrays(X, np.eye(3)[Y], continuous=True),
             lambda: nn.Sequential(linear(), nn.Sigmoid()), nn.BCEWithLogitsLoss),
    ),
    "labels that are all left out": (
        "every label of trn_dl's y", With("", arrays(X, np.full(40, -100)))
    ),
    "a sum": ("sums over the rows", With("", crit=lambda: nn.NLLLoss(reduction="sum"))),
    "a rate of 0": (
        "the learning rate is 0", With("", opt=lambda net: optim.SGD(net.parameters(), lr=0.0))
    ),
}  # fmt: skip


def run_anyway(case, **options):
    torch.manual_seed(0)
    net = case.net()
    opt = case.opt(net) if case.opt else optim.SGD(net.parameters(), lr=0.01)
    fit(net, case.data(), 2, case.crit(), opt, progress=False, **options)


@pytest.mark.parametrize("name", SUSPICIOUS)
def test_what_is_suspicious_warns_once_and_goes_on(name):
    words, case = SUSPICIOUS[name]
    with pytest.warns(UserWarning, match=words) as said:
        run_anyway(case)
    assert len(said) == 1 and "\n  fix:    " in str(said[0].message)
    run_anyway(case, checks="off")


@pytest.mark.parametrize(
    "name",
    ["losses: scores into NLLLoss", "shapes: quantities in a row, outputs in a column"],
)
@pytest.mark.filterwarnings("ignore:Using a target size")
def test_those_who_know_better_may_go_on(name):
    case = CASES[name]
    with pytest.warns(UserWarning, match=f"(?s){case.words}"):
        run_anyway(case, checks="warn")
    run_anyway(case, checks="off")


def test_what_is_right_is_not_complained_of():
    right = [
        With("", arrays(X, Q[:, None], continuous=True), lambda: linear(1), nn.MSELoss),
        With("", arrays(X, Y), linear, nn.CrossEntropyLoss),
        With("", arrays(X, Y), softmax, nn.CrossEntropyLoss),  # the same as of the scores
        With("", arrays(X, Y), softmax, lambda: F.nll_loss),
        With("", arrays(X, np.eye(3)[Y]), linear, nn.CrossEntropyLoss),
        With("", arrays(X, B[:, None], continuous=True), lambda: linear(1), nn.BCEWithLogitsLoss),
        With("", arrays(X, changed(Y, 5, -100)), linear, nn.CrossEntropyLoss),
        With("", arrays(X[:33], Y[:33]), softmax),
        With("", lambda: ModelData(".", iter([(torch.ones(4, 6), torch.zeros(4).long())])), linear,
             nn.CrossEntropyLoss),
    ]  # fmt: skip
    for case in right:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            torch.manual_seed(0)
            net = case.net()
            opt = optim.SGD(net.parameters(), lr=0.01)
            fit(net, case.data(), 1, case.crit(), opt, progress=False)


# ---- a loss that is no number ------------------------------------------------------------


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("batch", [0, 1, 5, 12, 17])
@pytest.mark.parametrize("where", ["x", "loss", "weight", "rate"])
def test_a_loss_that_is_no_number_ends_within_two_batches(where, batch, bad):
    class Poison(Callback):
        def on_batch_begin(self, run):
            if run.step != batch:
                return
            if where == "x":
                run.x = run.x * bad
            elif where == "weight":
                run.net[0].bias.data[0] = bad
            elif where == "rate":
                run.opt.param_groups[0]["lr"] = bad

        def on_backward_begin(self, run):
            if run.step == batch and where == "loss":
                run.net[0].weight.data[0, 0] = bad

    net = softmax()
    opt = optim.SGD(net.parameters(), lr=0.1)
    seen = Count()
    with pytest.raises(FloatingPointError, match=r"the loss is (nan|inf) at batch") as info:
        fit(net, arrays(X, Y)(), 5, nn.NLLLoss(), opt, callbacks=[Poison(), seen], progress=False)
    assert seen.steps - batch <= 2
    text = str(info.value)
    assert f"at batch {(seen.steps - 1) % 5} of epoch {(seen.steps - 1) // 5}" in text
    assert "lr " in text and "first bad parameter: 0." in text
    assert len(info.value.history) == (seen.steps - 1) // 5
    assert seen.ends == 1


class Count(Callback):
    steps = ends = 0

    def on_batch_end(self, run):
        self.steps += 1

    def on_train_end(self, run):
        self.ends += 1


def test_with_checks_off_a_loss_that_is_no_number_goes_on():
    net = softmax()
    opt = optim.SGD(net.parameters(), lr=float("inf"))
    history = fit(net, arrays(X, Y)(), 2, nn.NLLLoss(), opt, progress=False, checks="off")
    assert len(history) == 2
    with pytest.warns(UserWarning, match="the loss is") as said:
        fit(net, arrays(X, Y)(), 2, nn.NLLLoss(), opt, progress=False, checks="warn")
    assert len([w for w in said if "the loss is" in str(w.message)]) == 1


# ---- a last batch of one row -------------------------------------------------------------


def norm():
    return nn.Sequential(nn.BatchNorm1d(6), linear(), nn.LogSoftmax(dim=1))


class Rows(Callback):
    def __init__(self):
        self.rows, self.batches = [], set()

    def on_batch_begin(self, run):
        self.rows.append(len(run.x))
        self.batches.add(run.n_batches)


def train_on(net, rows):
    md = ImageClassifierData.from_arrays(".", (X[:rows], Y[:rows]), (X, Y), bs=8)
    seen = Rows()
    opt = optim.SGD(net.parameters(), lr=0.1)
    fit(net, md, 2, nn.NLLLoss(), opt, callbacks=[seen], progress=False)
    assert len(md.trn_dl) == -(-rows // 8)
    return seen


def test_a_lone_last_row_goes_with_the_batch_before_it_where_batchnorm_needs_it():
    seen = train_on(norm(), 33)
    assert seen.rows == [8, 8, 8, 9] * 2 and seen.batches == {4}
    assert train_on(softmax(), 33).rows == [8, 8, 8, 8, 1] * 2
    assert train_on(norm(), 34).rows == [8, 8, 8, 8, 2] * 2


def test_a_batchnorm_that_takes_one_row_gets_it():
    net = nn.Sequential(
        nn.Unflatten(1, (1, 6)), nn.BatchNorm1d(1), nn.Flatten(), linear(), nn.LogSoftmax(dim=1)
    )
    assert train_on(net, 33).rows == [8, 8, 8, 8, 1] * 2


# ---- files of weights --------------------------------------------------------------------


@pytest.mark.parametrize("name", ["net.pt", "net.safetensors"])
def test_weights_go_to_a_file_and_come_back(tmp_path, name):
    net, other = norm(), norm()
    save_weights(net, tmp_path / name)
    load_weights(other, tmp_path / name)
    pairs = zip(net.state_dict().values(), other.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_torch_reads_ours_and_we_read_torchs(tmp_path):
    net, other = norm(), norm()
    save_weights(net, tmp_path / "ours")
    assert torch.load(tmp_path / "ours").keys() == net.state_dict().keys()
    torch.save(net.state_dict(), tmp_path / "torchs")
    load_weights(other, tmp_path / "torchs")
    assert torch.equal(net[1].weight, other[1].weight)


def test_the_weights_alone_come_out_of_a_checkpoint(tmp_path):
    nets = []

    class Net(Callback):
        def on_train_begin(self, run):
            nets.append(run.net)

    example_fit([Checkpoint(tmp_path / "run"), Net()])
    other = example_net()
    load_weights(other, tmp_path / "run")
    assert all(map(torch.equal, other.state_dict().values(), nets[0].state_dict().values()))
    with pytest.raises(ValueError, match="is missing"):
        load_weights(linear(), tmp_path / "run")


@pytest.mark.parametrize("name", ["net.pt", "net.safetensors"])
def test_weights_of_another_net_are_told_and_nothing_is_loaded(tmp_path, name):
    save_weights(linear(5), tmp_path / name)
    net = linear()
    before = net.weight.clone()
    with pytest.raises(ValueError, match=r"weight is float32\(5, 6\), here float32\(3, 6\)"):
        load_weights(net, tmp_path / name)
    save_weights(softmax(), tmp_path / name)
    with pytest.raises(ValueError, match=r"weight is missing.*0.weight is too many"):
        load_weights(net, tmp_path / name)
    assert torch.equal(net.weight, before)
