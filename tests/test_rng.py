"""Random generators: every one that draws for a loader is saved, compared and restored."""

import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Sampler,
    Subset,
    TensorDataset,
    WeightedRandomSampler,
)

from minifast import ArrayLoader, Callback, ModelData, fit
from minifast.checkpoint import CheckpointError, snapshot
from minifast.reach import reachable
from minifast.rng import generators, random_state, set_random_state
from minifast.testing import example_data, example_fit

X = torch.randn(23, 3, generator=torch.Generator().manual_seed(0))
Y = X.sum(1, keepdim=True)
DATA = TensorDataset(X, Y)


def seeded(n=7):
    return torch.Generator().manual_seed(n)


class Order(Sampler):
    """Rows in an order from a generator of NumPy's or Python's."""

    def __init__(self, rng):
        self.rng = rng

    def __len__(self):
        return len(X)

    def __iter__(self):
        rows = list(range(len(X)))
        self.rng.shuffle(rows)
        return iter(rows)


class Noisy(Dataset):
    """Rows with noise from a generator of the dataset's."""

    def __init__(self, rng):
        self._rng = rng

    def __len__(self):
        return len(X)

    def __getitem__(self, i):
        return X[i] + float(self._rng.normal()), Y[i]


class Stream(IterableDataset):
    """Rows drawn with replacement, by a generator that belongs to Python's `random`."""

    def __init__(self):
        self.rng = random.Random(3)

    def __iter__(self):
        return iter([(X[i], Y[i]) for i in self.rng.choices(range(len(X)), k=23)])


def with_noise(rng):
    return lambda x: x + torch.from_numpy(rng.normal(size=x.shape).astype(np.float32))


def batches_of_a_sampler():
    sampler = BatchSampler(RandomSampler(DATA, generator=seeded()), 5, drop_last=False)
    return DataLoader(DATA, batch_sampler=sampler)


LOADERS = {
    "arrays": lambda: ArrayLoader(X, Y, bs=5, shuffle=True),
    "arrays, seeded": lambda: ArrayLoader(X, Y, bs=5, shuffle=True, seed=3),
    "arrays, tfm": lambda: ArrayLoader(X, Y, bs=5, tfm=with_noise(np.random.default_rng(1))),
    "shuffled": lambda: DataLoader(DATA, 5, shuffle=True),
    "shuffled, generator": lambda: DataLoader(DATA, 5, shuffle=True, generator=seeded()),
    "random sampler": lambda: DataLoader(DATA, 5, sampler=RandomSampler(DATA, generator=seeded())),
    "weighted": lambda: DataLoader(
        DATA, 5, sampler=WeightedRandomSampler(range(1, 24), 23, generator=seeded())
    ),
    "batch sampler": batches_of_a_sampler,
    "NumPy sampler": lambda: DataLoader(DATA, 5, sampler=Order(np.random.default_rng(1))),
    "RandomState sampler": lambda: DataLoader(DATA, 5, sampler=Order(np.random.RandomState(1))),
    "Python sampler": lambda: DataLoader(DATA, 5, sampler=Order(random.Random(1))),
    "noisy": lambda: DataLoader(Noisy(np.random.default_rng(1)), 5),
    "noisy subset": lambda: DataLoader(Subset(Noisy(np.random.RandomState(1)), range(20)), 5),
    "stream": lambda: DataLoader(Stream(), 5),
    "workers": lambda: DataLoader(DATA, 5, shuffle=True, num_workers=1),
    "lasting workers": lambda: DataLoader(
        DATA, 5, shuffle=True, num_workers=1, persistent_workers=True
    ),
    "lasting workers, generator": lambda: DataLoader(
        DATA, 5, shuffle=True, num_workers=1, persistent_workers=True, generator=seeded()
    ),
}


class Rows(Callback):
    """Notes what is learned from, and keeps the states after some batches."""

    def __init__(self, keep=(), ahead=False):
        self.seen, self.states, self.keep, self.ahead = {}, {}, keep, ahead

    def on_batch_end(self, run):
        self.seen[run.step] = run.x.clone()
        if self.ahead:  # as `GradAccumulation` does, which takes the next batch from the loader
            assert run.last_batch in (True, False)
        if run.step in self.keep:
            run.after(lambda run: self.states.__setitem__(run.step, snapshot(run)))

    def on_epoch_end(self, run):
        if -run.epoch in self.keep:
            run.after(lambda run: self.states.__setitem__(-run.epoch, snapshot(run)))


def trained(loader, seed=0, keep=(), resume=None, epochs=3, steps=None, ahead=False):
    torch.manual_seed(seed)
    np.random.seed(seed)
    net = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 1))
    opt = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
    rows = Rows(keep, ahead)
    fit(
        net, ModelData(".", loader), epochs, nn.MSELoss(), opt, callbacks=[rows], steps=steps,
        resume=resume, progress=False,
    )  # fmt: skip
    return rows, [p.detach() for p in net.parameters()]


def assert_resumes(make, keep=(0, -1, 2, 5, 8, 11), **options):
    whole, weights = trained(make(), keep=keep, **options)
    assert len(whole.states) == len(keep)
    for place, state in whole.states.items():
        rows, ends = trained(make(), seed=99, resume=state, **options)
        for step, x in rows.seen.items():
            assert torch.equal(x, whole.seen[step]), (place, step)
        assert all(map(torch.equal, ends, weights)), place


@pytest.mark.parametrize("kind", LOADERS)
def test_a_resumed_run_draws_what_the_unbroken_one_drew(kind):
    keep = (0, 2, 8) if "workers" in kind else (0, -1, 2, 5, 8, 11)  # each starts a process
    assert_resumes(LOADERS[kind], keep)


@pytest.mark.parametrize("kind", [kind for kind in LOADERS if "workers" not in kind])
def test_a_run_that_had_drawn_the_next_batch_already_draws_it_again(kind):
    assert_resumes(LOADERS[kind], ahead=True)
    assert_resumes(LOADERS[kind], keep=(1, 3, 4), steps=3, ahead=True)


def test_lasting_workers_that_run_already_are_started_again():
    make = LOADERS["lasting workers"]
    whole, weights = trained(make(), keep=[2])
    used = make()
    next(iter(used))
    rows, ends = trained(used, seed=99, resume=whole.states[2])
    assert all(torch.equal(x, whole.seen[step]) for step, x in rows.seen.items())
    assert all(map(torch.equal, ends, weights))


class Stateful:
    """A loader that saves its place as torchdata's StatefulDataLoader does."""

    def __init__(self):
        self.passes, self.place, self.finished, self.reads = 0, 0, False, 0
        self.loaded = False

    def __iter__(self):
        if not self.loaded or self.finished:
            self.passes, self.place, self.finished = self.passes + 1, 0, False
        self.loaded = False
        return self.batches(np.random.default_rng(self.passes).permutation(20).reshape(5, 4))

    def batches(self, orders):
        while self.place < 5:
            self.place += 1
            self.reads += 1
            yield X[orders[self.place - 1]], Y[orders[self.place - 1]]
        self.finished = True

    def state_dict(self):
        return {"passes": self.passes, "place": self.place, "finished": self.finished}

    def load_state_dict(self, state):
        self.passes, self.place, self.finished = state.values()
        self.loaded = True


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("steps", [None, 3, 5])
def test_a_loader_that_saves_its_place_continues_from_there(steps, ahead):
    per_epoch = steps or 5
    keep = (0, -1, 2, per_epoch, per_epoch + 2)
    whole, weights = trained(Stateful(), keep=keep, steps=steps, ahead=ahead)
    for place, state in whole.states.items():
        loader = Stateful()
        rows, ends = trained(loader, seed=99, resume=state, steps=steps, ahead=ahead)
        assert all(torch.equal(x, whole.seen[step]) for step, x in rows.seen.items()), place
        assert all(map(torch.equal, ends, weights)), place
        assert loader.reads == len(rows.seen)  # what came before is not read again


@pytest.mark.parametrize(
    "state, make",
    [
        ("arrays", "arrays, seeded"),
        ("arrays, seeded", "arrays"),
        ("random sampler", "shuffled"),
        ("shuffled", "NumPy sampler"),
    ],
)
@pytest.mark.parametrize("place", [0, 2])
def test_other_generators_are_refused(state, make, place):
    whole, _ = trained(LOADERS[state](), keep=[place], epochs=1)
    with pytest.raises(CheckpointError, match="generators of the loader"):
        trained(LOADERS[make](), resume=whole.states[place])


@pytest.mark.parametrize("odd", [3, (i for i in range(3)), "seed", [torch.Generator], None])
def test_an_attribute_that_is_named_generator_may_be_anything(odd):
    class Loader(list):
        generator = odd

    loader = Loader([(X, Y)])
    loader.generator = odd
    trained(loader, epochs=1)


BITS = [np.random.MT19937, np.random.PCG64, np.random.PCG64DXSM, np.random.Philox, np.random.SFC64]


@pytest.mark.parametrize("bits", BITS)
def test_any_bit_generator_of_numpy(bits):
    before = np.random.get_bit_generator()

    class Loader:
        def __init__(self):
            self.each = [np.random.Generator(bits(1)), np.random.RandomState(bits(2)), bits(3)]

        def draws(self):
            generator, legacy, raw = self.each
            return [np.random.rand(), generator.normal(), legacy.normal(), raw.random_raw()]

    loader = Loader()
    try:
        np.random.set_bit_generator(bits(4))
        loader.draws()
        state = random_state(loader)
        drawn = loader.draws()
        set_random_state(state, loader)
        assert loader.draws() == drawn
        example_fit([], epochs=1)
    finally:
        np.random.set_bit_generator(before)


@pytest.mark.parametrize("pos", [-1, 625, 10**6])
def test_a_place_outside_of_the_generators_numbers_is_refused(pos):
    state = random_state(None)  # NumPy itself would read there
    state["numpy"]["state"]["pos"] = pos
    with pytest.raises(ValueError, match="pos"):
        set_random_state(state, None)


def test_what_an_object_holds_is_found_once_by_its_shortest_path():
    class Holder:
        pass

    top, inner, rng = Holder(), Holder(), random.Random()
    top.inner, inner.back, inner.rng, top.rows = inner, top, rng, [rng] * 1000
    top.twice = {"a": [rng]}
    assert reachable(top, random.Random) == {".inner.rng": rng}


def test_generators_are_looked_for_in_data_and_its_functions():
    rng = np.random.default_rng(0)
    loader = ArrayLoader(X, Y, tfm=lambda x: x + rng.normal())
    assert list(generators(loader).values()) == [rng]
    assert generators(example_data().trn_dl) == {}
