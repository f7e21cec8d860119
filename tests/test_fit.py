"""fit, validate, predict: what they return, print and leave alone."""

import random
import warnings

import matplotlib
import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, log_loss
from torch import nn, optim
from torch.utils.data import DataLoader, TensorDataset

from minifast import (
    ArrayLoader,
    Callback,
    ImageClassifierData,
    ModelData,
    Stepper,
    accuracy,
    fit,
    predict,
    predict_with_targs,
    set_lrs,
    validate,
)
from minifast.metrics import f1


def train(net, md, epochs=1, **options):
    options.setdefault("progress", False)
    opt = optim.Adam(net.parameters(), lr=0.05)
    return fit(net, md, epochs, nn.NLLLoss(), opt, [accuracy], **options)


class LogReg(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 3) / 6)
        self.bias = nn.Parameter(torch.zeros(3))

    def forward(self, x):
        return (x @ self.weight + self.bias).log_softmax(dim=1)


# ---- the history and the table -----------------------------------------------------------


def test_the_history_has_a_row_of_plain_numbers_for_each_epoch(net, md):
    history = train(net, md, 3)
    assert history.columns == ["epoch", "trn_loss", "val_loss", "accuracy"]
    assert history["epoch"] == [0, 1, 2]
    assert [type(v) for v in history[0].values()] == [int, float, float, float]
    assert history["val_loss"][2] < history["val_loss"][0]


def test_the_table(net, md, capsys):
    history = train(net, md, 2, progress=True)
    out, err = capsys.readouterr()
    header, *lines = out.splitlines()
    assert header == "epoch  trn_loss  val_loss  accuracy"
    for row, line in zip(history, lines, strict=True):
        values = [f"{row[name]:.6f}" for name in ("trn_loss", "val_loss", "accuracy")]
        assert line == "  ".join([f"{row['epoch']:5}", *values])
    assert err == ""  # no bar where the output is no terminal


def test_without_progress_nothing_is_printed(net, md, capsys):
    train(net, md)
    assert capsys.readouterr() == ("", "")


def test_trn_loss_is_fastais_smoothed_loss(net, md):
    losses = []

    class Losses(Callback):
        def on_batch_end(self, run):
            losses.append(run.loss.item())

    history = train(net, md, 2, callbacks=[Losses()])
    average = 0.0
    for loss in losses:
        average = 0.98 * average + 0.02 * loss
    assert history["trn_loss"][-1] == pytest.approx(average / (1 - 0.98 ** len(losses)), rel=1e-6)


@pytest.mark.parametrize("bs", [1, 7, 56, 57, 1000])
def test_validation_weighs_every_row_once(net, arrays, bs):
    *_, x_valid, y_valid = arrays
    uneven = DataLoader(TensorDataset(torch.from_numpy(x_valid), torch.from_numpy(y_valid)), bs)
    for val_dl in uneven, ArrayLoader(x_valid, y_valid, bs=bs):
        found = validate(net, val_dl, nn.NLLLoss(), [accuracy])
        with torch.no_grad():
            probs = net(torch.from_numpy(x_valid)).double().softmax(dim=1).numpy()
        assert found["accuracy"] == pytest.approx(accuracy_score(y_valid, probs.argmax(1)))
        assert found["val_loss"] == pytest.approx(log_loss(y_valid, probs), rel=1e-5)


def test_a_metric_that_is_no_mean_is_computed_over_all_rows():
    log_preds = torch.rand(50, 2).log_softmax(dim=1)
    targs = torch.randint(0, 2, (50,))
    batches = list(zip(log_preds.split(7), targs.split(7), strict=True))
    found = validate(nn.Identity(), batches, nn.NLLLoss(), [f1])
    assert found["f1"] == f1(log_preds, targs).item()


def test_a_metric_that_keeps_count_by_itself_is_reset_and_asked(net, md):
    class Count:
        def __init__(self):
            self.rows = 99

        def reset(self):
            self.rows = 0

        def update(self, preds, targs):
            self.rows += len(targs)

        def compute(self):
            return torch.tensor(float(self.rows))

    history = fit(
        net, md, 2, nn.NLLLoss(), optim.SGD(net.parameters(), lr=0.1), [Count()], progress=False
    )
    assert history["Count"] == [57.0, 57.0]


def test_n_epochs_is_epochs(net, md):
    opt = optim.SGD(net.parameters(), lr=0.1)
    assert len(fit(net, md, n_epochs=2, crit=nn.NLLLoss(), opt=opt, progress=False)) == 2


def test_no_epochs_give_an_empty_history(net, md):
    assert len(train(net, md, 0)) == 0


# ---- nets, data and losses of all kinds --------------------------------------------------


def test_a_module_of_ones_own_learns(md):
    assert train(LogReg(), md, 10)[-1]["accuracy"] > 0.9


def test_fit_again_goes_on_with_the_optimizers_state(arrays):
    x, y, x_valid, y_valid = arrays

    def run(parts):
        torch.manual_seed(1)
        md = ImageClassifierData.from_arrays(".", (x, y), (x_valid, y_valid), bs=16)
        net = LogReg()
        opt = optim.Adam(net.parameters())
        for epochs in parts:
            fit(net, md, epochs, nn.NLLLoss(), opt, progress=False)
        return net.weight.detach()

    assert torch.equal(run([3]), run([1, 2]))


def test_set_lrs_between_two_fits_counts(net, md):
    opt = optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    fit(net, md, 1, nn.NLLLoss(), opt, progress=False)
    before = [p.detach().clone() for p in net.parameters()]
    set_lrs(opt, 0)
    with pytest.warns(UserWarning, match="the learning rate is 0"):
        fit(net, md, 1, nn.NLLLoss(), opt, progress=False)
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))


def test_a_torch_dataloader_and_a_list_of_batches_serve(net, arrays):
    x, y = torch.from_numpy(arrays[0]), torch.from_numpy(arrays[1])
    loader = DataLoader(TensorDataset(x, y), 16, shuffle=True)
    md = ModelData(".", loader, [(x, y)])
    assert train(net, md, 5)[-1]["accuracy"] > 0.9


def test_several_inputs_go_to_the_net_as_its_arguments():
    class TwoInputs(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 1)

        def forward(self, a, b):
            return self.linear(torch.cat([a, b], dim=1)), "a second output that does not count"

    a, b = torch.randn(100, 2), torch.randn(100, 2)
    y = (a.sum(1) - b.sum(1)).unsqueeze(1)
    net = TwoInputs()
    md = ModelData(".", ArrayLoader(a, b, y, shuffle=True), ArrayLoader(a, b, y))
    opt = optim.SGD(net.parameters(), lr=0.3)
    history = fit(net, md, 30, nn.MSELoss(), opt, progress=False)
    assert history[-1]["val_loss"] < 1e-3
    assert predict(net, md.val_dl).shape == (100, 1)


def test_a_stepper_of_ones_own_replaces_the_step(net, md):
    class Nothing(Stepper):
        def step(self, run, events):
            return torch.tensor(1.5)

    before = [p.detach().clone() for p in net.parameters()]
    history = train(net, md, stepper=Nothing())
    assert history["trn_loss"] == pytest.approx([1.5])
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))


def test_batches_follow_the_net_to_its_device(arrays):
    x, y, x_valid, y_valid = arrays
    md = ImageClassifierData.from_arrays(".", (x, y), (x_valid, y_valid), bs=16)
    seen = []

    class Where(Callback):
        def on_batch_begin(self, run):
            seen.append((run.x.device.type, run.y.device.type))
            run.stop("seen")

    class OnMeta(nn.Module):  # a device that every machine has
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(6, 3, device="meta"))

        def forward(self, x):
            return (x @ self.weight).log_softmax(dim=1)

    net = OnMeta()
    opt = optim.SGD(net.parameters(), lr=0.1)
    fit(net, md, 1, nn.NLLLoss(), opt, callbacks=[Where()], progress=False)
    assert seen == [("meta", "meta")]


@pytest.mark.gpu
def test_a_net_moved_to_the_gpu_trains_and_predicts_there(md):
    net = LogReg().cuda()
    assert train(net, md, 10)[-1]["accuracy"] > 0.9
    assert isinstance(predict(net, md.val_dl), np.ndarray)


# ---- what is left alone ------------------------------------------------------------------


def modes(net):
    return [module.training for module in net.modules()]


@pytest.mark.parametrize("training", [True, False])
def test_every_part_of_the_net_keeps_its_mode(md, training):
    net = nn.Sequential(nn.Linear(6, 3), nn.Dropout(), nn.LogSoftmax(dim=1)).train(training)
    net[1].eval()
    found = modes(net)
    train(net, md)
    validate(net, md.val_dl, nn.NLLLoss())
    predict(net, md.val_dl)
    assert modes(net) == found


def test_the_mode_is_put_back_after_an_error_too(net, md):
    net.eval()

    class Fails(Callback):
        def on_batch_end(self, run):
            raise ValueError

    with pytest.raises(ValueError):
        train(net, md, callbacks=[Fails()])
    assert not net.training


def test_batchnorm_learns_its_statistics(arrays):
    x, y, *_ = arrays
    net = nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 3), nn.LogSoftmax(dim=1))
    train(net, ModelData(".", ArrayLoader(x, y, bs=16)), 10)
    np.testing.assert_allclose(net[0].running_mean, x.mean(axis=0), atol=0.3)


def test_the_callers_lists_and_the_worlds_state_stay_as_they_were(net, md, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    metrics, callbacks = [accuracy], [Callback()]
    before = (
        random.getstate(),
        str(np.random.get_state()),
        torch.get_default_dtype(),
        matplotlib.get_backend(),
        list(warnings.filters),
        torch.is_grad_enabled(),
    )
    fit(net, md, 1, nn.NLLLoss(), optim.SGD(net.parameters(), lr=0.1), metrics, callbacks)
    assert (metrics, len(callbacks)) == ([accuracy], 1)
    assert before == (
        random.getstate(),
        str(np.random.get_state()),
        torch.get_default_dtype(),
        matplotlib.get_backend(),
        list(warnings.filters),
        torch.is_grad_enabled(),
    )
    assert list(tmp_path.iterdir()) == []


def test_a_seeded_loader_leaves_torchs_generator_alone(net, arrays):
    x, y, x_valid, y_valid = arrays
    md = ImageClassifierData.from_arrays(".", (x, y), (x_valid, y_valid), seed=3)
    before = torch.get_rng_state()
    train(net, md)
    assert torch.equal(before, torch.get_rng_state())


# ---- predict -----------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 2, 57])
@pytest.mark.parametrize("bs", [1, 10, 64])
@pytest.mark.parametrize("shuffle", [False, True])
def test_row_i_of_predict_belongs_to_row_i(rows, bs, shuffle):
    x, y = torch.randn(rows, 6), torch.arange(rows)
    net = nn.Sequential(nn.Linear(6, 3), nn.Dropout(0.9)).eval()
    expected = net(x).detach().numpy()
    preds, targs = predict_with_targs(net.train(), ArrayLoader(x, y, bs=bs, shuffle=shuffle))
    np.testing.assert_allclose(preds, expected, rtol=1e-5, atol=1e-6)
    assert preds.dtype == np.float32
    assert targs.tolist() == list(range(rows))


def test_predict_takes_batches_without_targets(net):
    x = torch.randn(9, 6)
    expected = predict(net, ArrayLoader(x, torch.zeros(9)))
    for loader in ArrayLoader(x), DataLoader(x, 4), DataLoader(TensorDataset(x), 4):
        np.testing.assert_allclose(predict(net, loader), expected, rtol=1e-5)


def test_predict_keeps_no_graph_and_no_gradients(net, md):
    predict(net, md.val_dl)
    assert all(p.grad is None for p in net.parameters())


def test_evaluation_takes_many_rows_at_once_but_never_too_many_bytes():
    seen = []

    class Sees(nn.Module):
        def forward(self, x):
            seen.append(len(x))
            return x[:, :1].flatten(1)

    predict(Sees(), ArrayLoader(np.zeros((4500, 4)), np.zeros(4500)))
    assert seen == [2000, 2000, 500]
    seen.clear()
    predict(Sees(), ArrayLoader(np.zeros((200, 3, 256, 256), np.uint8), np.zeros(200), bs=8))
    assert seen == [21] * 9 + [11]  # 16 MiB of float32


def test_a_net_that_writes_to_its_input_does_not_change_the_data(arrays):
    x, y, x_valid, y_valid = (a.copy() for a in arrays)
    md = ImageClassifierData.from_arrays(".", (x, y), (x_valid, y_valid), bs=16)
    net = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(6, 3), nn.LogSoftmax(dim=1))
    train(net, md)
    predict(net, md.val_dl)
    for found, original in zip((x, y, x_valid, y_valid), arrays, strict=True):
        np.testing.assert_array_equal(found, original)
