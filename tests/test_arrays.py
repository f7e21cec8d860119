"""Array-likes of every kind: training takes exactly the numbers given, or the error is clear."""

import copy
import multiprocessing
import pickle
import threading
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn, optim
from torch.utils.data import DataLoader, TensorDataset

from minifast import (
    ArrayLoader,
    ImageClassifierData,
    ModelData,
    T,
    fit,
    predict,
    set_lrs,
    validate,
)
from minifast.arrays import as_tensor
from minifast.compat.data import PassthruDataset
from minifast.plots import plot_top_losses
from minifast.plugins import OneCycle
from minifast.rows import Rows

RNG = np.random.default_rng(0)
X = RNG.normal(size=(12, 3))


def readonly(a):
    a = a.copy()
    a.flags.writeable = False
    return a


def frame(a, **options):
    return pd.DataFrame(a, columns=list("abc"), **options)


INDEXES = {
    "shuffled": [5, 3, 4, 0, 2, 1, 11, 10, 9, 8, 7, 6],
    "names": list("lkjihgfedcba"),
    "duplicates": [1] * 12,
    "floats": [i / 2 for i in range(12, 0, -1)],
}
GIVEN = {
    "float64": X,
    "float16": X.astype(np.float16),
    "byte-swapped": X.astype(">f8"),
    "longdouble": X.astype(np.longdouble),
    "Fortran": np.asfortranarray(X),
    "not contiguous": np.repeat(X, 2, axis=1)[:, ::2],
    "negative strides": X[::-1, ::-1],
    "one number for all": np.broadcast_to(np.float32(3), (12, 3)),
    "one row for all": np.broadcast_to(X[0], (12, 3)),
    "read-only": readonly(X.astype(np.float32)),
    "read-only, negative": readonly(X)[::-1],
    "int8": (X * 20).astype(np.int8),
    "uint8": (X * 20).astype(np.uint8),
    "uint16": (X * X * 20).astype(np.uint16),
    "uint32": (X * X * 20).astype(np.uint32),
    "uint64": (X * X * 20).astype(np.uint64),
    "bool": X > 0,
    "lists": X.tolist(),
    "tuples": tuple(map(tuple, X.tolist())),
    "list of arrays": list(X),
    "list of tensors": list(torch.from_numpy(X)),
    "list of tensors with gradients": list(torch.from_numpy(X).requires_grad_()),
    "masked, none of it": np.ma.array(X, mask=np.zeros_like(X, bool)),
    "DataFrame": frame(X),
    "DataFrame of several types": pd.DataFrame(
        {"a": X[:, 0], "b": X[:, 1] > 0, "c": np.arange(12)}
    ),
    "nullable DataFrame": frame(X).convert_dtypes(),
    "arrow DataFrame": frame(X).astype("float64[pyarrow]"),
    "tensor": torch.from_numpy(X),
    "tensor, transposed": torch.from_numpy(X.T.copy()).T,
    "tensor, expanded": torch.ones(1, 3).expand(12, 3),
    "tensor uint32": torch.from_numpy((X * X * 20).astype(np.uint32)),
    "float8": torch.from_numpy(X).to(torch.float8_e4m3fn),
    "conjugate": torch.from_numpy(X + 1j * X[::-1]).conj(),
    "complex128": X + 1j * X[::-1],
    "complex64": (X + 1j * X[::-1]).astype(np.complex64),
    **{f"DataFrame, {name}": frame(X, index=index) for name, index in INDEXES.items()},
}


def numbers(given):
    """What NumPy makes of it."""
    if isinstance(given, pd.DataFrame):
        return np.column_stack([given.iloc[:, i].to_numpy(np.float64) for i in range(3)])
    if isinstance(given, list) and isinstance(given[0], torch.Tensor):
        given = torch.stack(given)
    if isinstance(given, torch.Tensor):
        given = given.detach().resolve_conj()
        given = (given if given.is_complex() else given.double()).numpy()
    return np.asarray(given)


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("given", GIVEN.values(), ids=GIVEN)
def test_batches_are_exactly_the_numbers_given(given, shuffle):
    expected = numbers(given)
    loader = ArrayLoader(given, np.arange(12), bs=5, shuffle=shuffle)
    dtype = {"c": np.complex64, "i": np.int64, "u": np.int64}.get(expected.dtype.kind, np.float32)
    if expected.dtype == np.uint8:  # as images
        dtype = np.float32
    integers = isinstance(given, torch.Tensor) and not given.dtype.is_floating_point
    if integers and not given.is_complex():
        dtype = np.int64
    for x, rows in loader:
        assert x.is_contiguous() and not x.requires_grad
        assert x.numpy().dtype == dtype
        np.testing.assert_array_equal(x.resolve_conj().numpy(), expected[rows].astype(dtype))
        x.zero_()
    x, rows = next(iter(loader))  # whatever is done to a batch, the arrays are as they were
    np.testing.assert_array_equal(x.resolve_conj().numpy(), expected[rows].astype(dtype))


masked = np.ma.array(X, mask=X > 1)


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        (masked, ValueError, "has masked entries.*of 36.*filled"),
        (list(masked), ValueError, "has masked entries.*filled"),
        ([np.ma.masked, *range(11)], ValueError, "has masked entries"),
        (nn.Parameter(torch.ones(12, 3)), TypeError, "nn.Parameter.*detach"),
        ({"a": X, "b": X}, TypeError, "dict.*an array for each input.*values"),
        (pd.Series(["a", "b"] * 6, dtype="category"), TypeError, "category.*cat.codes"),
        (pd.DataFrame({"n": range(12), "town": ["a"] * 12}), TypeError, "not numbers: town"),
        (pd.Series([True, None] * 6, dtype="boolean"), TypeError, "boolean.*fillna"),
        (pd.Series(pd.date_range("2020", periods=12)), TypeError, "datetime"),
        (np.full(12, 2**63, np.uint64), ValueError, "too large for int64.*float64"),
        (torch.full((12,), 2**63, dtype=torch.uint64), ValueError, "too large for int64"),
        (np.full(12, 1e300), ValueError, "too large for float32.*up to 1e.300.*scale"),
        (np.full(12, 1e300j), ValueError, "too large for float32"),
        ([torch.ones(2), torch.ones(3)], TypeError, "cannot become a tensor"),
        ([[torch.ones(2, requires_grad=True), 1]], TypeError, "cannot become a tensor"),
        (lambda: torch.eye(12).to_sparse_csr(), TypeError, "layout.*to_dense"),
        (
            lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
            TypeError,
            "nested tensor.*to_padded_tensor",
        ),
        (
            lambda: torch.quantize_per_tensor(torch.eye(12), 0.1, 0, torch.quint8),
            TypeError,
            "dequantize",
        ),
        (
            lambda: torch.masked.masked_tensor(torch.eye(12), torch.eye(12) > 0),
            TypeError,
            "masked tensor",
        ),
        ({1, 2}, TypeError, "set"),
        ((i for i in range(3)), TypeError, "generator"),
        (None, TypeError, "NoneType"),
        (np.array([(1, 2.0)] * 12, "i4,f4"), TypeError, "cannot become a tensor"),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")  # PyTorch's, of its prototypes
def test_what_cannot_be_rows_is_a_clear_error(given, error, words):
    with pytest.raises(error, match=f"(?s)array 0 .*{words}.*more:"):
        ArrayLoader(given() if callable(given) else given, np.arange(12))


def test_infinite_and_missing_numbers_stay_what_they_are():
    x = np.array([[np.inf, -np.inf, np.nan, 1e300]])[:, :3]
    assert np.array_equal(next(iter(ArrayLoader(x, [0])))[0], x, equal_nan=True)


def test_complex_numbers_in_batches_of_another_loader():
    net = nn.Linear(3, 1, dtype=torch.complex64)
    loss = lambda p, y: (p - y).abs().mean()  # noqa: E731
    x, y = X + 1j, np.ones((12, 1)) * 1j
    opt = optim.SGD(net.parameters(), lr=0.01)
    fit(net, ModelData(".", [(x, y)]), 1, loss, opt, progress=False)
    batches = [(torch.from_numpy(x), torch.from_numpy(y))]
    with pytest.raises(RuntimeError, match=r"(?s)different types.*astype\(np.complex64\)"):
        fit(net, ModelData(".", batches), 1, loss, opt, progress=False)


def test_rows_of_a_source_that_masks_some():
    """As netCDF4's variables do."""
    rows = Rows(masked, lambda source, begin, end: source[begin:end], name="temperature")
    with pytest.raises(ValueError, match="temperature has masked entries"):
        list(ArrayLoader(rows, np.arange(12), bs=4))
    none = np.ma.array(X, mask=False)
    for x, i in ArrayLoader(Rows(none), np.arange(12), bs=4, shuffle=True):
        np.testing.assert_array_equal(x, X[i].astype(np.float32))


def test_sparse_rows_train():
    x, y = torch.from_numpy(X).float().relu(), torch.arange(12) % 2
    found = []
    for rows in x, x.to_sparse():
        torch.manual_seed(0)
        net = nn.Linear(3, 2)
        opt = optim.SGD(net.parameters(), lr=0.1)
        md = ModelData(".", ArrayLoader(rows, y, bs=5))
        fit(net, md, 2, nn.CrossEntropyLoss(), opt, progress=False)
        found.append(net.weight.detach())
    torch.testing.assert_close(*found)


def test_warning_filters_are_left_alone_by_threads():
    filters, x = list(warnings.filters), readonly(X.astype(np.float32))
    wait = threading.Barrier(4)

    def convert():
        wait.wait()
        for _ in range(300):
            as_tensor(x)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        inside = list(warnings.filters)
        threads = [threading.Thread(target=convert) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert warnings.filters == inside
    assert warnings.filters == filters


def test_a_read_only_array_is_not_copied():
    x = X.astype(np.float32)
    x.flags.writeable = False
    assert as_tensor(x).data_ptr() == x.ctypes.data == T(x).data_ptr()


# ---- masks -------------------------------------------------------------------------------


class Attends(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.encoder = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.out = nn.Linear(8, 2)

    def forward(self, x, padding):
        assert padding.dtype == torch.bool
        h = self.attention(x, x, x, key_padding_mask=padding)[0]
        h = self.encoder(h, src_key_padding_mask=padding)
        keep = ~padding[:, None, None, :].expand(-1, 1, x.shape[1], -1)
        h = h[:, None]
        h = nn.functional.scaled_dot_product_attention(h, h, h, attn_mask=keep)[:, 0]
        return self.out(h[:, 0])


def sequences():
    torch.manual_seed(0)
    x, y = torch.randn(30, 6, 8), torch.randint(0, 2, (30,))
    padding = torch.arange(6) >= torch.randint(1, 7, (30, 1))
    return x, padding, y


@pytest.mark.filterwarnings("ignore:.*nested.*:UserWarning")
@pytest.mark.parametrize("kind", ["arrays", "disk", "numpy batches", "dicts"])
def test_masks_stay_boolean(kind, tmp_path):
    x, padding, y = sequences()
    junk = x.masked_fill(padding[..., None], 99.0)  # what lies under the mask

    def loader(x):
        if kind == "arrays":
            return ArrayLoader(x, padding.numpy(), y, bs=8)
        if kind == "disk":
            np.save(tmp_path / "padding.npy", padding.numpy())
            mapped = np.load(tmp_path / "padding.npy", mmap_mode="r")
            return ArrayLoader(x, mapped, y, bs=8)
        batches = DataLoader(TensorDataset(x, padding, y), 8)
        if kind == "dicts":
            return [({"x": a, "padding": b.numpy()}, c) for a, b, c in batches]
        return [tuple(t.numpy() for t in batch) for batch in batches]

    weights = []
    for rows in DataLoader(TensorDataset(x, padding, y), 8), loader(x), loader(junk):
        torch.manual_seed(1)
        net = Attends()
        opt = optim.SGD(net.parameters(), lr=0.1)
        fit(net, ModelData(".", rows), 2, nn.CrossEntropyLoss(), opt, progress=False)
        weights.append(torch.cat([p.detach().flatten() for p in net.parameters()]))
    assert torch.equal(weights[0], weights[1])
    torch.testing.assert_close(weights[2], weights[0])
    if kind == "arrays":
        found = predict(net, loader(x))
        np.testing.assert_allclose(found, net(x, padding).detach(), rtol=1e-4, atol=1e-5)


def test_which_booleans_stay():
    flags, column = X > 0, X[:, 0] > 0

    def dtypes(*arrays):
        return [t.dtype for t in next(iter(ArrayLoader(*arrays)))]

    assert dtypes(flags) == [torch.float32] and dtypes(column) == [torch.int64]
    assert dtypes(flags, column) == [torch.float32, torch.int64]
    assert dtypes(X, flags) == [torch.float32, torch.float32]
    assert dtypes(X, flags, flags) == [torch.float32, torch.bool, torch.float32]
    assert dtypes(column, X, column) == [torch.bool, torch.float32, torch.int64]
    for copied in ArrayLoader(X, flags, column, shuffle=True):
        assert copied[1].dtype == torch.bool


def test_booleans_that_a_layer_cannot_take_are_explained():
    class Flags(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, x, flags):
            return self.layer(x) + self.layer(flags)

    net = Flags()
    md = ModelData(".", ArrayLoader(X, X > 0, np.arange(12) % 2))
    opt = optim.SGD(net.parameters(), lr=0.1)
    with pytest.raises(
        RuntimeError,
        match=r"(?s)bool of shape.*net\.layer, .*of several inputs.*astype\(np.float32",
    ):
        fit(net, md, 1, nn.CrossEntropyLoss(), opt, progress=False)


# ---- rows by position --------------------------------------------------------------------


@pytest.mark.parametrize("index", INDEXES.values(), ids=INDEXES)
def test_rows_of_pandas_are_taken_by_position(index):
    y = np.arange(12) % 3
    x, labels = frame(X, index=index), pd.Series(y, index=index)
    md = ImageClassifierData.from_arrays(".", (x, labels), (x, labels))
    for i in range(-12, 12):
        row, label = md.trn_ds[i]
        np.testing.assert_array_equal(row, X[i])
        assert label == y[i]
    assert md.trn_ds[[3, 1]][1].tolist() == y[[3, 1]].tolist()
    assert md.c == 3
    row, label = PassthruDataset(labels, x, y)[7][:2]
    assert row == y[7] and np.array_equal(label, X[7])
    rows = ArrayLoader(Rows(x), Rows(labels), bs=5, shuffle=True)
    for xb, yb in rows:
        for a, b in zip(xb, yb, strict=True):
            assert any(np.allclose(a, X[i]) and b == y[i] for i in range(12))
    names = pd.Series(["x", "y"], index=[1, 0])
    figure = plot_top_losses(np.zeros((2, 8, 8)), [[0.9, 0.1], [0.2, 0.8]], [1, 0], classes=names)
    assert figure.axes[0].get_title().startswith("says x")


def test_categories_are_their_numbers_or_an_error():
    y = pd.Series([3, 5, 3, 4] * 3, dtype="category")
    md = ImageClassifierData.from_arrays(".", (X, y), None)
    assert next(iter(md.trn_dl.in_order(12)))[1].tolist() == [3, 5, 3, 4] * 3
    assert md.c == 6


# ---- gradients ---------------------------------------------------------------------------


def test_rows_are_data_and_get_no_gradient():
    x = torch.randn(12, 3, requires_grad=True)
    body = nn.Linear(3, 3)
    for rows in x, body(x.detach()):  # a leaf, and what a graph lies behind
        net = nn.Linear(3, 2)
        opt = optim.SGD(net.parameters(), lr=0.1)
        md = ModelData(".", ArrayLoader(rows, np.arange(12) % 2, bs=5))
        fit(net, md, 2, nn.CrossEntropyLoss(), opt, progress=False)
        assert x.grad is None and body.weight.grad is None
    assert x.requires_grad


def test_rows_that_were_made_for_inference():
    with torch.inference_mode():
        x = torch.randn(12, 3) + 1
        made_within = ArrayLoader(x.double(), torch.arange(12) % 2, bs=5)
    for loader in made_within, ArrayLoader(x, torch.arange(12) % 2, bs=5):
        net = nn.Linear(3, 2)
        opt = optim.SGD(net.parameters(), lr=0.1)
        fit(net, ModelData(".", loader), 2, nn.CrossEntropyLoss(), opt, progress=False)
        with torch.inference_mode():
            assert predict(net, loader).shape == (12, 2)
            validate(net, loader, nn.CrossEntropyLoss())


# ---- nothing writes to the arrays --------------------------------------------------------


def test_metrics_and_nets_that_write_with_numpy():
    x, y = X.astype(np.float32), np.arange(12) % 3
    before = x.copy(), y.copy()

    def writes(preds, targs):
        targs.numpy()[:] = 0
        return 1.0

    class Net(nn.Linear):
        def forward(self, x):
            out = super().forward(x)
            x.detach().numpy()[:] = 7
            return out

    net = Net(3, 3)
    losses = [
        validate(net, ArrayLoader(x, y, bs=5), nn.CrossEntropyLoss(), [writes]) for _ in range(2)
    ]
    predict(net, ArrayLoader(x, y, bs=5))[:] = 9
    assert losses[0] == losses[1]
    assert np.array_equal(x, before[0]) and np.array_equal(y, before[1])


# ---- copies ------------------------------------------------------------------------------


def copies_of(value):
    return {"deepcopy": copy.deepcopy(value), "pickle": pickle.loads(pickle.dumps(value))}


@pytest.mark.parametrize("way", ["deepcopy", "pickle"])
def test_copies_hand_out_their_own_rows_in_the_same_order(way):
    loader = ArrayLoader(X, X > 0, np.arange(12), bs=5, shuffle=True, seed=3)
    md = ImageClassifierData.from_arrays(".", (X, np.arange(12)), (X, np.arange(12)), seed=3)
    for made in (
        loader,
        loader.view(merge_last=True, shard=(0, 2)),
        md.trn_dl,
        ArrayLoader(X, X),
    ):
        copied = copies_of(made)[way]
        assert len(copied) == len(made)
        for ours, theirs in zip(made, copied, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
        copied.arrays[0].zero_()
        assert all(not x.any() for x, *_ in copied)
        assert all(x.any() for x, *_ in made)
    copied = copies_of(md)[way]
    assert copied.c == 12 and copied.trn_ds.x is not md.trn_ds.x
    assert [len(x) for x, _ in copied.val_dl] == [12]


@pytest.mark.parametrize("way", ["deepcopy", "pickle"])
def test_copies_of_memory_maps_are_of_the_same_files(way, tmp_path):
    np.save(tmp_path / "x.npy", RNG.normal(size=(2000, 3)))
    np.save(tmp_path / "y.npy", np.arange(2000))
    x, y = (np.load(tmp_path / f"{name}.npy", mmap_mode="r") for name in "xy")
    md = ImageClassifierData.from_arrays(".", (x[10:], y[10:]), (x[:10], y[:10]), seed=1)
    assert len(pickle.dumps(md)) < 20_000
    copied = copies_of(md)[way]
    for ours, theirs in zip((md.trn_ds, md.val_ds), (copied.trn_ds, copied.val_ds), strict=True):
        assert isinstance(theirs.x, np.memmap)
        np.testing.assert_array_equal(ours.x, theirs.x)
        np.testing.assert_array_equal(ours.y, theirs.y)
    for ours, theirs in zip(md.trn_dl, copied.trn_dl, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert copied.c == md.c == 2000


def sums(loader):
    return [float(x.sum()) for x, *_ in loader]


def test_loaders_go_to_a_process_that_is_spawned(tmp_path):
    np.save(tmp_path / "x.npy", X)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    loaders = [
        ArrayLoader(X, np.arange(12), bs=5, shuffle=True, seed=1),
        ArrayLoader(mapped, np.arange(12), bs=5).view(merge_last=True),
    ]
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        found = pool.map(sums, loaders)
    assert found == list(map(sums, loaders))


# ---- learning rates ----------------------------------------------------------------------


def two_groups(lr):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))
    groups = [{"params": list(net[0].parameters())}, {"params": list(net[2].parameters())}]
    return net, optim.Adam(groups, lr=lr)


def test_groups_that_share_a_tensor_get_a_learning_rate_each():
    shared = torch.tensor(0.01)
    _, opt = two_groups(shared)
    first, second = opt.param_groups
    assert first["lr"] is second["lr"]
    set_lrs(opt, 0.5)
    assert first["lr"] is second["lr"] is shared and float(shared) == 0.5
    set_lrs(opt, [1e-3, 1e-2])
    assert first["lr"] is shared
    assert [float(g["lr"]) for g in opt.param_groups] == pytest.approx([1e-3, 1e-2])
    own = second["lr"]
    set_lrs(opt, [0.2, 0.1])
    assert second["lr"] is own and float(own) == pytest.approx(0.1)


def test_one_cycle_over_groups_that_share_a_tensor():
    weights = []
    for lr in torch.tensor(0.01), 0.01:
        net, opt = two_groups(lr)
        md = ModelData(".", ArrayLoader(X, np.arange(12) % 3, bs=5))
        fit(net, md, 2, nn.CrossEntropyLoss(), opt, callbacks=[OneCycle([0.1, 0.01])],
            progress=False)  # fmt: skip
        weights.append(torch.cat([p.detach().flatten() for p in net.parameters()]))
    torch.testing.assert_close(*weights)
