"""ArrayLoader: whole batches by index, in order unless it shuffles, never touching the arrays."""

import numpy as np
import pytest
import torch

from minifast import ArrayLoader


def rows(loader):
    return [x.flatten().tolist() for x, *_ in loader]


def test_batches_come_in_order_and_the_last_is_kept():
    assert rows(ArrayLoader(range(10), bs=4)) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


@pytest.mark.parametrize("n", [1, 2, 63, 64, 65, 203])
def test_a_shuffled_epoch_has_every_row_once_with_its_label(n):
    loader = ArrayLoader(np.arange(n) * 10, np.arange(n), shuffle=True)
    batches = list(loader)
    assert len(batches) == len(loader) == -(-n // 64)
    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    assert torch.equal(x, y * 10)
    assert sorted(y.tolist()) == list(range(n))


def test_a_shuffle_is_uniform():
    # Chi-squared of where row 0 lands, 5 places: 18.5 is the 99.9th percentile of 4 degrees.
    loader = ArrayLoader(range(5), bs=5, shuffle=True, seed=0)
    places = [rows(loader)[0].index(0) for _ in range(2000)]
    counts = np.bincount(places, minlength=5)
    assert ((counts - 400) ** 2 / 400).sum() < 18.5


def test_epochs_differ_and_a_seed_repeats_them():
    first, second = (ArrayLoader(range(50), shuffle=True, seed=4) for _ in range(2))
    epochs = [rows(first), rows(first)]
    assert epochs[0] != epochs[1]
    assert [rows(second), rows(second)] == epochs


def test_without_a_seed_the_order_is_torchs():
    torch.manual_seed(5)
    expected = torch.randperm(50)
    torch.manual_seed(5)
    assert torch.equal(torch.cat([x for (x,) in ArrayLoader(range(50), shuffle=True)]), expected)


def test_an_iterator_has_a_length_and_stands_for_itself():
    loader = ArrayLoader(range(10), bs=4)
    one, other = iter(loader), iter(loader)
    assert [len(one), len(other)] == [3, 3]
    next(one)
    assert next(one)[0].tolist() == [4, 5, 6, 7]
    assert next(other)[0].tolist() == [0, 1, 2, 3]
    assert len(one) == 3
    next(one)
    with pytest.raises(StopIteration):
        next(one)


@pytest.mark.parametrize(
    ("array", "dtype"),
    [
        (np.zeros((3, 2)), torch.float32),
        (np.zeros((3, 2), np.float16), torch.float32),
        (np.zeros((3, 2), ">f8"), torch.float32),
        (np.zeros(3), torch.float32),
        (np.zeros(3, np.int8), torch.int64),
        (np.zeros(3, np.uint8), torch.int64),
        (np.zeros(3, np.uint16), torch.int64),
        (np.zeros(3, bool), torch.int64),
        (np.zeros((3, 2), bool), torch.float32),
        (np.zeros((3, 2), np.uint8), torch.float32),
        (np.zeros((3, 2), np.int32), torch.int64),
        (np.zeros((6, 2))[::-2], torch.float32),
        (torch.zeros(3, 2, dtype=torch.bfloat16), torch.float32),
        ([[1, 2], [3, 4]], torch.int64),
        ([[1.0], [2.0]], torch.float32),
    ],
    ids=lambda v: str(getattr(v, "dtype", v)),
)
def test_dtypes(array, dtype):
    (batch,) = next(iter(ArrayLoader(array)))
    assert batch.dtype == dtype
    expected = array.double() if isinstance(array, torch.Tensor) else np.asarray(array)
    np.testing.assert_array_equal(batch.double(), expected)


def test_float32_and_uint8_arrays_are_not_copied():
    for dtype in np.float32, np.uint8:
        array = np.zeros((4, 2), dtype)
        loader = ArrayLoader(array)
        array[1] = 7
        assert next(iter(loader))[0][1].tolist() == [7.0, 7.0]


def test_a_batch_is_a_copy():
    array = np.zeros((4, 2), np.float32)
    for loader in ArrayLoader(array), ArrayLoader(array, shuffle=True):
        for (x,) in loader:
            x += 1
    assert not array.any()


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.uint8])
def test_a_memory_map_is_read_a_batch_at_a_time(tmp_path, dtype):
    np.save(tmp_path / "x.npy", np.arange(40, dtype=dtype).reshape(20, 2))
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    loader = ArrayLoader(mapped, bs=8, shuffle=True)
    assert loader.arrays[0].source is mapped
    x = torch.cat([x for (x,) in loader])
    assert x.dtype == torch.float32
    assert sorted(x[:, 0].tolist()) == list(range(0, 40, 2))


def test_a_transform_sees_whole_batches_of_x():
    seen = []

    def double(x):
        seen.append(x.shape)
        return x * 2

    batches = list(ArrayLoader(np.ones((5, 3)), np.arange(5), bs=3, tfm=double))
    assert seen == [(3, 3), (2, 3)]
    assert batches[0][0].unique().item() == 2
    assert batches[1][1].tolist() == [3, 4]


@pytest.mark.parametrize(
    ("arrays", "options", "error", "words"),
    [
        (
            (range(3), range(4)),
            {},
            ValueError,
            "differ in length.*array 0 has 3 rows, array 1 has 4",
        ),
        (([],), {}, ValueError, "array 0: no rows"),
        ((5,), {}, TypeError, "array 0 has no rows"),
        (([[1, 2], [3]],), {}, TypeError, "array 0 cannot become a tensor"),
        ((["a", "b"],), {}, TypeError, "array 0 cannot become a tensor"),
        ((np.array([object()]),), {}, TypeError, "list|object"),
        ((range(3),), {"bs": 0}, ValueError, "bs cannot be"),
        ((range(3),), {"bs": -1}, ValueError, "bs cannot be"),
        ((range(3),), {"bs": 1.5}, TypeError, "bs cannot be"),
        ((range(3),), {"bs": "64"}, TypeError, "bs cannot be"),
        ((range(3),), {"bs": None}, TypeError, "bs cannot be"),
        ((range(3),), {"bs": True}, TypeError, "bs cannot be"),
    ],
)
def test_bad_arguments_are_told_in_words(arrays, options, error, words):
    with pytest.raises(error, match=f"(?s){words}.*fix:.*more:"):
        ArrayLoader(*arrays, **options)
