"""Programs that plain PyTorch runs: `fit` runs them too, to the same bits and without a warning."""

import copy
import math
import random
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn, optim
from torch.nn import functional as F  # noqa: N812
from torch.utils.data import DataLoader, RandomSampler, SubsetRandomSampler, TensorDataset

from minifast import (
    ArrayLoader,
    Callback,
    ModelData,
    accuracy,
    fit,
    load_weights,
    predict,
    save_weights,
    validate,
)
from minifast.checkpoint import snapshot
from minifast.history import RunningLoss
from minifast.model import iter_predict, predict_with_targs
from minifast.plugins import (
    Checkpoint,
    GradAccumulation,
    GradClip,
    LossRecorder,
    MixedPrecision,
    TerminateOnNaN,
    lr_find,
)
from minifast.report import report
from minifast.stepper import Stepper
from minifast.torch_losses import torch_loss

torch.manual_seed(0)
X = torch.randn(24, 6)
Y = torch.arange(24) % 3
Q = torch.randn(24, 2)
FLAGS = (Q > 0).float()


def changed(t, rows, value):
    t = t.clone()
    t[rows] = value
    return t


def linear(n=3):
    return nn.Linear(6, n)


def log_softmax(n=3):
    return nn.Sequential(nn.Linear(6, n), nn.LogSoftmax(dim=1))


def zeros(n):
    net = nn.Linear(6, n)
    nn.init.zeros_(net.weight)
    nn.init.constant_(net.bias, 1 / 3)
    return net


class Fills(nn.Module):
    """A net that takes gaps in its input."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(12, 3)

    def forward(self, x):
        return self.layer(torch.cat([x.nan_to_num(0), x.isnan().float()], dim=1))


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.out = nn.Linear(8, 3)

    def forward(self, x, mask):
        return self.out(self.attention(x, x, x, key_padding_mask=mask)[0][:, 0])


class Sparse(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 3)

    def forward(self, x):
        return torch.sparse.mm(x, self.layer.weight.T) + self.layer.bias


class Graph(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 3)

    def forward(self, x, adjacency):
        return self.layer(adjacency @ x)


class ToSparse(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 2)

    def forward(self, x):
        return self.layer(x).relu().to_sparse()


class Ragged(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 3)

    def forward(self, x):
        return torch.stack([self.layer(rows).mean(0) for rows in x.unbind()])


def masked_mse(preds, y):
    there = y.isfinite()
    return ((preds - y)[there] ** 2).mean()


def masked_bce(preds, y):
    return F.binary_cross_entropy_with_logits(preds[y >= 0], y[y >= 0])


def cut(*arrays):
    return [tuple(a[i : i + 8] for a in arrays) for i in range(0, 24, 8)]


def gaussian(preds, y):
    """A negative log-likelihood of a quantity: mean and logarithm of the variance."""
    return (preds[:, 1] + (preds[:, 0] - y) ** 2 / preds[:, 1].exp()).mean()


def own_function(name):
    def crit(preds, y):
        return gaussian(preds, y)

    crit.__name__ = name
    return crit


def own_module(name):
    return type(name, (nn.Module,), {"forward": lambda self, p, y: gaussian(p, y)})()


class OwnNLL(nn.NLLLoss):
    def forward(self, preds, y):
        return gaussian(preds, y)


class Column(nn.CrossEntropyLoss):
    def forward(self, preds, y):
        return super().forward(preds, y.long().squeeze(1))


NAMES = ["nll_loss", "NLLLoss", "mse_loss", "l1_loss", "cross_entropy", "CrossEntropyLoss",
         "multi_margin_loss", "binary_cross_entropy_with_logits", "BCEWithLogitsLoss"]  # fmt: skip
HALVES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
NONE = torch.full((24,), -100)
PIXELS = torch.randint(0, 3, (24, 5, 5))
IMAGES = torch.randn(24, 1, 5, 5)
MASK = changed(torch.zeros(24, 5), (slice(None), slice(3, 5)), -math.inf)
COMPLEX = torch.randn(24, 6, dtype=torch.complex64)
TOKENS = torch.randint(0, 10, (24, 3))

# The net, the batches, the loss.
PROGRAMS = {
    "ignored 255": (linear, cut(X, changed(Y, 3, 255)), nn.CrossEntropyLoss(ignore_index=255)),
    "ignored 255, partial": (
        linear, cut(X, changed(Y, 3, 255)), partial(F.cross_entropy, ignore_index=255)
    ),
    "padding is the number of classes": (
        log_softmax, cut(X, changed(Y, 3, 3)), nn.NLLLoss(ignore_index=3)
    ),
    "ignored pixels": (
        lambda: nn.Conv2d(1, 3, 1),
        cut(IMAGES, changed(PIXELS, (slice(None), 0), 255)),
        nn.CrossEntropyLoss(ignore_index=255),
    ),
    "sequences of one label": (
        lambda: nn.Sequential(nn.Linear(6, 3), nn.Unflatten(1, (3, 1))),
        cut(X, Y[:, None]),
        nn.CrossEntropyLoss(),
    ),
    "margins": (linear, cut(X, Y), nn.MultiMarginLoss()),
    **{f"own function {n}": (partial(linear, 2), cut(X, Q[:, 0]), own_function(n)) for n in NAMES},
    **{f"own module {n}": (partial(linear, 2), cut(X, Q[:, 0]), own_module(n)) for n in NAMES},
    "subclass of NLLLoss": (partial(linear, 2), cut(X, Q[:, 0]), OwnNLL()),
    "subclass of CrossEntropyLoss": (linear, cut(X, Y.float()[:, None]), Column()),
    "missing targets": (partial(linear, 2), cut(X, changed(Q, (slice(0, 24, 3), 0), math.nan)),
                        masked_mse),
    "gaps in x": (Fills, cut(changed(X, (slice(0, 24, 4), 1), math.nan), Y), nn.CrossEntropyLoss()),
    "a mask that is added": (Attention, cut(torch.randn(24, 5, 8), MASK, Y), nn.CrossEntropyLoss()),
    **{
        f"{n} log-probabilities in {d}": (
            lambda n=n, d=d: log_softmax(n).to(HALVES[d]), cut((5 * X).to(HALVES[d]), Y),
            nn.NLLLoss(),
        )
        for n in (3, 1000, 30_000)
        for d in HALVES
    },
    **{
        f"batch {i} all ignored, {name}": (
            linear, cut(X, changed(Y, slice(8 * i, 8 * i + 8), -100)), crit
        )
        for i in range(3)
        for name, crit in {
            "module": nn.CrossEntropyLoss(),
            "function": F.cross_entropy,
            "partial": partial(F.cross_entropy, ignore_index=-100),
            "own": lambda p, y: F.cross_entropy(p, y),
            "smoothed": nn.CrossEntropyLoss(label_smoothing=0.1),
        }.items()
    },
    "a batch without targets": (
        partial(linear, 2), cut(X, changed(Q, slice(8, 16), math.nan)), masked_mse
    ),
    "a batch without flags": (
        partial(linear, 2), cut(X, changed(FLAGS, slice(8, 16), -1)), masked_bce
    ),
    "sparse rows": (Sparse, [(X[:8].relu().to_sparse(), Y[:8])] * 2, nn.CrossEntropyLoss()),
    "sparse input": (Graph, [(X[:8], torch.eye(8).to_sparse(), Y[:8])] * 2, nn.CrossEntropyLoss()),
    "sparse targets": (
        partial(linear, 2), [(X[:8], Q[:8].relu().to_sparse())] * 2,
        lambda p, y: F.mse_loss(p, y.to_dense()),
    ),
    "sparse predictions": (
        ToSparse, cut(X, Q), lambda p, y: F.mse_loss(p.to_dense(), y)
    ),
    "nested rows": (
        Ragged,
        [(torch.nested.nested_tensor([X[:2], X[:3], X[:5]], layout=torch.jagged), Y[:3])] * 2,
        nn.CrossEntropyLoss(),
    ),
    "complex": (
        lambda: nn.Linear(6, 2, dtype=torch.complex64), cut(COMPLEX, COMPLEX[:, :2]),
        lambda p, y: ((p - y).abs() ** 2).mean(),
    ),
    "a last layer begun at 0, flags": (partial(zeros, 2), cut(X, FLAGS), nn.BCEWithLogitsLoss()),
    "a last layer begun at 0, classes": (partial(zeros, 3), cut(X, Y), nn.CrossEntropyLoss()),
    "uint8 labels": (linear, cut(X, Y.to(torch.uint8)), nn.CrossEntropyLoss()),
    "a lazy net": (lambda: nn.Sequential(nn.LazyLinear(4), nn.LazyBatchNorm1d(), nn.LazyLinear(3)),
                   cut(X, Y), nn.CrossEntropyLoss()),
}  # fmt: skip
QUIET = pytest.mark.filterwarnings("ignore:Lazy modules", "ignore:.*nested tensors")


def plain_fit(net, batches, crit, opt, epochs=2):
    for _ in range(epochs):
        net.train()
        for *xs, y in batches:
            loss = crit(net(*xs), y)
            opt.zero_grad()
            loss.backward()
            opt.step()


def trained(make, *args):
    torch.manual_seed(1)
    net = make()
    opt = optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    return net, opt, *args


def same(one, other):
    states = one.state_dict(), other.state_dict()
    return all(map(torch.equal, *(state.values() for state in states)))


@QUIET
@pytest.mark.parametrize("name", PROGRAMS)
def test_a_valid_program_trains_as_a_plain_loop(name):
    make, batches, crit = PROGRAMS[name]
    net, opt = trained(make)
    history = fit(net, ModelData(".", batches, batches), 2, crit, opt, progress=False)
    other, opt = trained(make)
    plain_fit(other, batches, crit, opt)
    assert same(net, other) and all(p.isfinite().all() for p in net.parameters())
    assert all(math.isfinite(n) for row in history for n in row.values())


OTHER_IN_ARRAYS = {"float16", "bfloat16", "uint8"}  # they become float32, and int64
ARRAYS = [name for name, (_, batches, _) in PROGRAMS.items()
          if len(batches) == 3 and not OTHER_IN_ARRAYS & {*name.split()}]  # fmt: skip


@QUIET
@pytest.mark.parametrize("name", ARRAYS)
def test_so_it_does_from_arrays(name):
    make, batches, crit = PROGRAMS[name]
    arrays = [torch.cat(parts) for parts in zip(*batches, strict=True)]
    loader = ArrayLoader(*arrays, bs=8)
    net, opt = trained(make)
    fit(net, ModelData(".", loader, loader), 2, crit, opt, progress=False)
    other, opt = trained(make)
    plain_fit(other, batches, crit, opt)
    assert same(net, other)


def test_what_a_loss_is_counts_not_its_name():
    assert torch_loss(nn.NLLLoss()) is torch_loss(F.nll_loss) is F.nll_loss
    assert torch_loss(partial(F.mse_loss, reduction="sum")) is F.mse_loss

    class Same(nn.MSELoss): ...

    assert torch_loss(Same()) is F.mse_loss
    for name in NAMES:
        assert torch_loss(own_function(name)) is torch_loss(own_module(name)) is None
    changed = nn.NLLLoss()
    changed.forward = gaussian
    assert torch_loss(OwnNLL()) is torch_loss(changed) is None


def test_log_probabilities_of_mixed_precision():
    net, opt = trained(partial(log_softmax, 1000))
    fit(net, ModelData(".", cut(X, Y)), 1, nn.NLLLoss(), opt, stepper=MixedPrecision(),
        progress=False)  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scores_are_still_refused_where_log_probabilities_are_wanted(dtype):
    net, opt = trained(lambda: linear(1000).to(dtype))
    with pytest.raises(ValueError, match=r'log-probabilities(?s:.*)fit\(..., checks="warn"\)'):
        fit(net, ModelData(".", cut(X.to(dtype), Y)), 1, nn.NLLLoss(), opt, progress=False)


# ---- numbers that are nan ----------------------------------------------------------------


def half(preds, y):
    """A loss that is finite, with gradients that are nan."""
    return torch.where(y.isnan(), 0.0, (preds - y) ** 2).mean()


@pytest.mark.parametrize(
    "crit, problem",
    [(nn.MSELoss(), "y has numbers .* the loss is nan"), (half, "gradient of weight is nan")],
)
def test_nan_that_would_reach_the_weights_is_refused_before_they_change(crit, problem):
    net, opt = trained(partial(linear, 2))
    before = copy.deepcopy(net)
    md = ModelData(".", cut(X, changed(Q, (3, 0), math.nan)))
    with pytest.raises(ValueError, match=f'{problem}(?s:.*)row 3(?s:.*)checks="warn"'):
        fit(net, md, 1, crit, opt, progress=False)
    assert same(net, before)
    then = "the loss is nan at batch"
    with pytest.warns(UserWarning, match=problem), pytest.warns(UserWarning, match=then):
        fit(net, md, 1, crit, opt, progress=False, checks="warn")


@pytest.mark.parametrize("name, x, q", [
    ("x", changed(X, (12, 1), math.inf), Q), ("y", X, changed(Q, (12, 1), math.nan)),
])  # fmt: skip
def test_a_loss_that_becomes_nan_by_the_data_says_so(name, x, q):
    net, opt = trained(partial(linear, 2))
    says = rf"at batch 1 of epoch 0(?s:.*); {name} is not finite in row 4"
    with pytest.raises(FloatingPointError, match=says):
        fit(net, ModelData(".", cut(x, q)), 1, nn.MSELoss(), opt, progress=False)


def test_a_loss_that_divides_by_0_itself_is_an_error():
    def crit(preds, y):
        mask = (y >= 0).float()
        return (F.mse_loss(preds, y, reduction="none") * mask).sum() / mask.sum()

    net, opt = trained(partial(linear, 2))
    md = ModelData(".", cut(X, changed(FLAGS, slice(8, 16), -1)))
    with pytest.raises(FloatingPointError, match=r"the loss is nan(?s:.*)clamp"):
        fit(net, md, 1, crit, opt, progress=False)
    assert not net.weight.isfinite().all()  # as a plain loop's would be


def test_a_loss_that_is_nan_is_an_error_though_rows_count_and_no_gradient_is():
    def crit(preds, y):
        return masked_mse(preds, y) + 0 * y.sum()

    net, opt = trained(partial(linear, 2))
    md = ModelData(".", cut(X, changed(Q, (12, 0), math.nan)))
    with pytest.raises(FloatingPointError, match=r'batch 1 of(?s:.*)row 4(?s:.*)checks="warn"'):
        fit(net, md, 1, crit, opt, progress=False)
    assert net.weight.isfinite().all()


# ---- batches in which nothing counts -----------------------------------------------------


def smoothed(losses):
    """fastai's smoothed loss, as a closed form."""
    n = len(losses)
    weights = 0.98 ** np.arange(n - 1, -1, -1.0)
    return float((weights * losses).sum() / weights.sum())


def test_the_smoothed_loss_leaves_out_batches_that_count_nothing():
    batches = cut(X, changed(Y, slice(8, 16), -100))
    recorder = LossRecorder()
    net, opt = trained(linear)
    crit = nn.CrossEntropyLoss()
    losses = []

    class Losses(Callback):
        def on_batch_end(self, run):
            losses.append(run.loss.item())

    history = fit(net, ModelData(".", batches), 2, crit, opt, callbacks=[recorder, Losses()],
                  progress=False)  # fmt: skip
    assert [math.isnan(loss) for loss in losses] == [False, True, False] * 2
    counted = [np.array([n for n in losses[: 3 * e] if n == n]) for e in (1, 2)]
    assert history["trn_loss"] == pytest.approx([smoothed(each) for each in counted])


def test_training_whose_labels_are_all_ignored_shows_nan():
    net, opt = trained(linear)
    before = copy.deepcopy(net)
    history = fit(net, ModelData(".", cut(X, NONE)), 1, F.cross_entropy, opt, progress=False)
    assert math.isnan(history[0]["trn_loss"]) and same(net, before)
    with pytest.warns(UserWarning, match="every label of trn_dl's y is -100"):
        fit(net, ModelData(".", ArrayLoader(X, NONE)), 1, F.cross_entropy, opt, progress=False)


@pytest.mark.parametrize("ignored", [[0], [1], [2], [0, 1], [2, 3]])
def test_accumulated_batches_that_count_nothing_add_nothing(ignored):
    """The step of two batches is that of one with the rows of both."""
    y = Y[:16].repeat(2)
    for i in ignored:
        y[8 * i : 8 * i + 8] = -100
    x = torch.randn(32, 6)
    small = [(x[i : i + 8], y[i : i + 8]) for i in range(0, 32, 8)]
    large = [(x[i : i + 16], y[i : i + 16]) for i in range(0, 32, 16)]
    crit = nn.CrossEntropyLoss()
    net, opt = trained(linear)
    fit(net, ModelData(".", small), 2, crit, opt, callbacks=[GradAccumulation(2)], progress=False)
    other, opt = trained(linear)
    plain_fit(other, large, crit, opt)
    assert torch.allclose(net.weight, other.weight, atol=1e-6)


def test_no_callback_takes_such_a_batch_for_an_end(tmp_path):
    batches = cut(X, changed(Y, slice(16, 24), -100))  # the last of each epoch
    net, opt = trained(linear)
    callbacks = [TerminateOnNaN(), Checkpoint(tmp_path / "run")]
    history = fit(net, ModelData(".", batches), 2, nn.CrossEntropyLoss(), opt,
                  callbacks=callbacks, progress=False)  # fmt: skip
    assert len(history) == 2 and history.stopped is None
    other, opt = trained(linear)
    resumed = fit(other, ModelData(".", batches), 2, nn.CrossEntropyLoss(), opt,
                  resume=tmp_path / "run", callbacks=callbacks, progress=False)  # fmt: skip
    assert list(resumed) == list(history) and same(net, other)
    for i in range(3):
        batches = cut(X, changed(Y, slice(8 * i, 8 * i + 8), -100))
        net, opt = trained(linear)
        assert len(lr_find(net, ModelData(".", batches), nn.CrossEntropyLoss(), opt).lrs) > 20


def test_with_checks_off_a_loss_that_is_nan_stays_in_the_smoothed_loss():
    net, opt = trained(partial(linear, 2))
    md = ModelData(".", cut(X, changed(Q, (12, 0), math.nan)))
    history = fit(net, md, 2, nn.MSELoss(), opt, progress=False, checks="off")
    assert math.isnan(history[-1]["trn_loss"])


def test_losses_that_are_read_later_are_left_out_alike():
    """As those of a GPU are, which wait to be read."""
    running = RunningLoss()
    for loss in 1.0, math.nan, 3.0:
        running.unread.append(torch.tensor(loss))
    assert running.is_bad() and math.isnan(running.value())
    assert math.isnan(running.state_dict()["average"])
    running.unread.append(torch.tensor(math.nan))
    running.leave_out_nan()
    assert not running.is_bad() and running.value() == pytest.approx(smoothed([1.0, 3.0]))
    running.add(torch.tensor(math.inf))
    running.leave_out_nan()
    assert running.is_bad() and math.isinf(running.value())


@pytest.mark.gpu
@pytest.mark.parametrize("batch", range(3))
def test_on_a_gpu_a_batch_that_counts_nothing_is_left_out(batch):
    batches = cut(X, changed(Y, slice(8 * batch, 8 * batch + 8), -100))
    net, _ = trained(linear)
    net.cuda()
    opt = optim.SGD(net.parameters(), lr=0.1)
    md = ModelData(".", batches)
    history = fit(net, md, 20, nn.CrossEntropyLoss(), opt, progress=False)
    assert all(map(math.isfinite, history["trn_loss"])) and net.weight.isfinite().all()
    opt.param_groups[0]["lr"] = math.inf
    with pytest.raises(FloatingPointError, match="the loss is"):
        fit(net, md, 20, nn.CrossEntropyLoss(), opt, progress=False)


# ---- labels that something changes -------------------------------------------------------


class From0(Callback):
    changes_training = True

    def on_batch_begin(self, run):
        run.y = run.y.long() - 1


class StepFrom0(Stepper):
    def step(self, run, events):
        run.preds = self.forward(run.net, run.x)
        run.loss = loss = run.crit(run.preds, run.y - 1)
        events.on_backward_begin(run)
        self.zero_grad(run)
        self.backward(run)
        events.on_backward_end(run)
        self.update(run)
        return loss


@pytest.mark.parametrize("y", [Y + 1, (Y + 1).float()])
def test_a_callback_may_change_labels_before_the_loss_gets_them(y):
    net, opt = trained(linear)
    fit(net, ModelData(".", ArrayLoader(X, y, bs=8)), 1, nn.CrossEntropyLoss(), opt,
        callbacks=[From0()], progress=False)  # fmt: skip


def test_so_may_a_stepper():
    net, opt = trained(linear)
    fit(net, ModelData(".", ArrayLoader(X, Y + 1, bs=8)), 1, nn.CrossEntropyLoss(), opt,
        stepper=StepFrom0(), progress=False)  # fmt: skip


def test_validation_images_may_have_another_size():
    def net():
        return nn.Sequential(nn.Conv2d(1, 3, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())

    images = ArrayLoader(IMAGES, Y, bs=8), ArrayLoader(torch.randn(9, 1, 8, 7), Y[:9], bs=8)
    net, opt = trained(net)
    history = fit(net, ModelData(".", *images), 1, nn.CrossEntropyLoss(), opt, progress=False)
    assert history[0]["val_loss"] == pytest.approx(
        validate(net, images[1], nn.CrossEntropyLoss())["val_loss"]
    )


def test_an_optimizer_may_train_the_loss_alone():
    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, preds, y):
            return F.mse_loss(preds * self.scale, y)

    net, crit = linear(2), Scale()
    opt = optim.SGD(crit.parameters(), lr=0.1)
    fit(net, ModelData(".", cut(X, Q)), 1, crit, opt, progress=False)
    assert crit.scale != 1
    stray = optim.SGD(linear().parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r'another net(?s:.*)checks="warn"'):
        fit(net, ModelData(".", cut(X, Q)), 1, crit, stray, progress=False)
    with pytest.warns(UserWarning, match="another net"):
        fit(net, ModelData(".", cut(X, Q)), 1, crit, stray, progress=False, checks="warn")


# ---- lazy nets ---------------------------------------------------------------------------

LAZY = {
    "linear": lambda: nn.Sequential(nn.LazyLinear(4), nn.ReLU(), nn.LazyLinear(3)),
    "BatchNorm": lambda: nn.Sequential(nn.LazyLinear(4), nn.LazyBatchNorm1d(), nn.Linear(4, 3)),
    "convolution": lambda: nn.Sequential(
        nn.Unflatten(1, (1, 2, 3)), nn.LazyConv2d(4, 2), nn.LazyBatchNorm2d(), nn.Flatten(),
        nn.LazyLinear(3),
    ),
}  # fmt: skip


@QUIET
@pytest.mark.parametrize("name", LAZY)
def test_a_lazy_net_resumes_and_loads_into_a_fresh_one(name, tmp_path):
    make, crit, md = LAZY[name], nn.CrossEntropyLoss(), ModelData(".", cut(X, Y))
    net, opt = trained(make)
    states = []

    class Keep(Callback):
        def on_batch_end(self, run):
            run.after(lambda run: states.append(snapshot(run)))

    fit(net, md, 2, crit, opt, callbacks=[Keep()], progress=False)
    for state in states[1], states[2], states[4]:
        other, opt = trained(make)
        torch.manual_seed(9)
        fit(other, md, 2, crit, opt, resume=state, progress=False)
        assert same(net, other)
    for path in tmp_path / "net.pt", tmp_path / "net.safetensors":
        with pytest.raises(ValueError, match=r"no weights to save yet(?s:.*)net\(x\)"):
            save_weights(make(), path)
        assert not path.exists()
        save_weights(net, path)
        load_weights(other := make(), path)
        assert same(net, other)


@QUIET
@pytest.mark.parametrize("name", LAZY)
def test_lr_find_leaves_a_lazy_net_ready_to_train(name):
    net, opt = trained(LAZY[name])
    md = ModelData(".", cut(X, Y))
    lr_find(net, md, nn.CrossEntropyLoss(), opt)
    assert opt.param_groups[0]["lr"] == 0.1 and not opt.state_dict()["state"]
    fit(net, md, 1, nn.CrossEntropyLoss(), opt, progress=False)
    assert all(p.isfinite().all() for p in net.parameters())


@QUIET
def test_a_snapshot_before_the_first_batch_of_a_lazy_net_is_a_clear_error():
    class Keep(Callback):
        def on_epoch_begin(self, run):
            snapshot(run)

    net, opt = trained(LAZY["BatchNorm"])
    with pytest.raises(ValueError, match=r"lazy net(?s:.*)lazy-nets"):
        fit(net, ModelData(".", cut(X, Y)), 1, nn.CrossEntropyLoss(), opt, callbacks=[Keep()],
            progress=False)  # fmt: skip


@QUIET
def test_a_lazy_batchnorm_gets_no_single_row():
    x, y = torch.randn(25, 6), torch.arange(25) % 3
    net, opt = trained(LAZY["BatchNorm"])
    fit(net, ModelData(".", ArrayLoader(x, y, bs=8)), 2, nn.CrossEntropyLoss(), opt, progress=False)
    other, opt = trained(LAZY["BatchNorm"])
    plain_fit(other, [(x[i:j], y[i:j]) for i, j in ((0, 8), (8, 16), (16, 25))],
              nn.CrossEntropyLoss(), opt)  # fmt: skip
    assert same(net, other)
    net, opt = trained(LAZY["BatchNorm"])
    with pytest.raises(ValueError, match="last batch has a single row"):
        fit(net, ModelData(".", DataLoader(TensorDataset(x, y), 8)), 1, nn.CrossEntropyLoss(), opt)


# ---- loaders and generators --------------------------------------------------------------


@pytest.mark.parametrize("options", [
    {"sampler": SubsetRandomSampler(range(24))},
    {"sampler": RandomSampler(range(25), num_samples=16)},
])  # fmt: skip
def test_the_rows_of_a_sampler_count_not_those_of_its_data(options):
    x, y = torch.randn(25, 6), torch.arange(25) % 3
    net, opt = trained(lambda: nn.Sequential(nn.BatchNorm1d(6), linear()))
    dl = DataLoader(TensorDataset(x, y), 8, **options)
    fit(net, ModelData(".", dl), 1, nn.CrossEntropyLoss(), opt, progress=False)


@pytest.mark.parametrize("loader", [
    lambda x, y: DataLoader(TensorDataset(x, y), 8), lambda x, y: ArrayLoader(x, y, bs=8)
])  # fmt: skip
def test_a_last_batch_that_is_not_reached_is_left_alone(loader):
    x, y = torch.randn(25, 6), torch.arange(25) % 3

    def make():
        return nn.Sequential(nn.BatchNorm1d(6), linear())

    net, opt = trained(make)
    fit(net, ModelData(".", loader(x, y)), 2, nn.CrossEntropyLoss(), opt, steps=3, progress=False)
    other, opt = trained(make)
    plain_fit(other, cut(x, y), nn.CrossEntropyLoss(), opt)
    assert same(net, other)


class WithGenerator:
    def __init__(self, generator):
        self.generator = generator

    def __iter__(self):
        return iter(cut(X, Y))


GENERATORS = [np.random.default_rng(0), np.random.RandomState(0), random.Random(0), 5, "cpu", None,
              random.SystemRandom(), np.random.Generator(np.random.SFC64(0)), iter(())]  # fmt: skip


@pytest.mark.parametrize("generator", GENERATORS, ids=lambda g: type(g).__name__)
def test_a_loader_may_have_any_generator(generator, tmp_path):
    net, opt = trained(linear)
    md = ModelData(".", WithGenerator(generator))
    options = {"callbacks": [Checkpoint(tmp_path / "run")], "progress": False}
    fit(net, md, 1, nn.CrossEntropyLoss(), opt, **options)
    fit(net, md, 2, nn.CrossEntropyLoss(), opt, resume=tmp_path / "run", **options)


@pytest.mark.parametrize("kind", [np.random.PCG64, np.random.SFC64, np.random.Philox])
def test_numpy_may_have_another_bit_generator(kind, tmp_path):
    before = np.random.get_bit_generator()
    np.random.set_bit_generator(kind(3))
    try:
        options = {"callbacks": [Checkpoint(tmp_path / "run")], "progress": False}
        net, opt = trained(linear)
        fit(net, ModelData(".", cut(X, Y)), 1, nn.CrossEntropyLoss(), opt, **options)
        drawn = np.random.rand()
        np.random.set_bit_generator(kind(4))
        fit(net, ModelData(".", cut(X, Y)), 1, nn.CrossEntropyLoss(), opt, resume=tmp_path / "run",
            **options)  # fmt: skip
        assert np.random.rand() == drawn
    finally:
        np.random.set_bit_generator(before)


# ---- modes without gradients -------------------------------------------------------------

PASSES = {
    "predict": predict,
    "predict_with_targs": predict_with_targs,
    "iter_predict": lambda net, dl: list(iter_predict(net, dl)),
    "validate": lambda net, dl: validate(net, dl, nn.CrossEntropyLoss(), [accuracy]),
    "report": report,
}


@pytest.mark.parametrize("name", PASSES)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_what_needs_no_gradient_works_without(name, mode):
    net, call = linear(), PASSES[name]
    for dl in ArrayLoader(X, Y, bs=8), DataLoader(TensorDataset(X, Y), 8):
        expected = str(call(net, dl))
        clone = str(call(net, ArrayLoader(X, Y, bs=8)))
        with mode():
            assert str(call(net, dl)) == expected
            assert str(call(net, ArrayLoader(X.clone(), Y, bs=8))) == clone
        assert str(mode()(call)(net, dl)) == expected


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_what_trains_says_so_and_rows_may_come_from_there(mode):
    net, opt = trained(linear)
    before, md, crit = copy.deepcopy(net), ModelData(".", cut(X, Y)), nn.CrossEntropyLoss()
    with mode():
        for train in (lambda: fit(net, md, 1, crit, opt, progress=False),
                      lambda: lr_find(net, md, crit, opt)):  # fmt: skip
            with pytest.raises(RuntimeError, match=r"computes no gradients(?s:.*)inference_mode"):
                train()
        rows = [(x.clone(), y.clone()) for x, y in cut(X, Y)]
        arrays = ArrayLoader(X.clone(), Y.clone(), bs=8)
    assert same(net, before)
    fit(net, ModelData(".", arrays), 1, crit, opt, progress=False)
    if mode is torch.inference_mode:  # a plain loop cannot take them either
        with pytest.raises(RuntimeError, match=r"made under torch\.inference_mode"):
            fit(net, ModelData(".", rows), 1, crit, opt, progress=False)


def test_a_net_made_under_inference_mode_is_a_clear_error():
    with torch.inference_mode():
        net = linear()
    opt = optim.SGD(net.parameters(), lr=0.1)
    with pytest.raises(RuntimeError, match=r"made under torch\.inference_mode"):
        fit(net, ModelData(".", cut(X, Y)), 1, nn.CrossEntropyLoss(), opt, progress=False)


class Recurrent(nn.Module):
    def __init__(self, detach):
        super().__init__()
        self.detach, self.hidden = detach, torch.zeros(8, 4)
        self.a, self.b, self.out = nn.Linear(4, 4), nn.Linear(6, 4), nn.Linear(4, 3)

    def forward(self, x):
        hidden = torch.tanh(self.a(self.hidden) + self.b(x))
        self.hidden = hidden.detach() if self.detach else hidden
        return self.out(hidden)


def test_a_graph_that_is_used_twice_names_its_cause():
    crit = nn.CrossEntropyLoss()
    net, opt = trained(lambda: Recurrent(detach=False))
    one = ModelData(".", cut(X, Y)[:1])
    fit(net, one, 1, crit, opt, progress=False)
    with pytest.raises(RuntimeError, match=r"keeps a tensor(?s:.*)hidden.detach\(\)"):
        fit(net, one, 1, crit, opt, progress=False)
    net, opt = trained(lambda: Recurrent(detach=False))
    with pytest.raises(RuntimeError, match=r"keeps a tensor(?s:.*)hidden.detach\(\)"):
        fit(net, ModelData(".", cut(X, Y)), 1, crit, opt, progress=False)  # at the second batch
    net, opt = trained(lambda: Recurrent(detach=True))
    fit(net, ModelData(".", cut(X, Y)), 2, crit, opt, progress=False)
    features = ModelData(".", [(nn.Linear(6, 6)(X[:8]).relu(), Y[:8])])
    net, opt = trained(linear)
    fit(net, features, 1, crit, opt, progress=False)
    with pytest.raises(RuntimeError, match=r"rows are computed(?s:.*)ReluBackward(?s:.*)no_grad"):
        fit(net, features, 1, crit, opt, progress=False)


def test_class_masks_of_uint8_are_told_what_to_become():
    net, opt = trained(lambda: nn.Conv2d(1, 3, 1))
    md = ModelData(".", ArrayLoader(IMAGES, PIXELS.to(torch.uint8), bs=8))
    with pytest.raises(RuntimeError, match=r"no int64(?s:.*)y.astype\(np.int64\): uint8"):
        fit(net, md, 1, nn.CrossEntropyLoss(), opt, progress=False)


@pytest.mark.parametrize("top", [0.01, 1e-4])
def test_sparse_gradients_are_clipped(top):
    def make():
        return nn.Sequential(nn.Embedding(10, 4, sparse=True), nn.Flatten(), nn.Linear(12, 3))

    def dense():
        return nn.Sequential(nn.Embedding(10, 4), nn.Flatten(), nn.Linear(12, 3))

    ends = []
    for net in make, dense:
        torch.manual_seed(1)
        net = net()
        opt = optim.SGD(net.parameters(), lr=1.0)
        fit(net, ModelData(".", cut(TOKENS, Y)), 2, nn.CrossEntropyLoss(), opt,
            callbacks=[GradClip(max_value=top)], progress=False)  # fmt: skip
        ends.append(net[0].weight)
    assert torch.allclose(*ends, atol=1e-6)
