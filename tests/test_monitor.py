"""Columns that are watched: the right direction, or a question; there, or an early error."""

import pickle

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sklearn.utils.class_weight import compute_class_weight
from torch import nn, optim
from torch.nn import functional as F  # noqa: N812

from minifast import ArrayLoader, Callback, ModelData, accuracy, fit
from minifast.metrics import metric_names
from minifast.plots import plot_history
from minifast.plugins import CSVLogger, EarlyStopping, GradientStats, SaveBest, class_weights
from minifast.plugins._monitor import NoColumnError, direction, monitored_value
from minifast.testing import example_fit

SMALLER = """
loss val_loss trn_loss my_loss MSELoss L1Loss nll_loss cross_entropy NLL mse MAE rmse mape
smape rmsle wer cer bce brier ece hamming hinge deviance fid kl KLDivergence huber quantile_0.9
crps l1 l2 distance error top5_error MeanSquaredError mean_absolute_error error_rate perplexity ppl
hamming_distance mape_2 val-loss CharErrorRate log_loss"""
LARGER = """
accuracy val_accuracy accuracy_2 accuracy_thresh_0.5 acc top5_accuracy f1 F1Score f1_np
macro_f1 BinaryF1Score fbeta precision recall_np auc AUROC MulticlassAUROC r2 R2Score r2_score iou
mIoU jaccard dice bleu psnr ssim kappa mcc average_precision mAP"""
UNKNOWN = """
score lambda metric Third time grad_norm lr x neg_mean_squared_error negative_log_loss
dice_loss accuracy_error 1-accuracy one_minus_accuracy accuracy_gap lossy floss accurate maps
terror"""


@pytest.mark.parametrize("name", SMALLER.split())
def test_names_of_what_falls(name):
    assert direction(name) == "min"


@pytest.mark.parametrize("name", LARGER.split())
def test_names_of_what_rises(name):
    assert direction(name) == "max"


@pytest.mark.parametrize("name", UNKNOWN.split())
@pytest.mark.parametrize("kind", [SaveBest, EarlyStopping])
def test_any_other_name_must_have_a_mode(kind, name):
    assert direction(name) is None
    with pytest.raises(ValueError, match=r"(?s)mode must be given: .*mode='min' \(or mode='max'\)"):
        kind(name)
    assert kind(name, mode="min").best.sign == -1
    assert kind(name, mode="max").best.sign == 1


@given(st.text(max_size=20))
@example("")
@example("größe_loss")
@settings(max_examples=50, deadline=None)
def test_every_text_is_answered(name):
    assert direction(name) in ("min", "max", None)


@pytest.mark.parametrize("name", [*SMALLER.split()[:20], *LARGER.split()[:20]])
def test_the_number_that_a_second_metric_of_the_name_gets_changes_nothing(name):
    def metric(preds, targs): ...

    metric.__name__ = name
    for column in metric_names([metric] * 3):
        assert direction(column) == direction(name)


class Quantities:
    """A regression that gets better in every epoch, by plain PyTorch."""

    def __init__(self):
        torch.manual_seed(0)
        self.x = torch.randn(200, 3)
        self.y = self.x.sum(1, keepdim=True) + 5
        self.net = nn.Linear(3, 1)

    def fit(self, metric, callbacks, epochs=6):
        dl = ArrayLoader(self.x, self.y, bs=20)
        opt = optim.SGD(self.net.parameters(), 0.02)
        md = ModelData(".", dl, dl)
        return fit(self.net, md, epochs, nn.MSELoss(), opt, [metric], callbacks, progress=False)


def mape(preds, targs):
    return ((preds - targs) / targs).abs().mean()


def test_the_best_epoch_of_an_error_is_the_one_of_the_smallest():
    task, keep = Quantities(), SaveBest("mape")
    history = task.fit(mape, [keep])
    assert keep.best.epoch == int(np.argmin(history["mape"])) == 5
    assert keep.best.value == min(history["mape"])
    history = Quantities().fit(mape, [EarlyStopping("mape", patience=2)])
    assert len(history) == 6 and history.stopped is None


def test_a_mode_overrules_the_name():
    task, keep = Quantities(), SaveBest("mape", mode="max")
    history = task.fit(mape, [keep])
    assert keep.best.epoch == int(np.argmax(history["mape"])) == 0


# ---- a column that is not there ----------------------------------------------------------


class Steps(Callback):
    n = 0

    def on_batch_end(self, run):
        self.n += 1


class Adds(Callback):
    """Validates by hand."""

    def on_epoch_end(self, run):
        run.values["val_loss"] = 1 / (1 + run.epoch)


def without_validation(callbacks, metrics=()):
    x = torch.randn(20, 4)
    md = ModelData(".", ArrayLoader(x, x.sum(1, keepdim=True), bs=5))
    net = nn.Linear(4, 1)
    opt = optim.SGD(net.parameters(), 0.01)
    return fit(net, md, 3, F.mse_loss, opt, metrics, callbacks, progress=False)


@pytest.mark.parametrize("kind", [SaveBest, EarlyStopping])
@pytest.mark.parametrize("monitor", ["val_loss", "l1_loss", "accuracy", "vall_loss"])
def test_a_column_that_will_not_be_there_is_told_before_the_first_step(kind, monitor, tmp_path):
    steps = Steps()
    callbacks = [steps, kind(monitor), CSVLogger(tmp_path / "log.csv")]
    with pytest.raises(KeyError, match="must be a column of the table") as info:
        without_validation(callbacks, [F.l1_loss])
    assert steps.n == 0
    text = str(info.value)
    assert len(text.splitlines()) == 5 and "\\n" not in text and text.startswith("monitor=")
    assert "columns epoch, trn_loss\n" in text and "monitor='trn_loss'" in text


def test_what_another_callback_may_add_is_waited_for():
    keep = SaveBest()
    history = without_validation([Adds(), keep])
    assert keep.best.epoch == 2 and history["val_loss"] == [1, 1 / 2, 1 / 3]
    history = without_validation([GradientStats(), SaveBest("grad_norm", mode="min")])
    assert len(history) == 3
    steps = Steps()
    with pytest.raises(KeyError, match="'vall_loss' must be a column"):
        without_validation([steps, Adds(), SaveBest("vall_loss")])
    assert steps.n == 4


def test_the_training_loss_can_be_watched_without_validation():
    keep = SaveBest("trn_loss")
    history = without_validation([keep])
    assert keep.best.epoch == int(np.argmin(history["trn_loss"]))


def test_a_misspelled_column_is_told_before_the_first_step_with_validation_too():
    steps = Steps()
    with pytest.raises(KeyError, match="trn_loss, val_loss, accuracy"):
        example_fit([steps, EarlyStopping("acc")])
    assert steps.n == 0


def test_the_number_of_a_column():
    row = {"epoch": 0, "val_loss": torch.tensor(0.5), "auc": np.float32(0.25), "text": "x"}
    row |= {"vector": torch.ones(2), "none": None, "list": [1.0]}
    assert monitored_value(row, "val_loss") == 0.5 and monitored_value(row, "auc") == 0.25
    for name in "text", "vector", "none", "list":
        with pytest.raises(TypeError, match=f"(?s)monitor='{name}' must name a column of numbers"):
            monitored_value(row, name)
    with pytest.raises(NoColumnError) as info:
        monitored_value(row, "accuracy")
    again = pickle.loads(pickle.dumps(info.value))
    assert isinstance(again, KeyError) and str(again) == str(info.value)


# ---- plots -------------------------------------------------------------------------------


def test_no_epoch_is_called_the_best_by_the_training_loss():
    trained = without_validation([])
    labels = [line.get_label() for ax in plot_history(trained).axes for line in ax.lines]
    assert not [label for label in labels if label.startswith("best")]
    figure = plot_history(example_fit([], epochs=3))
    assert [line.get_label() for line in figure.axes[0].lines if "best" in line.get_label()]


# ---- weights of classes ------------------------------------------------------------------


@given(st.integers(0, 2**32 - 1), st.sampled_from([-100, -1, 7]))
@settings(max_examples=30, deadline=None)
def test_class_weights_leave_out_ignored_labels(seed, ignored):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 4, 60)
    y[:4] = range(4)
    wanted = compute_class_weight("balanced", classes=np.arange(4), y=y)
    gaps = np.insert(y, rng.integers(0, 60, 9), ignored)
    for labels in gaps, gaps[:, None], torch.from_numpy(gaps), gaps.tolist():
        found = class_weights(labels, ignore_index=ignored)
        np.testing.assert_allclose(found, wanted, rtol=1e-6)
        # The mean weight of the rows that count is 1, as the loss divides by the sum of weights.
        crit = nn.CrossEntropyLoss(weight=found, ignore_index=ignored, reduction="sum")
        preds, t = torch.zeros(len(gaps), 4), torch.from_numpy(gaps)
        assert crit(preds, t).item() == pytest.approx(60 * np.log(4), rel=1e-5)


@pytest.mark.parametrize(
    ("y", "options", "words"),
    [
        ([0.0, 1.0], {}, "float64"),
        (torch.tensor([0.0, 1.0]), {}, r"astype\(np.int64\)"),
        ([0, 1, -1], {}, "labels from -1 to 1"),
        ([0, 1, -100], {"ignore_index": -1}, "labels from -100"),
        (np.eye(3, dtype=int), {}, r"y.argmax\(1\)"),
        (np.zeros((2, 3, 3), int), {}, r"y.ravel\(\)"),
        ([0, 1, 5], {"c": 3}, "labels from 0 to 5, c=3"),
        ([-100, -100], {}, "no label counts"),
        (np.array([], int), {}, "no label counts"),
        (np.array(["cat", "dog"]), {}, "<U3"),
    ],
)
def test_class_weights_of_anything_else_are_refused(y, options, words):
    with pytest.raises(ValueError, match=f"(?s)y must be a class for each row.*{words}"):
        class_weights(y, **options)


def test_weights_of_more_classes_than_have_rows():
    assert class_weights([0, 0, 2], c=4).tolist() == [0.75, 0, 1.5, 0]


def test_accuracy_of_the_example_is_watched_upwards():
    stop = EarlyStopping("accuracy")
    example_fit([stop], epochs=2)
    assert stop.best.sign == 1 and accuracy.__name__ == "accuracy"
