"""ModelData and ImageClassifierData: 0.7's attributes over loaders of any kind."""

import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from minifast import ArrayLoader, ImageClassifierData, ModelData

X, Y = np.random.default_rng(0).random((10, 4)), np.arange(10) % 3


def from_arrays(**options):
    return ImageClassifierData.from_arrays("data", (X[:7], Y[:7]), (X[7:], Y[7:]), **options)


def test_attributes_of_07():
    md = from_arrays(bs=4, classes=["a", "b", "c"], test=X)
    assert (md.path, md.bs, md.c, md.sz, md.classes) == ("data", 4, 3, 4, ["a", "b", "c"])
    assert (md.is_reg, md.is_multi) == (False, False)
    assert md.trn_ds.x is not None and len(md.trn_ds) == 7
    np.testing.assert_array_equal(md.trn_y, Y[:7])
    np.testing.assert_array_equal(md.val_y, Y[7:])
    np.testing.assert_array_equal(md.val_ds[0][0], X[7])
    assert len(md.test_ds) == 10
    assert [len(dl) for dl in (md.trn_dl, md.val_dl, md.test_dl)] == [2, 1, 3]


def test_only_the_training_rows_are_shuffled():
    big = np.arange(1000)
    md = ImageClassifierData.from_arrays(".", (big, big), (big, big), test=(big, big))
    in_order = [torch.equal(torch.cat([x for x, _ in dl]), torch.arange(1000))
                for dl in (md.trn_dl, md.val_dl, md.test_dl)]  # fmt: skip
    assert in_order == [False, True, True]


def test_test_rows_without_labels_have_zeros():
    md = from_arrays(test=X)
    x, y = next(iter(md.test_dl))
    assert y.shape == (10, 1) and not y.any()
    torch.testing.assert_close(x, torch.from_numpy(X).float())


def test_classes_are_counted_over_both_sets():
    md = ImageClassifierData.from_arrays(".", (X[:2], [0, 1]), (X[2:4], [1, 5]))
    assert md.c == 6


def test_continuous_targets_become_floats():
    md = from_arrays(continuous=True)
    assert next(iter(md.trn_dl))[1].dtype == torch.float32
    assert (md.is_reg, md.c) == (True, 1)


def test_rows_of_several_classes():
    many = np.eye(3, dtype=int)[Y]
    md = ImageClassifierData.from_arrays(".", (X, many), (X, many))
    assert (md.is_multi, md.c) == (True, 3)


def test_validation_is_optional():
    md = ImageClassifierData.from_arrays(".", (X, Y), None)
    assert md.val_dl is None and md.c == 3


def test_each_transform_has_its_loaders():
    md = from_arrays(tfms=(lambda x: x + 1, lambda x: x - 1), test=X)
    assert next(iter(md.trn_dl))[0].min() >= 1
    assert next(iter(md.val_dl))[0].max() <= 0
    assert next(iter(md.test_dl))[0].max() <= 0


def test_seed_repeats_the_order():
    def one_epoch():
        return torch.cat([y for _, y in from_arrays(seed=3, bs=2).trn_dl]).tolist()

    assert one_epoch() == one_epoch()


def test_data_frames_and_series_are_arrays_too():
    frame, series = pd.DataFrame(X), pd.Series(Y, index=range(100, 110))
    md = ImageClassifierData.from_arrays(".", (frame, series), (frame, series))
    x, y = next(iter(md.val_dl))
    np.testing.assert_allclose(x.numpy(), X, rtol=1e-6)
    assert y.tolist() == Y.tolist()


def test_model_data_around_torch_loaders():
    dataset = TensorDataset(torch.from_numpy(X), torch.from_numpy(Y))
    md = ModelData("p", DataLoader(dataset, 4), DataLoader(dataset, 4))
    assert md.trn_ds is dataset and md.test_dl is None and len(md.trn_dl) == 3


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: ImageClassifierData.from_arrays(".", (X, Y[:9]), (X, Y)), ValueError,
         "x of trn and y of trn differ in length.*x of trn has 10 rows, y of trn has 9"),
        (lambda: ImageClassifierData.from_arrays(".", (X, Y), (X[:3], Y)), ValueError,
         "x of val has 3 rows, y of val has 10"),
        (lambda: ImageClassifierData.from_arrays(".", (X, Y), (X, Y), test=(X, Y[:1])), ValueError,
         "x of test has 10 rows"),
        (lambda: ImageClassifierData.from_arrays(".", X, (X, Y)), TypeError, "trn is no pair"),
        (lambda: ImageClassifierData.from_arrays(".", (X, Y), (X, Y, Y)), TypeError,
         "val is no pair.*tuple of 3"),
        (lambda: ImageClassifierData.from_arrays(".", (X.astype(object), Y), (X, Y)), TypeError,
         "x of trn cannot become a tensor"),
        (lambda: ImageClassifierData.from_arrays(".", (X, Y.astype(str)), (X, Y)), TypeError,
         "y of trn cannot become a tensor"),
        (lambda: ModelData(".", X), TypeError, "trn_dl yields no batches"),
        (lambda: ModelData(".", None), TypeError, "trn_dl yields no batches"),
        (lambda: ModelData(".", ArrayLoader(X), val_dl=X), TypeError, "val_dl yields no batches"),
    ],
)  # fmt: skip
def test_bad_data_is_told_in_words(make, error, words):
    with pytest.raises(error, match=f"(?s){words}.*fix:.*more:"):
        make()
