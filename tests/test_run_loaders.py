"""Views of loaders: what one fit needs of a loader, no other fit over it sees."""

import copy
import threading

import numpy as np
import pytest
import torch
from torch import nn, optim
from torch.utils.data import DataLoader, TensorDataset

from minifast import ArrayLoader, Callback, ModelData, fit
from minifast.plugins import ActivationStats

ROWS = 17  # 8, 8 and a single one
X = torch.randn(ROWS, 4, generator=torch.Generator().manual_seed(0))
Y = torch.arange(ROWS) % 3


def plain_net():
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))


def norm_net():
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))


def plain_loop(net, sizes, epochs=2):
    """The weights of a loop over the rows in order, in batches of these sizes."""
    opt = optim.SGD(net.parameters(), lr=0.1)
    net.train()
    for _ in range(epochs):
        for x, y in zip(X.split(sizes), Y.split(sizes), strict=True):
            opt.zero_grad()
            nn.functional.cross_entropy(net(x), y).backward()
            opt.step()
    return torch.cat([p.detach().flatten() for p in net.parameters()])


def fitted(net, md, callbacks=(), epochs=2):
    opt = optim.SGD(net.parameters(), lr=0.1)
    fit(net, md, epochs, nn.CrossEntropyLoss(), opt, callbacks=callbacks, progress=False)
    return torch.cat([p.detach().flatten() for p in net.parameters()])


class Sizes(Callback):
    def __init__(self):
        self.found = []

    def on_batch_end(self, run):
        self.found.append((len(run.y), run.n_batches))


def test_a_view_leaves_the_loader_as_it_is():
    loader = ArrayLoader(X, Y, bs=8, shuffle=True, seed=1)
    before = dict(vars(loader))
    view = loader.view(merge_last=True, shard=(1, 2), arrays=[a.to("meta") for a in loader.arrays])
    assert [len(x) for x, _ in view] == [8] and len(view) == 1
    assert view.batch_rows() == [17] and view.global_batch_size == 16
    assert vars(loader) == before and len(loader) == 3
    assert view.generator is loader.generator
    back = view.view(merge_last=False, shard=(0, 1), arrays=loader.arrays)
    assert [len(x) for x, _ in back] == [8, 8, 1]


@pytest.mark.parametrize("where", ["memory", "disk"])
@pytest.mark.parametrize("shuffle", [False, True])
def test_shards_are_the_whole_batches(shuffle, where, tmp_path):
    x = X.numpy()
    if where == "disk":
        np.save(tmp_path / "x.npy", x)
        x = np.load(tmp_path / "x.npy", mmap_mode="r")
    loader = ArrayLoader(x, Y, bs=2, shuffle=shuffle, seed=1)
    for size in 2, 3, 5, 7:
        shards = [loader.view(shard=(rank, size)) for rank in range(size)]
        epochs = []
        for shard in shards:
            loader.generator.manual_seed(5)
            epochs.append([y for _, y in shard])
        loader.generator.manual_seed(5)
        whole = [y for _, y in loader.view(shard=(0, 1))]
        whole = torch.cat(whole).split(2 * size)
        for i, batch in enumerate(whole):
            parts = [epoch[i] for epoch in epochs]
            rows = [len(p) for p in batch.tensor_split(size)]
            found = [p[:n] for p, n in zip(parts, rows, strict=True)]
            assert torch.equal(torch.cat(found), batch)
            assert all(len(p) for p in parts)  # each process has a row to step with


def test_a_fit_within_a_fit_has_the_batches_of_the_plain_loop():
    md, sizes = ModelData(".", ArrayLoader(X, Y, bs=8)), Sizes()
    inner = []

    class Nested(Callback):
        def on_epoch_begin(self, run):
            inner.append(fitted(plain_net(), run.data, [sizes]))

    outer = Sizes()
    weights = fitted(norm_net(), md, [Nested(), outer])
    expected = plain_loop(plain_net(), [8, 8, 1])
    assert all(torch.equal(each, expected) for each in inner)
    assert sizes.found == [(8, 3), (8, 3), (1, 3)] * 4
    assert torch.equal(weights, plain_loop(norm_net(), [8, 9]))
    assert outer.found == [(8, 2), (9, 2)] * 2


def test_fits_in_two_threads_over_one_loader():
    md, found = ModelData(".", ArrayLoader(X, Y, bs=8)), {}
    meet = threading.Barrier(2)

    class Meets(Callback):
        def on_epoch_begin(self, run):
            meet.wait(timeout=60)  # both are in the midst of a fit now

    nets = {"plain": plain_net(), "norm": norm_net()}  # one after the other: a seed is for all
    threads = [
        threading.Thread(target=lambda name=name: found.update({
            name: fitted(nets[name], md, [Meets()])
        }))
        for name in nets
    ]  # fmt: skip
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert torch.equal(found["plain"], plain_loop(plain_net(), [8, 8, 1]))
    assert torch.equal(found["norm"], plain_loop(norm_net(), [8, 9]))


class Replaces(Callback):
    """Assigns another loader from the second epoch on."""

    def __init__(self, loader):
        self.loader = loader

    def on_epoch_begin(self, run):
        if run.epoch == 1:
            run.data = ModelData(".", self.loader)


def test_a_loader_that_is_assigned_later_is_merged_too():
    even = ModelData(".", ArrayLoader(X[:16], Y[:16], bs=8))
    sizes = Sizes()
    fitted(norm_net(), even, [Replaces(ArrayLoader(X, Y, bs=8)), sizes], epochs=3)
    assert sizes.found == [(8, 2), (8, 2)] + [(8, 2), (9, 2)] * 2
    loader = DataLoader(TensorDataset(X, Y), 8)
    with pytest.raises(ValueError, match=r"(?s)last batch has a single row.*fix:.*drop_last"):
        fitted(norm_net(), even, [Replaces(loader)], epochs=3)


def test_a_data_object_that_makes_its_loader_each_time():
    class Fresh:
        val_dl = None

        @property
        def trn_dl(self):
            return ArrayLoader(X, Y, bs=8)

    sizes = Sizes()
    fitted(norm_net(), Fresh(), [sizes])
    assert sizes.found == [(8, 2), (9, 2)] * 2


def test_validation_has_its_own_batches():
    seen = []

    class Watches(nn.BatchNorm1d):
        def forward(self, x):
            if not self.training:
                seen.append(len(x))
            return super().forward(x)

    net = nn.Sequential(nn.Linear(4, 5), Watches(5), nn.Linear(5, 3))
    loader = ArrayLoader(X, Y, bs=8)

    class Begins(Callback):
        def on_validate_begin(self, run):
            seen.clear()  # of the batches that are tried before the first step

    fitted(net, ModelData(".", loader, loader), [Begins()], epochs=1)
    assert sum(seen) == ROWS and [len(y) for _, y in loader] == [8, 8, 1]


@pytest.mark.parametrize("kind", ["pre", "post", "plugin"])
def test_whether_a_net_takes_a_single_row_is_found_out_without_hooks(kind):
    net, called = norm_net(), []
    if kind == "pre":
        net[0].register_forward_pre_hook(lambda module, x: called.append(len(x[0])))
    if kind == "post":
        net.register_forward_hook(lambda module, x, out: called.append(len(out)))
    stats = [ActivationStats()] if kind == "plugin" else []
    weights = fitted(net, ModelData(".", ArrayLoader(X, Y, bs=8)), stats)
    assert called == ([8, 9] * 2 if kind != "plugin" else [])
    assert torch.equal(weights, plain_loop(norm_net(), [8, 9]))


@pytest.mark.parametrize("first", ["lazy", "spectral norm", "weight norm"])
def test_the_hooks_of_pytorch_are_needed(first):
    net, sizes = norm_net(), Sizes()
    layer = {
        "lazy": lambda: nn.LazyLinear(5),
        "spectral norm": lambda: nn.utils.spectral_norm(net[0]),
        "weight norm": lambda: nn.utils.parametrizations.weight_norm(net[0]),
    }[first]()
    net = nn.Sequential(layer, *net[1:])
    fitted(net, ModelData(".", ArrayLoader(X, Y, bs=8)), [sizes])
    assert [n for n, _ in sizes.found] == [8, 9] * 2


def test_a_copy_of_a_view_is_one():
    view = ArrayLoader(X, Y, bs=8).view(merge_last=True)
    assert [len(x) for x, _ in copy.deepcopy(view)] == [8, 9]
