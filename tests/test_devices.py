"""How rows come to a GPU. What needs one is marked; `meta` is a device that every machine has."""

import copy
import gc

import numpy as np
import pytest
import torch
from torch import nn, optim

from minifast import ArrayLoader, Callback, ImageClassifierData, fit, predict
from minifast import devices as devices_module
from minifast.devices import DeviceCache, free_memory, sent
from minifast.plugins import CudaGraph, Freeze, GradClip, LabelSmoothing, OneCycle
from minifast.testing import example_data, example_fit, example_net

from .test_equals_plain_loop import plain_fit, same

META = torch.device("meta")
gpu = pytest.mark.gpu


def shapes(loader):
    return [[(t.shape, t.dtype) for t in batch] for batch in loader]


@pytest.mark.parametrize("shuffle", [False, True, "blocks"])
def test_kept_rows_come_in_the_same_batches_and_order(shuffle):
    x, y = np.zeros((23, 4, 4), np.uint8), np.arange(23)
    loader = ArrayLoader(x, y, bs=5, shuffle=shuffle, seed=3)
    near = DeviceCache(META, room=10**6).near(loader)
    state = loader.generator.get_state()
    kept = shapes(near)
    after, _ = loader.generator.get_state(), loader.generator.set_state(state)
    assert kept == shapes(loader) and len(near) == len(loader) == 5
    assert torch.equal(after, loader.generator.get_state())  # both draw from one generator
    assert all(t.device == META for batch in near for t in batch)
    assert all(t.device.type == "cpu" for batch in loader for t in batch)


def test_cached_rows_follow_what_is_set_at_the_loader():
    loader = ArrayLoader(torch.zeros(9, 2), torch.zeros(9), bs=4)
    cache = DeviceCache(META, room=1000)
    cache.near(loader)
    assert [len(x) for x, _ in cache.near(loader.view(merge_last=True))] == [4, 5]
    assert [len(x) for x, _ in cache.near(loader.view(merge_last=True, shard=(1, 2)))] == [4]
    loader.bs = 5
    assert [len(x) for x, _ in cache.near(loader)] == [5, 4]
    assert len(cache.copies) == 1
    loader.arrays[1] = torch.zeros(9, 7)  # in place: the list is the same
    assert cache.near(loader).arrays[1].shape == (9, 7)
    loader.arrays = [torch.zeros(3, 2), torch.zeros(3)]
    assert cache.near(loader).arrays[0].shape == (3, 2)


def test_copies_go_with_their_arrays():
    cache = DeviceCache(META, room=3 * 100 * 12)
    for rows in range(1, 100):  # one loader after the other, as a callback may assign them
        loader = ArrayLoader(torch.zeros(rows, 2), torch.zeros(rows))
        assert cache.near(loader).arrays[0].device == META
        assert cache.size <= (2 * rows - 1) * 12


def test_what_does_not_fit_or_is_not_ours_stays(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((20, 2), np.float32))
    y = np.zeros(20)
    on_disk = ArrayLoader(np.load(tmp_path / "x.npy", mmap_mode="r"), y)
    changed = ArrayLoader(np.zeros((20, 2)), y, tfm=lambda x: x.numpy())
    batches = [(torch.zeros(2, 2), torch.zeros(2))]
    first, second = ArrayLoader(np.zeros((20, 2)), y), ArrayLoader(np.zeros((20, 2)), y)
    kept = DeviceCache(META, room=20 * 3 * 4 + 239)  # for one of the two
    for loader in on_disk, changed, batches:
        assert kept.near(loader) is loader
    assert kept.near(first) is not first and kept.near(second) is second
    assert kept.near(first) is not first
    assert DeviceCache(META, room=0).near(first) is first


def test_on_the_cpu_nothing_is_kept_or_said(net, md, capsys):
    class Look(Callback):
        def on_batch_begin(self, run):
            assert run.loader_for(run.data.trn_dl) is run.data.trn_dl

    assert free_memory(torch.device("cpu")) == 0
    opt = optim.SGD(net.parameters(), lr=0.1)
    fit(net, md, 1, nn.NLLLoss(), opt, callbacks=[Look()])
    assert "kept" not in capsys.readouterr().out


def test_on_the_cpu_cuda_graph_is_the_ordinary_step():
    assert list(example_fit([], stepper=CudaGraph())) == list(example_fit([]))


def test_a_run_of_many_gpus_goes_on_where_there_are_fewer():
    from minifast.rng import random_state, set_random_state

    state = random_state(None) | {"cuda": [torch.zeros(16, dtype=torch.uint8)] * 8}
    torch.rand(3)
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all() * 8
    set_random_state(state, None)
    assert torch.equal(torch.get_rng_state(), state["torch"])


# ---- on a GPU ----------------------------------------------------------------------------


def train(md, net=None, callbacks=(), stepper=None, epochs=2, **options):
    """The net, its optimizer and the history after some epochs on the GPU."""
    torch.manual_seed(1)
    net = (net or nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))).cuda()
    opt = optim.Adam(net.parameters(), lr=0.01)
    crit = nn.CrossEntropyLoss()
    history = fit(net, md, epochs, crit, opt, callbacks=callbacks, stepper=stepper, **options)
    return net, opt, history


@pytest.fixture(params=["kept", "sent"])
def way(request, monkeypatch):
    """Rows kept on the GPU, and rows sent there batch by batch."""
    if request.param == "sent":
        monkeypatch.setattr(devices_module, "SHARE", 0.0)
    return request.param


class Where(Callback):
    def __init__(self):
        self.found = set()

    def on_batch_begin(self, run):
        near = run.loader_for(run.data.trn_dl)
        self.found.add((near.arrays[0].is_cuda, run.x.is_cuda, run.y.is_cuda))


@gpu
def test_rows_are_kept_where_the_net_is_while_it_lasts(way, capsys):
    md, where = example_data(), Where()
    train(md, callbacks=[where])
    gc.collect()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    train(md, callbacks=[where])
    assert where.found == {(way == "kept", True, True)}
    assert capsys.readouterr().out.count("rows kept on cuda:0") == (way == "kept")  # said once
    assert not next(iter(md.trn_dl))[0].is_cuda
    gc.collect()
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() <= before  # the copies went with the fit


@gpu
def test_the_gpu_gives_the_plain_loops_weights(way):
    md = example_data()
    net, opt, _ = train(md, progress=False)
    torch.manual_seed(1)
    plain = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).cuda()
    other = optim.Adam(plain.parameters(), lr=0.01)
    rows = [torch.from_numpy(a).cuda() for ds in (md.trn_ds, md.val_ds) for a in (ds.x, ds.y)]
    plain_fit(plain, *rows, 2, nn.CrossEntropyLoss(), other, bs=8)
    assert same(net.state_dict(), plain.state_dict())
    assert same(opt.state_dict()["state"], other.state_dict()["state"])


class NothingWaits(Callback):
    """Between the ninth batch and the last, what waits for the GPU within a step is an error."""

    def on_epoch_begin(self, run):
        torch.cuda.set_sync_debug_mode("default")

    def on_batch_end(self, run):
        inside = 8 < run.batch < run.n_batches - 2
        torch.cuda.set_sync_debug_mode("error" if inside else "default")

    def on_train_end(self, run):
        torch.cuda.set_sync_debug_mode("default")


@gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")  # it misses some, it says
@pytest.mark.parametrize("stepper", [None, CudaGraph])
def test_nothing_waits_for_the_gpu_in_a_step(way, stepper):
    md = example_data(rows=900)
    callbacks = [NothingWaits(), OneCycle(0.01), GradClip(max_norm=1.0)]
    made = stepper and stepper()
    train(md, callbacks=callbacks, stepper=made, epochs=1, progress=False)


@gpu
@pytest.mark.parametrize("bad", [3, 8])  # the last batch of the epoch too
def test_a_loss_that_is_nan_is_an_error_on_a_gpu_too(bad):
    calls = []

    def crit(preds, y):
        calls.append(y)
        return nn.functional.cross_entropy(preds, y) * (float("nan") if len(calls) == bad else 1)

    net = nn.Linear(6, 3).cuda()
    opt = optim.SGD(net.parameters(), lr=0.1)
    with pytest.raises(FloatingPointError, match="the loss is"):
        fit(net, example_data(), 1, crit, opt, progress=False)
    assert len(calls) <= 8


@gpu
def test_what_is_sent_is_what_arrives():
    device = torch.device("cuda", 0)
    for _ in range(50):
        t = torch.randn(1000, 100)
        there = sent(t, device) * 1
        before = t.clone()
        t.zero_()  # the memory is free as soon as it was sent
        assert torch.equal(there.cpu(), before)


@gpu
def test_what_stands_for_many_numbers_is_sent_whole():
    device = torch.device("cuda", 0)
    for t in torch.ones(1).expand(8), torch.rand(4, 1, 5).expand(4, 3, 5), torch.rand(6, 4)[:, :2]:
        assert torch.equal(sent(t, device).cpu(), t)
    image = torch.rand(2, 3, 4, 4).to(memory_format=torch.channels_last)
    assert sent(image, device).is_contiguous(memory_format=torch.channels_last)


@gpu
def test_a_loss_of_one_number_in_a_row_is_read_too(way):
    crit = lambda preds, y: nn.functional.cross_entropy(preds, y).reshape(1)  # noqa: E731
    net = nn.Linear(6, 3).cuda()
    opt = optim.SGD(net.parameters(), lr=0.1)
    history = fit(net, example_data(), 2, crit, opt, progress=False)
    assert history[1]["trn_loss"] < history[0]["trn_loss"]


@gpu
def test_the_host_is_not_far_ahead():
    md = example_data(rows=4000)

    class Ahead(Callback):
        most = 0

        def on_batch_end(self, run):
            self.most = max(self.most, len(run.running_loss.coming))

    ahead = Ahead()
    train(md, callbacks=[ahead], epochs=1, progress=False)
    assert ahead.most <= 65


class Tempered(nn.Module):
    def __init__(self):
        super().__init__()
        self.t = nn.Parameter(torch.tensor(2.0))

    def forward(self, preds, y):
        return nn.functional.cross_entropy(preds * self.t, y)


@gpu
def test_a_loss_with_parameters_is_recorded_whole():
    found = []
    for stepper in CudaGraph(), None:
        torch.manual_seed(1)
        net, crit = nn.Linear(6, 3).cuda(), Tempered().cuda()
        opt = optim.SGD([*net.parameters(), *crit.parameters()], lr=0.1)
        fit(net, example_data(rows=310), 3, crit, opt, stepper=stepper, progress=False)
        assert stepper is None or stepper.recorded is not None
        found.append(float(crit.t))
    assert found[0] == pytest.approx(found[1], rel=1e-4)


@gpu
def test_predictions_are_those_of_the_cpu(way):
    md = example_data()
    net, _, history = train(md, progress=False)
    found = predict(net, md.val_dl)
    np.testing.assert_allclose(found, predict(net.cpu(), md.val_dl), rtol=1e-4, atol=1e-5)
    loss = nn.CrossEntropyLoss()(torch.from_numpy(found), torch.from_numpy(md.val_y))
    assert history[-1]["val_loss"] == pytest.approx(float(loss), rel=1e-4)


@gpu
@pytest.mark.parametrize(
    "callbacks",
    [
        list,
        lambda: [OneCycle(0.05), GradClip(max_norm=0.5)],
        lambda: [Freeze("0", until=1)],
    ],
    ids=["bare", "schedule and clipping", "freezing"],
)
def test_a_recorded_step_is_the_ordinary_one(callbacks):
    md = example_data(rows=310)  # batches of 8, the last one smaller
    stepper = CudaGraph()
    net, opt, history = train(md, callbacks=callbacks(), stepper=stepper, epochs=3)
    assert stepper.recorded is not None
    other, plain, expected = train(md, callbacks=callbacks(), epochs=3)
    assert all(
        torch.allclose(a, b, rtol=1e-4, atol=1e-5)
        for a, b in zip(net.parameters(), other.parameters(), strict=True)
    )
    assert history["trn_loss"] == pytest.approx(expected["trn_loss"], rel=1e-4)
    steps = [[int(s["step"]) for s in o.state.values()] for o in (opt, plain)]
    assert steps[0] == steps[1]


@gpu
def test_dropout_and_batchnorm_go_on_in_a_recording():
    md = example_data(rows=310)
    stepper = CudaGraph()
    net, _, history = train(md, net=copy.deepcopy(example_net()), stepper=stepper, epochs=3)
    assert stepper.recorded is not None and history[-1]["val_loss"] < history[0]["val_loss"]
    steps = 3 * len(md.trn_dl)
    assert int(net[1].num_batches_tracked) == steps
    first, second = stepper.loss.clone(), stepper.graph.replay() or stepper.loss.clone()
    assert not torch.equal(first, second)  # the draws of dropout are new ones


@gpu
def test_a_recording_serves_one_fit():
    md, stepper = example_data(rows=310), CudaGraph()
    train(md, stepper=stepper)
    net, _, _ = train(md, stepper=stepper)
    other, _, _ = train(md)
    assert torch.allclose(net[0].weight, other[0].weight, rtol=1e-4, atol=1e-5)


@gpu
def test_who_changes_the_loss_gets_the_ordinary_step_and_is_told():
    stepper = CudaGraph()
    with pytest.warns(UserWarning, match="LabelSmoothing may change the loss"):
        train(example_data(), callbacks=[LabelSmoothing(0.1)], stepper=stepper)
    assert stepper.recorded is None


@gpu
def test_a_run_goes_on_from_a_file_on_a_gpu(way, tmp_path):
    from minifast.plugins import Checkpoint

    class Stop(Callback):
        def on_batch_end(self, run):
            if run.step == 11:
                run.pause("enough")

    path = tmp_path / "run.pt"
    unbroken, _, _ = train(example_data(), epochs=3, callbacks=[Checkpoint(path)])
    path.unlink()
    train(example_data(), epochs=3, callbacks=[Checkpoint(path, every=1), Stop()])
    resumed, _, _ = train(example_data(), epochs=3, callbacks=[Checkpoint(path)], resume=path)
    assert same(unbroken.state_dict(), resumed.state_dict())


@gpu
def test_images_in_bytes_become_floats_on_the_gpu():
    x, y = np.random.randint(0, 256, (64, 5, 5), np.uint8), np.arange(64) % 3
    md = ImageClassifierData.from_arrays(".", (x, y), (x, y), bs=16)

    class Bytes(Callback):
        def on_batch_begin(self, run):
            assert run.loader_for(run.data.trn_dl).arrays[0].dtype == torch.uint8
            assert run.x.dtype == torch.float32 and run.x.is_cuda

    net = nn.Sequential(nn.Flatten(), nn.Linear(25, 3))
    train(md, net=net, callbacks=[Bytes()])


# The last one: what a broken recording leaves behind in torch may break what comes after it.
class Reads(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 3)

    def forward(self, x):
        return self.layer(x) * (2 if x.sum().item() > 0 else 1)


@gpu
def test_a_net_that_cannot_be_recorded_is_an_error_in_words():
    with pytest.raises(RuntimeError, match="cannot be recorded"):
        train(example_data(rows=310), net=Reads(), stepper=CudaGraph())
