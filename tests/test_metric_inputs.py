"""Metrics of every shape and kind of input, against scikit-learn and NumPy: right, or refused."""

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk
from torch import nn, optim
from torch.nn import functional as F  # noqa: N812

from minifast import ArrayLoader, Callback, ImageClassifierData, ModelData, fit, predict, validate
from minifast import metrics as mf
from minifast.core import to_np
from minifast.metrics import whole_epoch
from minifast.plots import plot_calibration, plot_predictions, plot_top_losses
from minifast.report import report

seeds = st.integers(0, 2**32 - 1)
quickly = settings(max_examples=25, deadline=None)


def random_classes(seed, largest=6):
    """Scores `(n, c)` and classes `(n,)`, of one row and of as many rows as classes too."""
    rng = np.random.default_rng(seed)
    c = int(rng.integers(2, largest))
    n = int(rng.choice([1, 2, c, c + 1, 17]))
    scores = rng.normal(size=(n, c))
    return rng, scores, rng.integers(0, c, n)


# ---- accuracy ----------------------------------------------------------------------------


@quickly
@given(seeds)
def test_accuracy_of_labels_in_every_form_is_sklearns(seed):
    _rng, scores, y = random_classes(seed)
    wanted = sk.accuracy_score(y, scores.argmax(1))
    c = scores.shape[1]
    one_hot = np.eye(c)[y]
    soft = 0.7 * one_hot + 0.3 / c
    forms = [y, y[:, None], y.astype(np.float32), y[:, None].astype(np.float32), one_hot, soft]
    forms += [one_hot.astype(int), one_hot.astype(bool), one_hot.astype(np.float32)]
    for targs in forms:
        found = mf.accuracy(torch.from_numpy(scores), torch.from_numpy(targs))
        assert found.shape == () and found.item() == wanted
        assert mf.accuracy_np(scores, targs) == wanted
    assert mf.accuracy_np(scores.tolist(), y.tolist()) == wanted


@quickly
@given(seeds)
def test_accuracy_of_a_class_for_each_pixel(seed):
    rng, scores, _ = random_classes(seed)
    n, c = scores.shape
    scores, y = rng.normal(size=(n, c, 3, 2)), rng.integers(0, c, (n, 3, 2))
    wanted = sk.accuracy_score(y.ravel(), scores.argmax(1).ravel())
    one_hot = np.moveaxis(np.eye(c)[y], -1, 1)
    for targs in y, y[:, None], one_hot:
        assert mf.accuracy(torch.from_numpy(scores), torch.from_numpy(targs)).item() == wanted
        assert mf.accuracy_np(scores, targs) == wanted


def test_accuracy_of_a_single_row_without_an_axis_for_the_rows():
    scores = torch.tensor([0.1, 0.7, 0.2])
    assert [mf.accuracy(scores, torch.tensor(k)).item() for k in range(3)] == [0, 1, 0]


def test_accuracy_of_two_classes_as_booleans():
    scores = torch.tensor([[0.2, 0.8], [0.9, 0.1], [0.4, 0.6]])
    assert mf.accuracy(scores, torch.tensor([True, True, False])).item() == pytest.approx(1 / 3)


@quickly
@given(seeds, st.sampled_from([-100, -1, 255]))
def test_accuracy_leaves_out_labels_that_are_not_classes(seed, ignored):
    rng, scores, y = random_classes(seed)
    y = np.where(rng.random(len(y)) < 0.4, ignored, y)
    kept = y != ignored
    wanted = sk.accuracy_score(y[kept], scores[kept].argmax(1)) if kept.any() else float("nan")
    preds, targs = torch.from_numpy(scores), torch.from_numpy(y)
    assert mf.accuracy(preds, targs).item() == pytest.approx(wanted, nan_ok=True)
    assert mf.accuracy_np(scores, y) == pytest.approx(wanted, nan_ok=True)
    assert mf.accuracy.divisor(preds, targs).item() == kept.sum()


def test_values_weighted_by_their_divisors_are_the_accuracy_of_all_rows():
    torch.manual_seed(0)
    preds, y = torch.randn(50, 3), torch.randint(0, 3, (50,))
    y[::3] = -100
    y[:4] = -100  # a batch in which no row counts
    total = n = 0
    for p, t in zip(preds.split([4, 1, 20, 25]), y.split([4, 1, 20, 25]), strict=True):
        count = mf.accuracy.divisor(p, t).item()
        total += mf.accuracy(p, t).item() * count if count else 0
        n += count
    kept = y >= 0
    assert total / n == pytest.approx(sk.accuracy_score(y[kept], preds[kept].argmax(1)))


X3, Y3 = torch.randn(8, 3), torch.arange(8) % 3
NO_ACCURACY = {
    "one output, in a row": (torch.randn(8), torch.ones(8), "accuracy_thresh.0.0"),
    "one output, in a column": (torch.randn(8, 1), torch.ones(8, 1), "accuracy_thresh.0.5"),
    "one output, integers": (torch.randn(8, 1), Y3, "an output for each class"),
    "one output, a single row": (torch.randn(1, 1), Y3[:1], "an output for each class"),
    "one output for each pixel": (torch.randn(2, 1, 3, 3), torch.ones(2, 1, 3, 3), "an output"),
    "one number": (torch.tensor(0.5), torch.tensor(1), "an output for each class"),
    "several classes a row": (X3, torch.tensor([[1, 1, 0]] * 8), "accuracy_multi"),
    "a row without a class": (X3, torch.zeros(8, 3), "do not sum to 1"),
    "quantities, as many as outputs": (X3, torch.randn(8, 3), "do not sum to 1"),
    "quantities": (X3, torch.rand(8) + 0.1, "not integers"),
    "another number of rows": (X3, Y3[:7], "of these shapes"),
    "one label": (X3, Y3[:1], "of these shapes"),
    "a label for each output": (X3[:1], Y3[:3], "of these shapes"),
    "rows and columns changed": (X3, Y3[None], "of these shapes"),
    "another number of classes": (X3, torch.eye(4)[Y3], "of these shapes"),
    "the classes on the last axis": (torch.randn(2, 5, 3), torch.zeros(2, 5).long(), "movedim"),
}


@pytest.mark.parametrize("name", NO_ACCURACY)
def test_accuracy_of_anything_else_is_refused(name):
    preds, targs, words = NO_ACCURACY[name]
    for metric, p, t in (
        (mf.accuracy, preds, targs),
        (mf.accuracy_np, preds.numpy(), targs.numpy()),
    ):
        with pytest.raises(ValueError, match=f"(?s){words}") as info:
            metric(p, t)
        assert len(str(info.value).splitlines()) == 5
        assert str(info.value).endswith("errors-and-fixes#metric-inputs")
    with pytest.raises(TypeError, match="must have one tensor as preds"):
        mf.accuracy((preds, preds), targs)


# ---- several classes a row, or one output ------------------------------------------------


@quickly
@given(seeds, st.floats(-1, 1))
def test_accuracy_multi_is_one_minus_sklearns_hamming_loss(seed, thresh):
    rng = np.random.default_rng(seed)
    n, c = rng.integers(1, 9, 2)
    scores, y = rng.normal(size=(n, c)), rng.integers(0, 2, (n, c))
    wanted = float(((scores > thresh) == y).mean())
    if c > 1 and n > 1:
        assert wanted == pytest.approx(1 - sk.hamming_loss(y, scores > thresh))
    for targs in y, y.astype(bool), y.astype(np.float32):
        assert mf.accuracy_multi_np(scores, targs, thresh) == pytest.approx(wanted)
        tensors = torch.from_numpy(scores), torch.from_numpy(targs)
        assert mf.accuracy_multi(*tensors, thresh).item() == pytest.approx(wanted)
        assert mf.accuracy_thresh(thresh)(*tensors).item() == pytest.approx(wanted)


@quickly
@given(seeds)
def test_a_column_and_a_row_are_the_same_labels(seed):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 9))
    p, y = rng.random(n), rng.integers(0, 2, n)
    accuracy, f1 = sk.accuracy_score(y, p > 0.5), sk.f1_score(y, p > 0.5, zero_division=0)
    recall = sk.recall_score(y, p > 0.5, zero_division=0)
    precision = sk.precision_score(y, p > 0.5, zero_division=0)
    fbeta = sk.fbeta_score(y, p > 0.5, beta=2, zero_division=0)
    for preds, targs in (p, y), (p[:, None], y), (p, y[:, None]), (p[:, None], y[:, None]):
        assert mf.accuracy_multi_np(preds, targs, 0.5) == pytest.approx(accuracy)
        tensors = torch.from_numpy(preds), torch.from_numpy(targs)
        assert mf.accuracy_multi(*tensors, 0.5).item() == pytest.approx(accuracy)
        assert mf.f1_np(preds, targs) == pytest.approx(f1, abs=1e-6)
        assert mf.fbeta_np(preds, targs, 2) == pytest.approx(fbeta, abs=1e-6)
        assert mf.recall_np(preds, targs) == pytest.approx(recall, abs=1e-6)
        assert mf.precision_np(preds, targs) == pytest.approx(precision, abs=1e-6)


OF_ENTRIES = {
    "accuracy_multi": lambda p, t: mf.accuracy_multi(torch.tensor(p), torch.tensor(t), 0.5),
    "accuracy_thresh": lambda p, t: mf.accuracy_thresh(0.5)(torch.tensor(p), torch.tensor(t)),
    "accuracy_multi_np": lambda p, t: mf.accuracy_multi_np(p, t, 0.5),
    "recall_np": mf.recall_np,
    "precision_np": mf.precision_np,
    "f1_np": mf.f1_np,
    "fbeta_np": lambda p, t: mf.fbeta_np(p, t, 2),
}


@pytest.mark.parametrize("name", OF_ENTRIES)
def test_entries_that_do_not_belong_together_are_refused(name):
    metric, p, y = OF_ENTRIES[name], np.random.rand(4, 3), np.eye(4, 3, dtype=int)
    shapes = [(p, y[:1]), (p, y[:, :1]), (p, y[:, 0]), (p[:, 0], y), (p[:3], y[:3, 0]), (p, y.T)]
    for preds, targs in [*shapes, (p[:1], y[0])]:
        with pytest.raises(ValueError, match="of these shapes"):
            metric(preds, targs)
    for targs in -y, y * 2, y * -100, y * 0.9, y + 0.05, np.where(y, np.nan, 0):
        with pytest.raises(ValueError, match="targets that are 0 or 1"):
            metric(p, targs)


@pytest.mark.parametrize("metric", [mf.recall_np, mf.precision_np, mf.f1_np])
def test_scores_are_not_compared_with_a_threshold_on_probabilities(metric):
    y, scores = np.array([0, 1, 1, 0]), np.array([-2.0, 0.3, -0.1, 0.2])
    p = 1 / (1 + np.exp(-scores))
    for preds in scores, np.log(p):
        with pytest.raises(ValueError, match=r"must have probabilities for thresh=0\.5"):
            metric(preds, y)
    assert metric(scores, y, thresh=0.0) == metric(p, y)


# ---- f1, precision, recall of two classes ------------------------------------------------


@settings(max_examples=8, deadline=None)
@given(seeds, st.sampled_from([1, 100]))
def test_f1_of_scores_probabilities_and_their_logarithms_is_sklearns(seed, scale):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 60))
    scores = torch.from_numpy(scale * rng.normal(size=(n, 2))).float()
    y = rng.integers(0, 2, n)
    guess = scores.argmax(1).numpy()
    wanted = {
        mf.recall: sk.recall_score(y, guess, zero_division=0),
        mf.precision: sk.precision_score(y, guess, zero_division=0),
        mf.f1: sk.f1_score(y, guess, zero_division=0),
        lambda p, t: mf.fbeta(p, t, 2): sk.fbeta_score(y, guess, beta=2, zero_division=0),
    }
    one_hot = np.eye(2)[y]
    for metric, value in wanted.items():
        for preds in scores, scores.log_softmax(1), scores.softmax(1), scores.double():
            for targs in y, y[:, None], y.astype(bool), y.astype(np.float32), one_hot:
                found = metric(preds, torch.from_numpy(targs))
                assert found.item() == pytest.approx(value, abs=1e-6)


@quickly
@given(seeds, st.floats(0.05, 0.95))
def test_a_threshold_is_one_on_the_softmax_whatever_the_net_ends_in(seed, thresh):
    rng = np.random.default_rng(seed)
    scores, y = torch.from_numpy(rng.normal(size=(40, 2))), rng.integers(0, 2, 40)
    guess = (scores.softmax(1)[:, 1] > thresh).numpy()
    wanted = sk.f1_score(y, guess, zero_division=0)
    for preds in scores, scores + 5, scores.log_softmax(1), scores.softmax(1):
        assert mf.f1(preds, torch.from_numpy(y), thresh).item() == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("shift", [0.3, -0.3, 0.01, -0.01])
def test_scores_close_to_log_probabilities_are_scores(shift):
    p = torch.linspace(0.35, 0.65, 300, dtype=torch.float64)
    log_preds, y = torch.stack([1 - p, p], 1).log(), torch.arange(300) % 2
    wanted = sk.f1_score(y, (p > 0.5).int())
    assert mf.f1(log_preds + shift, y).item() == pytest.approx(wanted, abs=1e-6)


def test_the_value_of_true_log_probabilities_is_that_of_07():
    torch.manual_seed(0)
    for dtype in torch.float32, torch.float64:
        log_preds = torch.randn(2000, 2, dtype=dtype).log_softmax(1)
        y = torch.randint(0, 2, (2000,))
        found = log_preds[:, 1].exp() > 0.5
        recall = (found & (y > 0)).sum() / ((y > 0).sum() + 1e-8)
        assert torch.equal(mf.recall(log_preds, y), recall)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_told_apart_too(dtype):
    torch.manual_seed(0)
    scores, y = torch.randn(300, 2), torch.randint(0, 2, (300,))
    clear = (scores[:, 0] - scores[:, 1]).abs() > 0.05
    scores, y = scores[clear].to(dtype), y[clear]
    wanted = sk.f1_score(y, scores.float().argmax(1))
    for preds in scores, scores.log_softmax(1), scores.softmax(1):
        assert mf.f1(preds, y).item() == pytest.approx(wanted, abs=1e-6)


OF_TWO = {
    "recall": mf.recall,
    "precision": mf.precision,
    "f1": mf.f1,
    "fbeta": lambda p, t: mf.fbeta(p, t, 2),
}


@pytest.mark.parametrize("name", OF_TWO)
def test_f1_of_anything_but_two_classes_is_refused(name):
    metric, two = OF_TWO[name], torch.randn(8, 2)
    y = Y3 % 2
    with pytest.raises(ValueError, match=r'(?s)two classes.*@whole_epoch.*average="macro"'):
        metric(torch.randn(8, 3), Y3)
    for one in torch.randn(8), torch.randn(8, 1):
        with pytest.raises(ValueError, match=r"(?s)two classes.*_np\(to_np\(preds.sigmoid\(\)\)"):
            metric(one, y)
    for labels in y + 1, -y, torch.where(y > 0, -100, 0), Y3:
        with pytest.raises(ValueError, match="targets that are 0 or 1"):
            metric(two, labels)
    for labels in y[:7], y[:1], torch.zeros(8, 3), torch.ones(8, 2):
        with pytest.raises(ValueError, match=r"of these shapes|do not sum to 1"):
            metric(two, labels)
    with pytest.raises(ValueError, match="not integers"):
        metric(two, torch.rand(8) + 0.1)


def test_nan_predictions_find_nothing():
    preds = torch.full((4, 2), float("nan"))
    assert [f(preds, torch.tensor([0, 1, 0, 1])).item() for f in (mf.recall, mf.f1)] == [0, 0]


# ---- the matrix, the report and the plots -------------------------------------------------


@quickly
@given(seeds)
def test_the_matrix_of_labels_in_every_form_is_sklearns(seed):
    _rng, scores, y = random_classes(seed)
    c, said = scores.shape[1], scores.argmax(1)
    wanted = sk.confusion_matrix(y, said, labels=range(c))
    for targs in y, y[:, None], y.astype(float), y.astype(np.uint8), torch.from_numpy(y):
        np.testing.assert_array_equal(mf.confusion_matrix(scores, targs), wanted)
        of_classes = mf.confusion_matrix(said[:, None], targs)
        np.testing.assert_array_equal(of_classes, wanted[: len(of_classes), : len(of_classes)])
        assert of_classes.sum() == len(y)


NO_LABELS = {
    "negative": (Y3 - 1, "classes from -1 to 1"),
    "ignored": (torch.where(Y3 > 1, -100, Y3), "classes from -100"),
    "quantities": (torch.rand(8) + 0.1, "type float32"),
    "one-hot": (torch.eye(3)[Y3], r"shape \(8, 3\)"),
    "too few": (Y3[:1], "1 labels for 8 rows"),
}


@pytest.mark.parametrize("name", NO_LABELS)
@pytest.mark.parametrize(
    "function",
    [
        mf.confusion_matrix,
        plot_calibration,
        lambda p, t: plot_top_losses(np.zeros((8, 4, 4)), p, t),
        lambda p, t: report(nn.Identity(), [(p, t)]),
    ],
    ids=["confusion_matrix", "plot_calibration", "plot_top_losses", "report"],
)
def test_what_is_not_a_class_is_refused_by_all_who_count_classes(function, name):
    labels, words = NO_LABELS[name]
    text = f"(?s)the class of each row.*{words}|does not have a row for each row of the batch"
    with pytest.raises(ValueError, match=text):
        function(X3, labels)


def test_a_negative_label_is_not_the_last_class_of_a_plot():
    with pytest.raises(ValueError, match="classes from -1"):
        plot_predictions(np.zeros((8, 4, 4)), X3, Y3 - 1)
    with pytest.raises(ValueError, match="classes from 0 to 3 for 3 outputs"):
        plot_top_losses(np.zeros((8, 4, 4)), X3, torch.arange(8) % 4)


def test_classes_are_not_taken_for_scores_of_one_output():
    with pytest.raises(ValueError, match="classes from 0 to 2 for 2 outputs"):
        mf.confusion_matrix([0.0, 2.0, 1.0], [0, 2, 1])
    with pytest.raises(ValueError, match="a net's output"):
        mf.probabilities([0, 2, 1])
    np.testing.assert_array_equal(mf.probabilities([0, 1]), [[1, 0], [0, 1]])


def test_a_report_on_a_net_of_one_output_with_its_float_labels():
    scores = torch.tensor([[-2.0], [3.0], [-1.0], [0.5]])
    found = report(nn.Identity(), [(scores, torch.tensor([[0.0], [1.0], [1.0], [1.0]]))])
    assert found.accuracy == 0.75
    np.testing.assert_array_equal(found.matrix, [[1, 0], [1, 2]])


# ---- in a fit ----------------------------------------------------------------------------


class Steps(Callback):
    n = 0

    def on_batch_end(self, run):
        self.n += 1


def fitted(metrics, y, outputs, crit, n=64, **options):
    """A fit of a linear net on rows of 4 numbers; returns net, data, history and steps."""
    torch.manual_seed(0)
    x = torch.randn(n, 4)
    y = y(x)
    dl = ArrayLoader(x, y, bs=16)
    net, steps = nn.Linear(4, outputs), Steps()
    opt = optim.Adam(net.parameters(), 0.05)
    try:
        data = ModelData(".", dl, dl)
        history = fit(net, data, 2, crit, opt, metrics, [steps], progress=False, **options)
    except Exception as error:
        error.steps = steps.n
        raise
    return net, dl, history, y


def binary(x):
    return (x.sum(1) + 0.6 > 0).long()


def column(x):
    return binary(x)[:, None].float()


def test_accuracy_of_one_output_is_refused_before_the_first_step():
    with pytest.raises(ValueError, match="an output for each class") as info:
        fitted([mf.accuracy], column, 1, nn.BCEWithLogitsLoss())
    assert info.value.steps == 0
    net, dl, history, y = fitted([mf.accuracy_thresh(0.0)], column, 1, nn.BCEWithLogitsLoss())
    wanted = sk.accuracy_score(y, predict(net, dl) > 0)
    assert history[-1]["accuracy_thresh_0"] == pytest.approx(wanted)


def test_labels_in_a_column_beside_two_outputs():
    def crit(preds, y):
        return F.cross_entropy(preds, y[:, 0])

    net, dl, history, y = fitted([mf.accuracy], lambda x: binary(x)[:, None], 2, crit)
    wanted = sk.accuracy_score(y, predict(net, dl).argmax(1))
    assert history[-1]["accuracy"] == pytest.approx(wanted)


def test_one_hot_labels_in_batches_of_as_many_rows_as_classes():
    torch.manual_seed(0)
    x, y = torch.randn(30, 4), torch.arange(30) % 3
    net, targs = nn.Linear(4, 3), F.one_hot(y).float()
    found = validate(
        net,
        list(zip(x.split(3), targs.split(3), strict=True)),
        nn.CrossEntropyLoss(),
        [mf.accuracy],
    )
    assert found["accuracy"] == pytest.approx(sk.accuracy_score(y, net(x).argmax(1)))


def test_f1_with_cross_entropy_is_sklearns():
    metrics = [mf.f1, mf.precision, mf.recall]
    net, dl, history, y = fitted(metrics, binary, 2, nn.CrossEntropyLoss())
    guess = predict(net, dl).argmax(1)
    for name in "f1", "precision", "recall":
        wanted = getattr(sk, f"{name}_score")(y, guess)
        assert history[-1][name] == pytest.approx(wanted, abs=1e-6)


def test_the_fix_that_the_message_names_works():
    @whole_epoch
    def f1(preds, targs):
        return sk.f1_score(targs, preds.argmax(1), average="macro")

    @whole_epoch
    def f1_of_one(preds, targs):
        return mf.f1_np(to_np(preds.sigmoid()), to_np(targs))

    def three(x):
        return x[:, :3].argmax(1)

    net, dl, history, y = fitted([f1], three, 3, nn.CrossEntropyLoss())
    assert history[-1]["f1"] == sk.f1_score(y, predict(net, dl).argmax(1), average="macro")
    net, dl, history, y = fitted([f1_of_one], column, 1, nn.BCEWithLogitsLoss())
    wanted = sk.f1_score(y, predict(net, dl) > 0)
    assert history[-1]["f1_of_one"] == pytest.approx(wanted, abs=1e-6)


def three_classes(x):
    return x[:, :3].argmax(1)


def misspelled(preds, targs):
    return preds.argmx(1)


def unknown_name(preds, targs):
    return accuracy_scores(targs, preds)  # noqa: F821


def one_argument(preds):
    return 0.0


def no_value(preds, targs):
    preds.mean()


def a_text(preds, targs):
    return "0.5"


def a_vector(preds, targs):
    return preds.mean(0)


def a_dict(preds, targs):
    return {"f1": 0.5}


@pytest.mark.parametrize(
    ("metric", "words"),
    [
        (mf.f1, "two classes"),
        (lambda preds, targs: mf.f1(preds, targs), "the metric lambda: f1 must have"),
        (misspelled, "argmx"),
        (unknown_name, "accuracy_scores"),
        (one_argument, "one_argument"),
        (no_value, "NoneType"),
        (a_text, "str"),
        (a_vector, r"shape \(3,\)"),
        (a_dict, "dict"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_mistake_in_a_whole_epochs_metric_is_found_on_the_first_batch(metric, words):
    with pytest.raises((TypeError, ValueError), match=f"(?s){words}") as info:
        fitted([whole_epoch(metric)], three_classes, 3, nn.CrossEntropyLoss())
    assert info.value.steps == 0
    assert len(str(info.value).splitlines()) == 5


def test_a_whole_epochs_metric_may_want_more_rows_than_a_batch():
    rows = []

    @whole_epoch
    def wants_all(preds, targs):
        rows.append(len(preds))
        if len(preds) < 64:
            raise ValueError("more rows, please")
        return 0.5

    @whole_epoch
    def area(preds, targs):  # warns of a batch of one class
        if len(preds) < 64:
            warnings.warn("only one class present", stacklevel=2)
        return torch.tensor([0.25])

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, _, history, _ = fitted([wants_all, area], binary, 2, nn.CrossEntropyLoss())
    assert rows == [32, 64, 64]  # two batches of 16, tried before the first step
    assert history["wants_all"] == [0.5] * 2 and history["area"] == [0.25] * 2


class Kept:
    """A metric that is an object: not tried, as it would keep the batch."""

    def __init__(self):
        self.n = 0

    def reset(self):
        self.n = 0

    def update(self, preds, targs):
        self.n += len(preds)

    def compute(self):
        return self.n


def test_objects_are_not_tried():
    _, _, history, _ = fitted([Kept()], binary, 2, nn.CrossEntropyLoss())
    assert history["Kept"] == [64, 64]


def writes(preds, targs):
    """A metric that writes into what it is given, with PyTorch and with NumPy."""
    preds.zero_()
    targs.fill_(1)
    to_np(preds)[:] = 7
    torch.rand(3)
    np.random.rand(3)
    return 0.5


@pytest.mark.parametrize("kind", [lambda f: f, whole_epoch], ids=["rows", "whole epoch"])
@pytest.mark.parametrize("end", ["scores", "log_softmax"])
def test_a_metric_that_writes_changes_nothing_in_the_training(kind, end):
    def trained(metrics):
        torch.manual_seed(0)
        np.random.seed(0)
        x = torch.randn(40, 4)
        y = x[:, :3].argmax(1)
        md = ImageClassifierData.from_arrays(".", (x, y), None, bs=8)
        net = nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.2))
        crit = nn.CrossEntropyLoss()
        if end == "log_softmax":
            net.append(nn.LogSoftmax(1))
            crit = nn.NLLLoss()
        seen = []

        class Look(Callback):
            def on_backward_begin(self, run):
                seen.append((run.preds.detach().clone(), run.y.clone()))

        opt = optim.SGD(net.parameters(), 0.1)
        fit(net, md, 2, crit, opt, metrics, [Look()], progress=False)
        return [net[0].weight, *(t for pair in seen for t in pair), torch.rand(2)]

    def metric(preds, targs):
        return writes(preds, targs)

    plain, written = trained([]), trained([kind(metric)])
    assert all(map(torch.equal, plain, written))
