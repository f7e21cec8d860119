"""The contract under random and odd use: F13 to F19 of the list."""

import gc
import os
import random
import resource
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn import metrics as sklearn
from torch import nn, optim

from minifast import ArrayLoader, Callback, ImageClassifierData, ModelData, accuracy, fit, predict
from minifast.callback import EVENTS
from minifast.metrics import f1, precision, recall, whole_epoch
from minifast.plugins import GradAccumulation, lr_find
from minifast.testing import example_data, example_fit, example_net

from .conftest import sizes


class OwnError(Exception):
    pass


def recorder(log, name, events, stop=None, fail=None):
    """A callback that writes down what it hears, and stops or fails at one of it."""

    def handler(event):
        def on(self, run):
            log.append((name, event))
            if (event, len(log)) == stop or event == stop:
                run.stop(f"{name} at {event}")
            if fail and event == fail[0]:
                raise fail[1]

        return on

    return type("Recorder", (Callback,), {event: handler(event) for event in events})()


@pytest.mark.parametrize("error", [OwnError("x"), ValueError("y"), KeyError("z"), AssertionError()])
@pytest.mark.parametrize("event", EVENTS)
def test_an_error_anywhere_is_the_callers_and_everybody_ends(event, error):
    log = []
    first, second = recorder(log, "first", EVENTS), recorder(log, "second", EVENTS)
    failing = recorder([], "failing", EVENTS, fail=(event, error))
    with pytest.raises(type(error)) as info:
        example_fit([first, failing, second])
    assert info.value is error
    assert any(f"Recorder.{event}" in note for note in error.__notes__)
    del error.__notes__
    begun = {name for name, heard in log if heard == "on_train_begin"}
    ends = [name for name, heard in log if heard == "on_train_end"]
    assert sorted(ends) == sorted(begun)
    assert "first" in ends


@sizes(100, 1000)
def test_random_lists_are_called_in_their_order_and_nobody_is_skipped(size):
    rng = random.Random(0)
    for _ in range(size):
        log, heard = [], {}
        callbacks = []
        for i in range(rng.randint(1, 6)):
            heard[i] = set(rng.sample(EVENTS, rng.randint(0, len(EVENTS))))
            callbacks.append(recorder(log, i, heard[i], stop=rng.choice([None] * 9 + [*EVENTS])))
        history = example_fit(callbacks, epochs=2)
        # Each time an event is fired all who hear it do, in order: so the log falls into runs.
        at = 0
        while at < len(log):
            event = log[at][1]
            names = [name for name in range(len(callbacks)) if event in heard[name]]
            assert log[at : at + len(names)] == [(name, event) for name in names]
            at += len(names)
        ends = [name for name, event in log if event == "on_train_end"]
        assert ends == [name for name in heard if "on_train_end" in heard[name]]
        assert history.stopped is not None or len(history) == 2


@pytest.mark.parametrize("seed", range(20))
def test_lr_find_leaves_a_later_fit_as_it_would_have_been(seed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    results = []
    for finds in False, True:
        torch.manual_seed(seed)
        net, md = example_net(), example_data(seed=seed)
        opt = optim.Adam(net.parameters()) if seed % 2 else optim.SGD(net.parameters(), 0.1, 0.9)
        if finds:
            lr_find(net, md, nn.NLLLoss(), opt, steps=30)
        fit(net, md, 1, nn.NLLLoss(), opt, progress=False)
        results.append({k: t.clone() for k, t in net.state_dict().items()})
    assert all(torch.equal(t, results[1][k]) for k, t in results[0].items())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("batches", [2, 3, 4, 5, 7, 100])
@pytest.mark.parametrize("rows", [64, 61, 33, 8, 5])
def test_accumulated_gradients_are_those_of_the_large_batch(batches, rows):
    rng = np.random.default_rng(rows)
    x, y = rng.normal(size=(rows, 6)).astype(np.float32), rng.integers(0, 3, rows)
    weights = []
    for bs, callbacks in (8, [GradAccumulation(batches)]), (8 * batches, []):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3), nn.LogSoftmax(dim=1))
        opt = optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        md = ModelData(".", ArrayLoader(x, y, bs=bs))
        fit(net, md, 3, nn.NLLLoss(), opt, callbacks=callbacks, progress=False)
        weights.append([p.detach() for p in net.parameters()])
    for a, b in zip(*weights, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=0)


class Fixed(nn.Module):
    """Predicts what its input says; a parameter keeps the optimizer quiet."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return x * self.scale


def average_precision(preds, targs):
    return sklearn.average_precision_score(targs.numpy(), preds[:, 1].exp().numpy())


def auc(preds, targs):
    return sklearn.roc_auc_score(targs.numpy(), preds[:, 1].exp().numpy())


@sizes(150, 1000)
def test_metrics_over_uneven_batches_are_sklearns(size):
    rng = np.random.default_rng(0)
    wholes = [f1, precision, recall, whole_epoch(auc), whole_epoch(average_precision)]
    for _ in range(size):
        rows = int(rng.integers(5, 90))
        y = np.r_[0, 1, rng.integers(0, 2, rows - 2)]
        preds = torch.log_softmax(torch.from_numpy(rng.normal(size=(rows, 2))).float(), 1)
        md = ImageClassifierData.from_arrays(
            ".", (preds, y), (preds, y), bs=int(rng.integers(1, rows + 9))
        )
        net = Fixed()
        opt = optim.SGD(net.parameters(), lr=1e-30)
        row = fit(net, md, 1, nn.NLLLoss(), opt, [accuracy, *wholes], progress=False)[-1]
        p = preds.double().exp().numpy()
        guess = p[:, 1] > 0.5
        wanted = {
            "accuracy": sklearn.accuracy_score(y, preds.numpy().argmax(1)),
            "f1": sklearn.f1_score(y, guess, zero_division=0),
            "precision": sklearn.precision_score(y, guess, zero_division=0),
            "recall": sklearn.recall_score(y, guess, zero_division=0),
            "auc": sklearn.roc_auc_score(y, p[:, 1]),
            "average_precision": sklearn.average_precision_score(y, p[:, 1]),
            "val_loss": sklearn.log_loss(y, p / p.sum(1, keepdims=True), labels=[0, 1]),
        }
        for name, value in wanted.items():
            assert row[name] == pytest.approx(value, abs=1e-6), name


class Several(nn.Module):
    """Takes inputs of several kinds and gives the row's number back."""

    def forward(self, *xs, **named):
        first = (*xs, *named.values())[0]
        return first.reshape(len(first), -1)[:, :1] * 1.0


@sizes(200, 1000)
def test_row_i_of_the_prediction_is_row_i(size):
    rng = np.random.default_rng(0)
    for _ in range(size):
        rows, bs = int(rng.integers(1, 300)), int(rng.integers(1, 320))
        x = np.arange(rows, dtype=np.float32)[:, None] + np.zeros((1, int(rng.integers(1, 4))))
        kind = rng.integers(4)
        if kind == 0:
            dl = ArrayLoader(x, np.zeros(rows), bs=bs, shuffle=bool(rng.integers(2)))
        elif kind == 1:
            dl = ArrayLoader(x, x, np.zeros(rows), bs=bs, shuffle=bool(rng.integers(2)))
        else:
            parts = torch.from_numpy(x).split(bs)
            dl = [({"x": p} if kind == 3 else p, p[:, 0]) for p in parts]
        found = predict(Several(), dl)
        assert found.shape == (rows, 1) and (found[:, 0] == np.arange(rows)).all()


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts open files by /proc")
@sizes(1000, 10_000)
def test_many_fits_in_a_process_leave_it_as_it_was(size):
    def once():
        example_fit([])
        predict(example_net(), example_data().val_dl)

    for _ in range(300):  # until torch and Python have what they keep
        once()
    gc.collect()
    before = living()
    for _ in range(size):
        once()
    gc.collect()
    tensors, files, memory = (b - a for a, b in zip(before, living(), strict=True))
    assert tensors == 0 and files == 0
    assert memory / size < 1024, f"{memory / size:.0f} bytes a fit"


def living():
    """Tensors, open files, and the most bytes that were in memory so far."""
    tensors = sum(issubclass(type(o), torch.Tensor) for o in gc.get_objects())
    files = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    return tensors, files, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
