"""Rows that memory does not hold: read in chunks, ahead, in a true order; and streams."""

import copy
import gc
import itertools
import math
import pickle
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn, optim

import minifast.chunks
import minifast.rows
from minifast import (
    ArrayLoader,
    Callback,
    ImageClassifierData,
    ModelData,
    Run,
    accuracy,
    fit,
    iter_predict,
    predict,
    predict_with_targs,
)
from minifast.plugins import Checkpoint
from minifast.rows import Blocks, Keyed, Rows, shuffled


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many chunks of few rows, so that their borders are in the way."""
    monkeypatch.setattr(minifast.chunks, "CHUNK_BYTES", 500)
    monkeypatch.setattr(minifast.rows, "NEARBY", 50)


def mapped(folder: Path, a: np.ndarray, name: str = "x", mode: Any = "r") -> Any:
    np.save(folder / f"{name}.npy", a)
    return np.load(folder / f"{name}.npy", mmap_mode=mode)


# ---- orders --------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 3, 5, 64, 65, 1000, 4097])
def test_each_order_has_each_row_once(n: int) -> None:
    whole = torch.arange(n)
    for order in (Keyed(n, 7), Blocks(n, 10, 16, 7), shuffled(n, None)):
        assert torch.equal(order(0, n).sort().values, whole)
        cuts = [0, n // 3, n // 3, n // 2, n]
        parts = [order(a, b) for a, b in itertools.pairwise(cuts)]
        assert torch.equal(torch.cat(parts), order(0, n))


def test_a_computed_order_is_like_one_drawn() -> None:
    stats = pytest.importorskip("scipy.stats")
    n, times = 13, 4000
    orders = torch.stack([Keyed(n, key)(0, n) for key in range(times)])
    where = np.array([[(orders[:, i] == row).sum().item() for row in range(n)] for i in range(n)])
    # Every row is as often at every place: n² counts, (n - 1)² of them free.
    found = ((where - times / n) ** 2 / (times / n)).sum()
    assert 0.001 < stats.chi2.sf(found, (n - 1) ** 2) < 0.999
    after = np.zeros((n, n))
    for a, b in itertools.pairwise(orders.T.tolist()):
        np.add.at(after, (a, b), 1)
    after = after[~np.eye(n, dtype=bool)]  # and every row as often behind every other
    p = stats.chisquare(after).pvalue
    assert 0.001 < p < 0.999
    big = Keyed(10**6, 1)(0, 10**6).double()
    assert abs(np.corrcoef(big[:-1], big[1:])[0, 1]) < 0.005
    assert abs(np.corrcoef(big, np.arange(10**6))[0, 1]) < 0.005


def test_blocks_lie_together() -> None:
    rows = Blocks(10_000, 100, 16, 3)(0, 10_000)
    group = rows[: 16 * 100]
    assert len(set((group // 100).tolist())) == 16
    assert not torch.equal(group, group.sort().values)


# ---- the same as in memory -----------------------------------------------------------------


def trained(x: Any, y: Any, x_valid: Any, y_valid: Any, **options: Any) -> tuple[Any, torch.Tensor]:
    torch.manual_seed(5)
    md = ImageClassifierData.from_arrays(".", (x, y), (x_valid, y_valid), bs=16, **options)
    net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.Linear(8, 3))
    opt = optim.SGD(net.parameters(), 0.1)
    history = fit(net, md, 3, nn.CrossEntropyLoss(), opt, [accuracy], progress=False)
    return history, torch.cat([t.flatten().float() for t in net.state_dict().values()])


def test_training_from_a_disk_is_training_from_memory_to_the_bit(
    arrays: Any, tmp_path: Path
) -> None:
    x, y, x_valid, y_valid = arrays
    x, y = x[:193], y[:193]  # the last batch is a lone row, which BatchNorm cannot take
    history, weights = trained(x, y, x_valid, y_valid)
    away = [mapped(tmp_path, a, name) for a, name in zip(arrays, "abcd", strict=True)]
    away[:2] = away[0][:193], away[1][:193]
    same, equal = trained(*away)
    assert torch.equal(weights, equal)
    for column in ("trn_loss", "accuracy"):
        assert history[column] == same[column]
    assert history["val_loss"] == pytest.approx(same["val_loss"], rel=1e-6)  # other batches


def test_an_order_that_memory_does_not_hold(
    arrays: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(minifast.rows, "MOST_LISTED", 10)
    loader = ArrayLoader(mapped(tmp_path, np.arange(1000)), bs=32, shuffle=True)
    passes = [torch.cat([x for (x,) in loader]) for _ in range(2)]
    for rows in passes:
        assert torch.equal(rows.sort().values, torch.arange(1000))
    assert not torch.equal(*passes)
    torch.manual_seed(1)
    first = torch.cat([x for (x,) in loader])
    torch.manual_seed(1)
    assert torch.equal(torch.cat([x for (x,) in loader]), first)


@pytest.mark.parametrize("shuffle", [False, True, "blocks"])
@pytest.mark.parametrize("kind", ["map", "memory", "table"])
def test_rows_stay_together_with_their_labels(tmp_path: Path, shuffle: Any, kind: str) -> None:
    x = np.arange(300, dtype=np.uint8).reshape(100, 3) % 251
    y = np.arange(100, dtype=np.uint8)
    source: Any = {"map": lambda: mapped(tmp_path, x), "memory": lambda: x,
                   "table": lambda: Rows(Table(x))}[kind]()  # fmt: skip
    loader = ArrayLoader(source, y, bs=8, shuffle=shuffle, seed=4)
    for _ in range(2):
        batches = list(loader)
        assert len(batches) == len(loader) == len(iter(loader)) == 13
        xs, ys = (torch.cat(parts) for parts in zip(*batches, strict=True))
        assert xs.dtype == torch.float32 and ys.dtype == torch.int64
        assert torch.equal(xs, torch.from_numpy(x).float()[ys])
        assert torch.equal(ys.sort().values, torch.arange(100))
        assert torch.equal(ys, torch.arange(100)) == (not shuffle)


class Table:
    """Something with a length and slices, and nothing else."""

    def __init__(self, x: np.ndarray) -> None:
        self.x, self.slices = x, 0

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, part: slice) -> Any:
        assert isinstance(part, slice)
        self.slices += 1
        return self.x[part]


class Stored(Table):
    """A table that keeps its rows in chunks, as h5py and zarr do; remembers what was asked for."""

    def __init__(self, x: np.ndarray, rows: int) -> None:
        super().__init__(x)
        self.shape, self.chunks, self.asked = x.shape, (rows, *x.shape[1:]), []

    def __getitem__(self, part: slice) -> Any:
        self.asked.append((part.start, part.stop))
        return super().__getitem__(part)


def test_what_is_stored_together_is_read_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(minifast.rows, "NEARBY_SLICED", 0)
    monkeypatch.setattr(minifast.rows, "CHUNK_BYTES", 100_000)
    monkeypatch.setattr(minifast.chunks, "CHUNK_BYTES", 4000)  # 1000 rows: a tenth of them
    x = np.arange(10_000, dtype=np.int32)
    table = Stored(x, 100)
    loader = ArrayLoader(table, bs=50, shuffle=True)
    table.asked.clear()
    rows = torch.cat([rows for (rows,) in loader])
    assert torch.equal(rows.sort().values, torch.arange(10_000))
    assert len(table.asked) <= 10 * 100  # of each chunk of the table at most once a reading
    assert all(a // 100 == (b - 1) // 100 or b - a <= 200 for a, b in table.asked)


def test_a_stretch_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(minifast.rows, "CHUNK_BYTES", 4 * 50)
    table = Stored(np.arange(1000, dtype=np.int32), 20)
    rows = Rows(table)
    wanted = torch.tensor([999, 3, 3, 500, 1])
    assert torch.equal(rows.index_select(0, wanted), wanted.int())
    table.asked.clear()
    assert torch.equal(rows.index_select(0, torch.arange(1000)), torch.arange(1000).int())
    assert max(b - a for a, b in table.asked) == 40  # whole chunks, within what memory may take


@pytest.mark.parametrize(("stored", "calls"), [(1, 950), (7, 700), (300, 45)])
def test_by_blocks_each_block_is_read_once(
    stored: int, calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(minifast.rows, "NEARBY_SLICED", 0)
    table = Stored(np.arange(5000, dtype=np.int32), stored)
    loader = ArrayLoader(table, bs=9, shuffle="blocks", seed=1)
    table.asked.clear()
    rows = torch.cat([rows for (rows,) in loader])
    assert torch.equal(rows.sort().values, torch.arange(5000))
    # Where a batch begins in one group and ends in the next, its rows of the next come before it.
    groups = -(-5000 // math.prod(minifast.chunks.blocks(loader)))
    assert sum(b - a for a, b in table.asked) <= 5000 + groups * 8 * (stored - 1)
    assert len(table.asked) <= calls


def a_source(kind: str, folder: Path, x: np.ndarray) -> Any:
    if kind == "arrow":
        # Newer ones refuse NumPy 1 when they are imported.
        pa = pytest.importorskip("pyarrow", exc_type=ImportError)
        table = pa.table({str(i): x[:, i] for i in range(x.shape[1])})
        return Rows(table, lambda t, a, b: np.stack(t.slice(a, b - a).columns, axis=1))
    if kind == "zarr":
        return pytest.importorskip("zarr").array(x, chunks=(7, 4))
    if kind == "dask":
        return pytest.importorskip("dask.array").from_array(x, chunks=(7, 4))
    h5py = pytest.importorskip("h5py")
    with h5py.File(folder / "rows.h5", "w") as file:
        options = {"chunks": (7, 4), "compression": "gzip"} if kind == "h5py in chunks" else {}
        file.create_dataset("x", data=x, **options)
    return h5py.File(folder / "rows.h5")["x"]


@pytest.mark.parametrize("kind", ["h5py", "h5py in chunks", "zarr", "dask", "arrow"])
@pytest.mark.parametrize("shuffle", [False, True, "blocks"])
def test_other_libraries_arrays(kind: str, shuffle: Any, tmp_path: Path) -> None:
    x, y = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32), np.arange(50)
    source = a_source(kind, tmp_path, x)
    loader = ArrayLoader(source, y, bs=8, shuffle=shuffle)
    assert loader.out_of_core
    assert loader.arrays[0].stored == (1 if kind in ("h5py", "arrow") else 7)
    xs, ys = (torch.cat(parts) for parts in zip(*loader, strict=True))
    assert torch.equal(xs, torch.from_numpy(x)[ys])
    assert torch.equal(ys.sort().values, torch.arange(50))
    if kind.startswith("h5py"):
        source.file.close()


# ---- memory, threads, errors -----------------------------------------------------------------


def test_nothing_is_copied_and_the_file_is_read(tmp_path: Path) -> None:
    x = mapped(tmp_path, np.arange(400, dtype=np.float64).reshape(100, 4))
    loader = ArrayLoader(x, bs=8)
    rows = loader.arrays[0]
    assert rows.source is x and rows.file is not None
    (batch,) = next(iter(loader))
    batch.zero_()
    assert x[0, 1] == 1


def test_what_was_written_to_a_private_mapping_is_kept(tmp_path: Path) -> None:
    x = mapped(tmp_path, np.zeros((50, 4), np.float32), mode="c")
    x[10] = 5
    loader = ArrayLoader(x, bs=8, shuffle=True)
    assert loader.arrays[0].file is None
    for _ in range(2):
        assert sum(float(b.sum()) for (b,) in loader) == 20


def test_what_only_was_a_memory_map_is_in_memory(tmp_path: Path) -> None:
    x = mapped(tmp_path, np.ones((50, 4), np.float32))
    assert not ArrayLoader(x / 2).out_of_core
    assert ArrayLoader(x[5:20]).out_of_core and ArrayLoader(x.reshape(25, 2, 4)).out_of_core


def test_parts_of_a_map_are_found_in_its_file(tmp_path: Path) -> None:
    a = np.arange(600, dtype=">i4").reshape(100, 2, 3)
    x = mapped(tmp_path, a)
    places = torch.tensor([3, 7, 8, 1, 1, 40])
    for part, ours in (
        (x[20:80], True), (x.reshape(200, 3), True), (x[10:][5:60], True),
        (x[::2], False), (x[:, :1], False), (x.T, False), (np.asarray(x[20:80]), True),
    ):  # fmt: skip
        rows = Rows(part)
        assert (rows.file is not None) == ours
        if len(part) > 40:
            wanted = torch.from_numpy(np.array(part).astype(np.int32))[places]
            assert torch.equal(rows.index_select(0, places), wanted)
        assert rows[-1].tolist() == part[-1].tolist()


def test_a_file_that_was_replaced_is_not_read_for_the_mapped_one(tmp_path: Path) -> None:
    x = mapped(tmp_path, np.zeros((50, 4), np.float32))
    other = tmp_path / "other.npy"
    np.save(other, np.ones((50, 4), np.float32))
    other.replace(tmp_path / "x.npy")
    rows = Rows(x)
    assert rows.file is None and rows[7].sum() == 0
    (tmp_path / "x.npy").unlink()
    assert Rows(x).file is None


def test_a_file_that_is_cut_short_is_an_error(tmp_path: Path) -> None:
    x = mapped(tmp_path, np.zeros((5000, 4), np.float32))
    loader = ArrayLoader(x, bs=8)
    with (tmp_path / "x.npy").open("r+b") as file:
        file.truncate(8000)
    with pytest.raises(OSError, match="ends before row"):
        list(loader)


def readers() -> int:
    return sum(thread.name.startswith("minifast-reader") for thread in threading.enumerate())


def test_no_thread_stays_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loader = ArrayLoader(mapped(tmp_path, np.zeros((5000, 4))), bs=8)
    batches = iter(loader)
    list(batches)
    assert readers() == 0  # it is in the cache
    monkeypatch.setattr(minifast.rows, "WAITING", -1)
    rows = torch.cat([x for (x,) in loader])
    assert torch.equal(rows, torch.zeros(5000, 4)) and readers() == 0
    batches = iter(loader)
    for _ in range(12):
        next(batches)
    assert readers() == 1
    del batches
    assert readers() == 0


@pytest.mark.parametrize("waiting", [-1, 0.25])
def test_an_error_of_the_source_reaches_the_loop(
    waiting: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(minifast.rows, "WAITING", waiting)

    class Broken(Table):
        def __getitem__(self, part: slice) -> Any:
            if part.start and part.start > 60:
                raise OSError("the disk is gone")
            return super().__getitem__(part)

    net = nn.Linear(2, 1)
    md = ModelData(".", ArrayLoader(Rows(Broken(np.zeros((100, 2)))), np.zeros((100, 1)), bs=8))
    with pytest.raises(OSError, match="the disk is gone"):
        fit(net, md, 1, nn.MSELoss(), optim.SGD(net.parameters(), 0.1), progress=False)
    assert readers() == 0


def test_a_source_that_gives_other_rows_is_told() -> None:
    rows = Rows(Table(np.zeros((100, 2))), lambda source, begin, end: source[begin : end + 1])
    with pytest.raises(ValueError, match="another number of rows"):
        rows.between(0, 2)
    with pytest.raises(ValueError, match=r"shuffle.*ways"):
        ArrayLoader(np.zeros(3), shuffle="rows")


def test_rows_in_order_are_copies_too() -> None:
    x = np.arange(12.0).reshape(6, 2)
    rows = Rows(Table(x))
    rows.between(0, 6).zero_()
    rows[2].zero_()
    assert x.sum() == 66


@pytest.mark.parametrize("waiting", [-1, 0.25])
def test_whoever_reads_may_fill_one_array_again_and_again(
    waiting: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(minifast.rows, "WAITING", waiting)  # a thread that reads ahead, and none
    whole = np.arange(2000.0).reshape(1000, 2)
    buffer = np.empty((1000, 2))

    def read(source: Any, begin: int, end: int) -> np.ndarray:
        buffer[: end - begin] = whole[begin:end]
        return buffer[: end - begin]

    for shuffle in (False, True, "blocks"):
        loader = ArrayLoader(Rows(whole, read), np.arange(1000), bs=4, shuffle=shuffle)
        for x, y in loader:
            assert torch.equal(x, torch.from_numpy(whole).float()[y])


def test_copies_read_the_same_file(tmp_path: Path) -> None:
    a = np.arange(600, dtype=">i4").reshape(200, 3)
    rows = Rows(mapped(tmp_path, a)[20:120], name="those")
    same, sent = copy.deepcopy(rows), pickle.dumps(rows)
    assert len(sent) < 1000  # not the rows
    del rows
    gc.collect()
    others = [(tmp_path / "x.npy").open("rb") for _ in range(20)]  # descriptors of other files
    for each in (same, pickle.loads(sent)):
        assert each.name == "those" and each.file is not None
        assert torch.equal(each.between(5, 7), torch.from_numpy(a[25:27].astype(np.int32)))
    for file in others:
        file.close()
    table = pickle.loads(pickle.dumps(Rows(Table(a))))
    assert torch.equal(table.between(0, 2), torch.from_numpy(a[:2].astype(np.int32)))


def test_labels_that_stay_on_the_disk(tmp_path: Path) -> None:
    zarr = pytest.importorskip("zarr")
    x, y = np.zeros((100, 3), np.float32), np.arange(100) % 7
    away, labels = (zarr.array(a, chunks=(9, *a.shape[1:])) for a in (x, y))
    md = ImageClassifierData.from_arrays(".", (away, labels), (away, labels), test=away)
    assert (md.c, len(md.trn_ds), len(md.test_ds), md.sz) == (7, 100, 100, 3)
    assert predict(nn.Linear(3, 2), md.test_dl).shape == (100, 2)


def test_quantities_that_stay_on_the_disk(tmp_path: Path) -> None:
    y = mapped(tmp_path, np.arange(100, dtype=np.uint8))
    md = ImageClassifierData.from_arrays(".", (np.zeros((100, 2)), y), None, continuous=True)
    assert md.trn_dl.out_of_core and md.is_reg
    assert next(iter(md.trn_dl))[1].dtype == torch.float32


# ---- resume --------------------------------------------------------------------------------


class StopAt(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_batch_end(self, run: Run) -> None:
        if run.step == self.step:
            run.pause("here")


def test_going_on_skips_without_reading(arrays: Any, tmp_path: Path) -> None:
    x, y, *_ = arrays
    table = Table(x)
    path = tmp_path / "run.ckpt"

    def run(*callbacks: Callback, resume: Any = None) -> torch.Tensor:
        torch.manual_seed(5)
        table.slices = 0
        md = ModelData(".", ArrayLoader(Rows(table), y, bs=4, shuffle=True))
        net = nn.Linear(6, 3)
        opt = optim.SGD(net.parameters(), 0.1, momentum=0.9)
        fit(
            net, md, 2, nn.CrossEntropyLoss(), opt, callbacks=callbacks, progress=False,
            resume=resume,
        )  # fmt: skip
        return net.weight.detach()

    whole = run()
    read = table.slices
    run(Checkpoint(path), StopAt(95))
    assert torch.equal(run(Checkpoint(path), resume=path), whole)
    assert table.slices < read / 4  # 7 batches of 102


# ---- predictions ---------------------------------------------------------------------------


def test_predictions_go_where_they_fit(arrays: Any, net: nn.Module, tmp_path: Path) -> None:
    x, y, *_ = arrays
    loader = ArrayLoader(mapped(tmp_path, x), y, bs=16, shuffle=True)
    expected = predict(net, ArrayLoader(x, y))
    np.testing.assert_array_equal(predict(net, loader), expected)
    _, targs = predict_with_targs(net, loader)
    np.testing.assert_array_equal(targs, y)

    found = predict(net, loader, out=tmp_path / "preds.npy")
    assert isinstance(found, np.memmap)
    np.testing.assert_array_equal(np.load(tmp_path / "preds.npy"), expected)
    array = np.empty_like(expected)
    assert predict(net, loader, out=array) is array
    np.testing.assert_array_equal(array, expected)
    parts = iter_predict(net, loader)
    assert net.training
    np.testing.assert_array_equal(np.concatenate(list(parts)), expected)
    assert net.training


def test_a_file_of_predictions_is_whole_or_not_there(
    arrays: Any, net: nn.Module, tmp_path: Path
) -> None:
    x, *_ = arrays
    before = sorted(tmp_path.iterdir())
    short = [torch.from_numpy(x[:10]), torch.zeros(10, 7)]  # the second batch has other columns
    with pytest.raises(Exception, match="mat1"):
        predict(net, Lengthy(short, 20), out=tmp_path / "preds.npy")
    with pytest.raises(ValueError, match="10 rows"):
        predict(net, Lengthy(short[:1], 20), out=tmp_path / "preds.npy")
    with pytest.raises(TypeError, match="how many rows"):
        predict(net, short, out=str(tmp_path / "preds.npy"))
    assert sorted(tmp_path.iterdir()) == before
    for wrong in (np.empty((9, 3)), np.empty((11, 3)), np.empty((10, 2))):
        with pytest.raises(ValueError, match="shape"):
            predict(net, short[:1], out=wrong)


@pytest.mark.parametrize("second", [torch.zeros(10, 2), torch.zeros(10, 3, dtype=torch.double)])
def test_rows_of_two_kinds_are_no_file(second: torch.Tensor, tmp_path: Path) -> None:
    batches = [torch.zeros(10, 3), second]
    with pytest.raises(ValueError, match="cannot take the predictions"):
        predict(nn.Identity(), Lengthy(batches, 20), out=tmp_path / "preds.npy")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("out", [np.empty(10, int), np.empty(10, bool), torch.empty(10), [], 3])
def test_no_prediction_is_cut_down_to_fit(out: Any) -> None:
    with pytest.raises(ValueError, match="cannot take the predictions"):
        predict(nn.Identity(), [torch.zeros(10)], out=out)


def test_predictions_go_into_arrays_of_other_libraries(tmp_path: Path) -> None:
    zarr = pytest.importorskip("zarr")
    out = zarr.zeros((10, 2), dtype=np.float64)
    assert predict(nn.Identity(), [torch.ones(10, 2)], out=out) is out
    assert out[:].sum() == 20


def test_predictions_are_nobodys_rows() -> None:
    x = np.ones((5000, 3), np.float32)
    loader = ArrayLoader(x, np.zeros(5000))
    for net in (nn.Identity(), nn.Flatten()):
        for preds in iter_predict(net, loader):
            preds[:] = 7
    assert x.max() == 1


class Lengthy(list[Any]):
    def __init__(self, batches: list[Any], rows: int) -> None:
        super().__init__(batches)
        self.dataset = range(rows)


# ---- streams -------------------------------------------------------------------------------


class Stream:
    """Batches without an end and without a length."""

    def __init__(self) -> None:
        self.given = 0

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        self.given += 1
        x = torch.full((4, 2), float(self.given))
        return x, x.sum(1, keepdim=True)


def test_a_stream_has_as_many_batches_as_are_asked_for() -> None:
    net, stream, seen = nn.Linear(2, 1), Stream(), []

    class Sees(Callback):
        def on_batch_end(self, run: Run) -> None:
            seen.append((run.epoch, run.batch, int(run.x[0, 0])))
            assert run.n_batches == 3

    opt = optim.SGD(net.parameters(), 1e-4)
    history = fit(
        net, ModelData(".", stream), 2, nn.MSELoss(), opt, callbacks=[Sees()], steps=3
    )  # fmt: skip
    assert [row[1:] for row in seen] == [(b, e * 3 + b + 1) for e in range(2) for b in range(3)]
    assert len(history) == 2 and stream.given == 6  # not one too many
    assert [len(p) for p in itertools.islice(iter_predict(net, Stream()), 2)] == [4, 4]


def test_without_a_length_an_epoch_is_what_there_is() -> None:
    class Unsized:
        def __iter__(self) -> Iterator[Any]:
            return ((torch.ones(2, 2), torch.ones(2, 1)) for _ in range(5))

    class Counts(Callback):
        steps = 0

        def on_batch_end(self, run: Run) -> None:
            assert run.n_batches in (None, 8)
            self.steps += 1

    for steps, wanted in ((None, 10), (8, 10), (2, 4)):
        net, counts = nn.Linear(2, 1), Counts()
        md = ModelData(".", Unsized(), Unsized())
        if steps == 2:
            Counts.on_batch_end = lambda self, run: setattr(self, "steps", run.step)  # type: ignore
        fit(
            net, md, 2, nn.MSELoss(), optim.SGD(net.parameters(), 0.1), callbacks=[counts],
            steps=steps, progress=False,
        )  # fmt: skip
        assert counts.steps == wanted
    for wrong in (0, 1.5, "all"):
        with pytest.raises((TypeError, ValueError), match="steps"):
            fit(net, md, 1, nn.MSELoss(), optim.SGD(net.parameters(), 0.1), steps=wrong)  # type: ignore


class Endless(torch.utils.data.IterableDataset):  # type: ignore[type-arg]
    """Rows without a length, as a data base or a queue gives them."""

    def __init__(self, rows: int) -> None:
        self.rows = rows

    def __iter__(self) -> Iterator[Any]:
        return ((torch.ones(2), torch.ones(1)) for _ in range(self.rows))


@pytest.mark.parametrize("steps", [None, 3])
@pytest.mark.parametrize("workers", [0, 1])
def test_a_dataloader_over_a_stream(steps: int | None, workers: int, tmp_path: Path) -> None:
    loader = torch.utils.data.DataLoader(Endless(20), batch_size=4, num_workers=workers)
    net, path = nn.Linear(2, 1), tmp_path / "run.ckpt"
    opt = optim.SGD(net.parameters(), 0.1)
    seen: list[int] = []

    class Sees(Callback):
        def on_batch_end(self, run: Run) -> None:
            assert run.n_batches == steps
            seen.append(run.batch)

    fit(
        net, ModelData(".", loader, loader), 2, nn.MSELoss(), opt,
        callbacks=[Sees(), Checkpoint(path)], steps=steps, progress=False,
    )  # fmt: skip
    assert seen == list(range(steps or 5)) * 2
    assert predict(net, loader).shape == (20, 1)
    with pytest.raises(TypeError, match="how many rows"):
        predict(net, loader, out=tmp_path / "preds.npy")


@pytest.mark.parametrize("steps", [None, 5])
def test_a_stream_that_is_used_up_is_told(steps: int | None) -> None:
    net = nn.Linear(2, 1)
    opt = optim.SGD(net.parameters(), 0.1)
    batches = [(torch.ones(2, 2), torch.ones(2, 1))] * 5
    with pytest.raises(ValueError, match=r"trn_dl gives no batch\n.*of epoch 1"):
        fit(
            net, ModelData(".", iter(batches)), 2, nn.MSELoss(), opt, steps=steps, progress=False
        )  # fmt: skip
    with pytest.raises(ValueError, match="the loader gives no batch"):  # nan, it would be
        fit(net, ModelData(".", batches, iter(batches)), 2, nn.MSELoss(), opt, progress=False)
    for empty in (iter(()), []):
        with pytest.raises(ValueError, match="the loader gives no batch"):
            predict(net, empty)


def test_a_stream_may_give_arrays_of_numpy() -> None:
    def stream() -> Iterator[Any]:
        for _ in range(5):
            yield np.random.rand(8, 2), np.arange(8, dtype=np.int32) % 2

    net = nn.Linear(2, 2)
    opt = optim.SGD(net.parameters(), 0.1)
    history = fit(net, ModelData(".", stream()), 1, nn.CrossEntropyLoss(), opt, progress=False)
    assert history[0]["trn_loss"] < 2


@pytest.mark.parametrize("threads", [False, True])
def test_the_source_is_read_by_one_thread_at_a_time(
    threads: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And by the one that opened it alone, if it is such a source."""
    monkeypatch.setattr(minifast.rows, "WAITING", -1)  # another thread reads ahead, if it may
    readers = set()

    def read(source: Any, begin: int, end: int) -> np.ndarray:
        assert not made or made[0]._alone().locked()
        readers.add(threading.get_ident())
        return whole[begin:end]

    made: list[Rows] = []
    whole = np.zeros((10**5, 100))
    made.append(Rows(whole, read, threads=threads))
    loaded = pickle.loads(pickle.dumps(Rows(whole, threads=threads)))
    for shuffle in (False, True, "blocks"):
        for _ in ArrayLoader(made[0], np.arange(len(whole)), bs=1000, shuffle=shuffle):
            pass
    assert loaded.threads is threads
    assert (len(readers) > 1) is threads and threading.get_ident() in readers


def test_a_connection_of_sqlite_is_a_source(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(minifast.rows, "WAITING", -1)
    monkeypatch.setattr(minifast.chunks, "CHUNK_BYTES", 160)
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.execute("create table numbers (row integer primary key, value real)")
        connection.executemany("insert into numbers values (?, ?)", [(i, i / 2) for i in range(99)])

        class Table:
            def __len__(self) -> int:
                return 99

        def read(table: Table, begin: int, end: int) -> np.ndarray:
            query = "select value from numbers where row >= ? and row < ? order by row"
            return np.array(connection.execute(query, (begin, end)).fetchall(), np.float32)

        loader = ArrayLoader(Rows(Table(), read, threads=False), np.arange(99), bs=10, shuffle=True)
        found = {int(n): float(v) for x, y in loader for v, n in zip(x, y, strict=True)}
    assert found == {i: i / 2 for i in range(99)}
