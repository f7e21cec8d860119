"""validate and predict give what a loop over the loader gives, and touch nobody's data."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn, optim
from torch.utils.data import DataLoader, TensorDataset

from minifast import (
    ArrayLoader,
    ImageClassifierData,
    ModelData,
    Stepper,
    accuracy,
    fit,
    iter_predict,
    predict,
    predict_with_targs,
    to_np,
    validate,
)
from minifast.evaluation import rows_at_once
from minifast.metrics import whole_epoch
from minifast.plugins import Fast, MixedPrecision
from minifast.report import report

X, Y = torch.randn(203, 8), torch.randint(0, 4, (203,))


# ---- the loop over the loader --------------------------------------------------------------


def contrastive(preds: Tensor, y: Tensor) -> Tensor:
    """A loss that compares the rows of a batch with each other."""
    z = F.normalize(preds, dim=1)
    return F.cross_entropy(z @ z.T / 0.2, torch.arange(len(z)).flip(0))


class FixedBatch(nn.Module):
    """A net for batches of so many rows."""

    def __init__(self, bs: int) -> None:
        super().__init__()
        self.bs, self.linear = bs, nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear(x.view(self.bs, 8))
        return out


class OverTheBatch(nn.Module):
    """A net whose rows depend on each other."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear(x - x.mean(0))
        return out


NETS = {
    "dense": lambda: nn.Sequential(nn.Linear(8, 9), nn.BatchNorm1d(9), nn.ReLU(), nn.Linear(9, 4)),
    "batch statistics": lambda: nn.Sequential(
        nn.Linear(8, 9), nn.BatchNorm1d(9, track_running_stats=False), nn.Linear(9, 4)
    ),
    "over the batch": OverTheBatch,
    "over the batch, inside": lambda: nn.Sequential(OverTheBatch(), nn.ReLU(), nn.Linear(4, 4)),
    "softmax over rows": lambda: nn.Sequential(nn.Linear(8, 4), nn.Softmax(dim=0)),
    "flat": lambda: nn.Sequential(nn.Linear(8, 4), nn.Flatten(1), nn.LogSoftmax(dim=1)),
}
LOSSES = {
    "cross entropy": nn.CrossEntropyLoss(),
    "contrastive": contrastive,
    "sum": nn.CrossEntropyLoss(reduction="sum"),
    "own": lambda p, y: F.cross_entropy(p, y) + p.std(),
}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("kind", NETS)
@pytest.mark.parametrize("metrics", [[], [accuracy], [lambda p, y: p.std(0).mean()]])
def test_validate_is_the_loop_over_the_loader(kind, loss, metrics):  # type: ignore[no-untyped-def]
    net, crit = NETS[kind](), LOSSES[loss]
    dl = ArrayLoader(X, Y, bs=16, shuffle=True)
    found = validate(net, dl, crit, metrics)
    net.eval()
    with torch.no_grad():
        parts = [(net(x), y) for x, y in ArrayLoader(X, Y, bs=16)]
    for function, value in zip([crit, *metrics], found.values(), strict=True):
        each = [float(function(p, y)) for p, y in parts]
        right = np.average(each, weights=[len(y) for _, y in parts])
        assert value == pytest.approx(right, rel=1e-5)
    np.testing.assert_allclose(predict(net, dl), torch.cat([p for p, _ in parts]), atol=1e-6)


def test_a_net_for_batches_of_one_size_is_validated_and_predicts():
    net = FixedBatch(29)
    dl = ArrayLoader(X, Y, bs=29)
    history = fit(
        net,
        ModelData(".", dl, dl),
        1,
        nn.CrossEntropyLoss(),
        optim.SGD(net.parameters(), 0.1),
        progress=False,
    )
    assert np.isfinite(history[0]["val_loss"])
    torch.testing.assert_close(torch.from_numpy(predict(net, dl)), net.linear(X).detach())


class Sees(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rows: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.rows.append(len(x))
        return x.flatten(1)[:, :4]


def test_only_what_is_known_to_keep_rows_apart_takes_many_at_once():
    dl, plain = ArrayLoader(np.zeros((4500, 8)), np.zeros(4500)), Stepper()
    dense = NETS["dense"]()
    assert rows_at_once(dl, dense, plain, known=True) == 2000
    assert rows_at_once(dl, dense, Fast(), known=True) == 2000
    wide = nn.Sequential(nn.Linear(8, 2**16))
    assert rows_at_once(dl, wide, plain, known=True) == 64  # 16 MiB of float32
    transformed = ArrayLoader(np.zeros((4500, 8)), np.zeros(4500), tfm=lambda x: x)
    flat = ArrayLoader(np.zeros(4500), np.zeros(4500))
    subclass = type("Net", (nn.Sequential,), {})(nn.Linear(8, 4))
    conv = nn.Sequential(nn.Conv1d(1, 4, 3), nn.ReLU())
    hooked = NETS["dense"]()
    hooked[0].register_forward_hook(lambda *args: None)
    for loader, net, stepper in [
        (dl, subclass, plain),
        (dl, conv, plain),
        (dl, hooked, plain),
        (dl, dense, MixedPrecision()),
        (transformed, dense, plain),
        (flat, dense, plain),
        (dl, NETS["batch statistics"](), plain),
        (dl, NETS["softmax over rows"](), plain),
    ]:
        assert rows_at_once(loader, net, stepper, known=True) == 64
    assert rows_at_once(dl, dense, plain, known=False) == 64
    net = Sees()
    predict(net, ArrayLoader(np.zeros((200, 8)), np.zeros(200)))
    assert net.rows == [64, 64, 64, 8]


# ---- who writes ----------------------------------------------------------------------------


def test_a_metric_that_writes_changes_neither_data_nor_other_metrics():
    x, y = np.random.rand(300, 4).astype(np.float32), np.arange(300) % 3
    kept, net = (x.copy(), y.copy()), nn.Linear(4, 3)

    def writes(preds: Tensor, targs: Tensor) -> float:
        targs, preds = to_np(targs), to_np(preds)
        targs[targs == 2] = 1
        preds[:] = 0
        return float((preds.argmax(1) == targs).mean())

    def writes_by_torch(preds: Tensor, targs: Tensor) -> Tensor:
        preds.zero_(), targs.zero_()
        return (preds.argmax(1) == targs).float().mean()

    def share_of_2(preds: Tensor, targs: Tensor) -> Tensor:
        return (targs == 2).double().mean()

    md = ImageClassifierData.from_arrays(".", (x, y), (x, y), bs=64)
    for loader in (md.val_dl, [(torch.tensor(x), torch.tensor(y))]):
        metrics = [writes, writes_by_torch, share_of_2, accuracy]
        found = validate(net, loader, nn.CrossEntropyLoss(), metrics)
        assert found == validate(net, loader, nn.CrossEntropyLoss(), metrics)
        right = (predict(net, md.val_dl).argmax(1) == y).mean()
        assert found["accuracy"] == pytest.approx(right)
        assert found["share_of_2"] == pytest.approx(1 / 3)
    np.testing.assert_array_equal(md.val_y, kept[1])
    np.testing.assert_array_equal(x, kept[0])


def test_a_net_that_writes_by_numpy_changes_no_data():
    class Writes(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if len(x) < 60 or x[0, 0] > 0:  # not at the first batch
                x.numpy()[:] = 7
            return x

    x = np.random.randn(256, 3).astype(np.float32)
    kept = x.copy()
    predict(Writes(), ArrayLoader(x, np.zeros(256)))
    np.testing.assert_array_equal(x, kept)


class OneBuffer(nn.Module):
    """Writes each batch's output into the same tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 4)
        self.out = torch.zeros(64, 4)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.out[: len(x)] = self.linear(x)
        return self.out[: len(x)]


def test_a_net_may_reuse_its_output_buffer():
    net, dl = OneBuffer(), ArrayLoader(X, Y)
    right = net.linear(X).detach()
    torch.testing.assert_close(torch.from_numpy(predict(net, dl)), right)
    torch.testing.assert_close(torch.from_numpy(predict_with_targs(net, dl)[0]), right)
    torch.testing.assert_close(torch.from_numpy(np.concatenate(list(iter_predict(net, dl)))), right)
    all_rows = whole_epoch(lambda p, t: (p.argmax(1) == t).double().mean())
    found = validate(net, dl, nn.CrossEntropyLoss(), [all_rows])
    assert found["lambda"] == pytest.approx(float((right.argmax(1) == Y).double().mean()))


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_evaluation_works_in_the_contexts_that_people_use(context):  # type: ignore[no-untyped-def]
    net, dl = NETS["dense"](), ArrayLoader(X, Y)
    right = predict(net, dl), validate(net, dl, nn.CrossEntropyLoss(), [accuracy])
    with context():
        np.testing.assert_array_equal(predict(net, dl), right[0])
        assert validate(net, dl, nn.CrossEntropyLoss(), [accuracy]) == right[1]
        assert report(net, dl).accuracy == right[1]["accuracy"]


# ---- outputs and rows ----------------------------------------------------------------------


class Makes(nn.Module):
    """Returns what a function makes of the batch."""

    def __init__(self, function) -> None:  # type: ignore[no-untyped-def]
        super().__init__()
        self.function = function

    def forward(self, x: Tensor):  # type: ignore[no-untyped-def]
        return self.function(x)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.T,
        lambda x: x.mean(),
        lambda x: (x, x.T),
        lambda x: {"a": x, "loss": x.mean()},
        lambda x: x[:-1],
        lambda x: x[:, 0].reshape(1, -1),
    ],
)
def test_an_output_without_a_row_for_each_row_is_an_error(function):  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match="row for each row"):
        predict(Makes(function), ArrayLoader(X, Y))


def test_squeeze_and_a_single_last_row():
    dl = ArrayLoader(X[:65, :1], Y[:65])
    with pytest.raises(ValueError, match=r"squeeze\(-1\)"):
        predict(Makes(lambda x: x.squeeze()), dl)
    assert predict(Makes(lambda x: x.squeeze(-1)), dl).shape == (65,)


def test_a_list_with_an_entry_for_each_row():
    found = predict(
        Makes(lambda x: [row[: 1 + i % 3] for i, row in enumerate(x)]), ArrayLoader(X, Y)
    )
    assert found.shape == (203,) and found.dtype == object
    for i in (0, 1, 64, 202):
        np.testing.assert_array_equal(found[i], X[i, : 1 + (i % 64) % 3])
    boxes = predict(Makes(lambda x: [{"box": row} for row in x]), ArrayLoader(X, Y))
    assert len(boxes) == 203 and np.array_equal(boxes[100]["box"], X[100])


def test_several_targets_stay_several():
    batches = [(x, (y, y.double() * 2)) for x, y in zip(X.split(4), Y.split(4), strict=True)]
    _, (a, b) = predict_with_targs(nn.Identity(), batches)
    np.testing.assert_array_equal(a, Y)
    np.testing.assert_array_equal(b, Y * 2)
    ragged = [
        (X[:4], [torch.ones(k) for k in (1, 2, 3, 4)]),
        (X[4:6], [torch.ones(5), torch.ones(6)]),
    ]
    assert [len(t) for t in predict_with_targs(nn.Identity(), ragged)[1]] == [1, 2, 3, 4, 5, 6]


def test_outputs_that_cannot_be_joined():
    with pytest.raises(ValueError, match="iter_predict"):
        predict(Makes(lambda x: x[:, : len(x)]), [X[:3], X[3:8]])
    parts = list(iter_predict(Makes(lambda x: x[:, : len(x)]), [X[:3], X[3:8]]))
    assert [part.shape for part in parts] == [(3, 3), (5, 5)]


class Scaled(Stepper):
    """Predictions of another input than the loader's."""

    def forward(self, net, x):  # type: ignore[no-untyped-def]
        return super().forward(net, x * 10)


def test_what_a_stepper_does_holds_for_validate_predict_and_report():
    net, crit = nn.Linear(8, 4), nn.CrossEntropyLoss()
    md = ModelData(".", ArrayLoader(X, Y, bs=32), ArrayLoader(X, Y, bs=32))
    opt = optim.SGD(net.parameters(), lr=0.01)
    history = fit(net, md, 1, crit, opt, [accuracy], stepper=Scaled(), progress=False)
    found = validate(net, md.val_dl, crit, [accuracy], stepper=Scaled())
    assert found["val_loss"] == history[0]["val_loss"]
    right = net(X * 10).detach().numpy()
    np.testing.assert_allclose(
        predict(net, md.val_dl, stepper=Scaled()), right, rtol=1e-4, atol=1e-5
    )
    parts = iter_predict(net, md.val_dl, stepper=Scaled())
    np.testing.assert_allclose(np.concatenate(list(parts)), right, rtol=1e-4, atol=1e-5)
    assert report(net, md.val_dl, stepper=Scaled()).accuracy == pytest.approx(found["accuracy"])


@pytest.mark.parametrize("loader", ["shuffled", "generator", "in order"])
def test_the_report_shows_the_images_of_its_rows(loader):  # type: ignore[no-untyped-def]
    x = torch.rand(90, 16)
    y = torch.arange(90) % 3
    net = nn.Sequential(nn.Linear(16, 3))
    dls = {
        "shuffled": DataLoader(TensorDataset(x, y), 16, shuffle=True),
        "generator": ((x[i : i + 16], y[i : i + 16]) for i in range(0, 90, 16)),
        "in order": ArrayLoader(x, y, bs=16, shuffle=True),
    }
    found = report(net, dls[loader])
    assert found.images is not None and len(found.images) == len(found.worst) == 12
    for row, image in zip(found.worst, found.images, strict=True):
        scores = net(torch.from_numpy(image).reshape(1, 16)).softmax(1).detach()[0]
        assert float(scores[int(row["truth"])]) == pytest.approx(row["of_truth"], rel=1e-4)


def test_validation_of_a_convolution_takes_batches_as_training_does():
    class Counts(nn.Sequential):
        largest = 0

        def forward(self, x: Tensor) -> Tensor:
            Counts.largest = max(Counts.largest, len(x))
            return super().forward(x)

    for net in (
        Counts(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(4 * 26 * 26, 4)),
        nn.Sequential(Counts(nn.Conv2d(1, 4, 3), nn.Flatten()), nn.Linear(4 * 26 * 26, 4)),
    ):
        md = ImageClassifierData.from_arrays(
            ".", (torch.rand(70, 1, 28, 28), Y[:70]), (torch.rand(70, 1, 28, 28), Y[:70]), bs=32
        )
        opt = optim.SGD(net.parameters(), lr=0.01)
        fit(net, md, 1, nn.CrossEntropyLoss(), opt, [accuracy], progress=False)
        predict(net, md.val_dl)
        assert Counts.largest == 32


class Noisy(nn.Module):
    """A loss that draws dropout masks in training."""

    def __init__(self) -> None:
        super().__init__()
        self.dropout = nn.Dropout(0.5)

    def forward(self, preds: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(self.dropout(preds), y)


def test_a_loss_is_in_eval_mode_while_it_validates():
    net, crit, dl = nn.Linear(8, 4), Noisy(), ArrayLoader(X, Y, bs=32)
    right = pytest.approx(F.cross_entropy(net(X), Y).item(), rel=1e-6)
    assert validate(net, dl, crit)["val_loss"] == right
    assert validate(net, dl, lambda p, t: crit(p, t))["val_loss"] == right
    assert crit.training and crit.dropout.training
    opt = optim.SGD(net.parameters(), lr=0.0)
    drawn = fit(net, ModelData(".", dl, dl), 1, crit, opt, checks="off", progress=False)[0]
    assert drawn["val_loss"] == right and drawn["trn_loss"] != right
