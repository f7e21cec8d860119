"""Metrics against sklearn and 0.7's recorded numbers."""

import functools

import numpy as np
import pytest
import torch
from sklearn import metrics as sk
from torch import nn

from minifast import metrics as mf
from minifast import validate
from minifast.metrics import EpochMetric, WeightedMean, meter, metric_names

# fastai07 recorded these: accuracy .6, recall = precision = f1 = fbeta(2) = 2/3.
P = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.3, 0.7], [0.45, 0.55]])
T = torch.tensor([0, 1, 1, 0, 1])


def test_the_numbers_of_07():
    assert mf.accuracy(P, T).item() == 0.6
    assert mf.accuracy_np(P.numpy(), T.numpy()) == pytest.approx(0.6)
    for metric in mf.recall, mf.precision, mf.f1, functools.partial(mf.fbeta, beta=2):
        assert metric(P.log(), T).item() == pytest.approx(2 / 3)


@pytest.mark.parametrize("seed", range(20))
def test_against_sklearn(seed):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(2, 200))
    probs = rng.dirichlet([1, 1], n).astype(np.float32)
    targs = rng.integers(0, 2, n)
    targs[:2] = 0, 1
    preds, log_preds, t = probs.argmax(1), torch.from_numpy(probs).log(), torch.from_numpy(targs)
    assert mf.accuracy(log_preds, t).item() == sk.accuracy_score(targs, preds)
    expected = {
        mf.recall: sk.recall_score(targs, preds, zero_division=0),
        mf.precision: sk.precision_score(targs, preds, zero_division=0),
        mf.f1: sk.f1_score(targs, preds, zero_division=0),
        functools.partial(mf.fbeta, beta=2): sk.fbeta_score(targs, preds, beta=2, zero_division=0),
    }
    for metric, value in expected.items():
        assert metric(log_preds, t).item() == pytest.approx(value, abs=1e-6)


@pytest.mark.parametrize("seed", range(20))
def test_multi_label_against_sklearn(seed):
    rng = np.random.default_rng(seed)
    probs, targs = rng.random((40, 5)), rng.integers(0, 2, (40, 5))
    found = probs > 0.4
    assert mf.recall_np(probs, targs, 0.4) == pytest.approx(
        sk.recall_score(targs, found, average="micro")
    )
    assert mf.precision_np(probs, targs, 0.4) == pytest.approx(
        sk.precision_score(targs, found, average="micro")
    )
    assert mf.f1_np(probs, targs, 0.4) == pytest.approx(sk.f1_score(targs, found, average="micro"))
    assert mf.fbeta_np(probs, targs, 2, 0.4) == pytest.approx(
        sk.fbeta_score(targs, found, beta=2, average="micro")
    )
    same = 1 - sk.hamming_loss(targs, found)
    assert mf.accuracy_multi_np(probs, targs, 0.4) == pytest.approx(same)
    tensors = torch.from_numpy(probs), torch.from_numpy(targs)
    assert mf.accuracy_multi(*tensors, 0.4).item() == pytest.approx(same)
    assert mf.accuracy_thresh(0.4)(*tensors).item() == pytest.approx(same)


def test_a_threshold_is_one_on_the_probability_of_class_1():
    # 0.7 took the first column above the threshold, so that below 0.5 nothing was ever found.
    log_preds = torch.tensor([[0.6, 0.4]]).log()
    assert mf.recall(log_preds, torch.tensor([1]), thresh=0.3).item() == pytest.approx(1)


def test_where_there_is_nothing_to_share_the_share_is_0():
    none = torch.tensor([[0.9, 0.1]]).log(), torch.tensor([0])
    assert [f(*none).item() for f in (mf.recall, mf.precision, mf.f1)] == [0, 0, 0]


@pytest.mark.parametrize("beta", [0, -1])
def test_beta_must_be_above_0(beta):
    with pytest.raises(ValueError, match="beta must be above 0"):
        mf.fbeta(P.log(), T, beta)


@pytest.mark.parametrize("seed", range(20))
def test_means_over_uneven_batches_are_means_over_rows(seed):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 50, 7).tolist()
    preds, targs = torch.randn(sum(sizes), 4), torch.randint(0, 4, (sum(sizes),))
    for kind in WeightedMean, EpochMetric:
        found = kind(mf.accuracy)
        for p, t in zip(preds.split(sizes), targs.split(sizes), strict=True):
            found.update(p, t)
        expected = sk.accuracy_score(targs, preds.argmax(1))
        assert found.compute() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("value", [0.5, np.float32(0.5), torch.tensor(0.5), torch.tensor(1) / 2])
def test_a_metric_may_give_any_kind_of_number(value):
    mean = meter(lambda preds, targs: value)
    mean.update(P, T)
    assert mean.compute() == 0.5


@pytest.mark.parametrize("seed", range(5))
def test_torchmetrics_objects_work_as_they_are(seed):
    torchmetrics = pytest.importorskip("torchmetrics")
    torch.manual_seed(seed)
    log_preds, targs = torch.randn(57, 3).log_softmax(1), torch.randint(0, 3, (57,))
    targs[:3] = torch.arange(3)
    batches = list(zip(log_preds.split(5), targs.split(5), strict=True))
    area = torchmetrics.AUROC(task="multiclass", num_classes=3)
    share = torchmetrics.Accuracy(task="multiclass", num_classes=3, average="micro")
    for _ in range(2):  # reset in between
        found = validate(nn.Identity(), batches, nn.NLLLoss(), [area, share, mf.accuracy])
    probs = log_preds.double().softmax(dim=1)
    expected = sk.roc_auc_score(targs, probs, multi_class="ovr")
    assert found["MulticlassAUROC"] == pytest.approx(expected, abs=1e-6)
    assert found["MulticlassAccuracy"] == pytest.approx(found["accuracy"], abs=1e-6)


def test_names():
    def two(preds, targs): ...

    class Third:
        def __call__(self, preds, targs): ...

    found = metric_names([two, Third(), two, functools.partial(two, 3), lambda p, t: 0, two])
    assert found == ["two", "Third", "two_2", "two_3", "lambda", "two_4"]


@pytest.mark.parametrize("weights", [None, [0.2, 1.0, 3.0]])
@pytest.mark.parametrize("kind", [nn.CrossEntropyLoss, nn.NLLLoss])
def test_a_loss_over_classes_counts_what_it_divides_by(kind, weights):
    torch.manual_seed(0)
    preds, y = torch.randn(50, 3).log_softmax(1), torch.randint(0, 3, (50,))
    y[::7] = -100
    y[:4] = -100  # a batch in which no row counts
    crit = kind(weight=None if weights is None else torch.tensor(weights))
    mean = WeightedMean(crit)
    for part in torch.arange(50).split([4, 1, 20, 25]):
        mean.update(preds[part], y[part])
    assert mean.compute() == pytest.approx(float(crit(preds, y)), rel=1e-6)
    assert np.isnan(WeightedMean(crit).compute())


def uneven(n=100):
    torch.manual_seed(3)
    preds, y = torch.randn(n, 2), torch.randint(0, 2, (n,))
    return preds, y, list(zip(preds.split([1, 9, 20, 70]), y.split([1, 9, 20, 70]), strict=True))


@pytest.mark.parametrize(
    "metric",
    [functools.partial(mf.fbeta, beta=2), functools.partial(functools.partial(mf.fbeta), beta=2)],
)
def test_a_partial_of_a_metric_of_all_rows_is_called_once(metric):
    preds, y, batches = uneven()
    found = validate(nn.Identity(), batches, nn.CrossEntropyLoss(), [metric])["fbeta"]
    assert found == pytest.approx(sk.fbeta_score(y, preds.argmax(1), beta=2), abs=1e-6)


def test_metrics_of_probabilities_in_numpy_are_of_all_rows():
    preds, y, batches = uneven()
    batches = [(p[:, 1].sigmoid(), t) for p, t in batches]
    metrics = [mf.f1_np, mf.precision_np, mf.recall_np, functools.partial(mf.fbeta_np, beta=2)]
    found = validate(nn.Identity(), batches, lambda p, t: p.mean(), metrics)
    said = preds[:, 1].numpy() > 0
    assert found["f1_np"] == pytest.approx(sk.f1_score(y, said), abs=1e-6)
    assert found["precision_np"] == pytest.approx(sk.precision_score(y, said), abs=1e-6)
    assert found["recall_np"] == pytest.approx(sk.recall_score(y, said), abs=1e-6)
    assert found["fbeta_np"] == pytest.approx(sk.fbeta_score(y, said, beta=2), abs=1e-6)


@pytest.mark.parametrize(
    "metric",
    [lambda p, t: mf.f1(p, t), lambda p, t: mf.precision_np(p[:, 1].sigmoid(), t)],
)
def test_a_function_that_calls_a_metric_of_all_rows_must_be_marked_too(metric):
    preds, y, batches = uneven()
    with pytest.raises(ValueError, match="not a mean over batches"):
        validate(nn.Identity(), batches, nn.CrossEntropyLoss(), [metric])
    marked = mf.whole_epoch(metric)
    found = validate(nn.Identity(), batches, nn.CrossEntropyLoss(), [marked])["lambda"]
    assert found == pytest.approx(float(metric(preds, y)), abs=1e-6)


@pytest.mark.parametrize(
    "metric",
    [
        functools.partial(mf.accuracy),
        lambda p, t: mf.accuracy(p, t),
        lambda p, t: mf.accuracy(p, t).item(),
        mf.accuracy_np,
        lambda p, t: (p.argmax(1) == t)[t >= 0].float().mean(),
    ],
)
def test_accuracy_in_other_words_counts_labels_alike(metric):
    preds, y, batches = uneven()
    y[::3], y[:10] = -100, -100
    found = validate(nn.Identity(), batches, nn.CrossEntropyLoss(), [metric])
    kept = y >= 0
    wanted = sk.accuracy_score(y[kept], preds[kept].argmax(1))
    assert [*found.values()][1] == pytest.approx(wanted, abs=1e-6)
