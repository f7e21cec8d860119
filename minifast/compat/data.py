"""0.7's data objects for arrays and tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch.utils import data as torch_data

from .. import dataset as core
from ..arrays import by_position
from ..dataloader import ArrayLoader
from ..dataset import ArraysDataset as ArraysDataset
from ..dataset import ModelData
from .core import T
from .outside import refuses

__all__ = [
    "ArraysDataset",
    "ArraysIndexDataset",
    "ArraysIndexRegressionDataset",
    "ColumnarDataset",
    "ColumnarModelData",
    "DataLoader",
    "ImageClassifierData",
    "ModelData",
    "PassthruDataset",
    "get_cv_idxs",
    "split_by_idx",
]

ArraysIndexDataset = ArraysDataset
"""0.7's name of `minifast.dataset.ArraysDataset`, for labels that are numbers of classes."""
ArraysIndexRegressionDataset = ArraysDataset
"""The same, for labels that are quantities."""


class ImageClassifierData(core.ImageClassifierData):
    """`from_arrays` is minifast's; what reads image files says that it is not here."""

    from_paths = classmethod(refuses("ImageClassifierData.from_paths reads image files"))
    from_csv = classmethod(refuses("ImageClassifierData.from_csv reads image files"))
    from_names_and_array = classmethod(
        refuses("ImageClassifierData.from_names_and_array reads image files")
    )

    @property
    def fix_dl(self) -> Any:
        """The training rows in order."""
        return self._loader(self.trn_ds)

    @property
    def aug_dl(self) -> Any:
        """The validation rows; without transforms of images they are as they were."""
        return self.val_dl

    @property
    def test_aug_dl(self) -> Any:
        """The test rows likewise."""
        return self.test_dl

    def _loader(self, ds: Any) -> Any:
        loader = ArrayLoader(ds.x, ds.y, bs=self.bs)
        loader.dataset = ds  # type: ignore[attr-defined]
        return loader


def get_cv_idxs(n: int, cv_idx: int = 0, val_pct: float = 0.2, seed: int = 42) -> np.ndarray:
    """Row numbers for validation: the `cv_idx`-th part of a shuffled range.

    Examples:
        >>> get_cv_idxs(10)
        array([8, 1])
    """
    size = int(val_pct * n)
    rows: np.ndarray = np.random.RandomState(seed).permutation(n)  # not the world's generator
    return rows[cv_idx * size : (cv_idx + 1) * size]


def split_by_idx(idxs: Any, *a: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Of each array the rows `idxs` and the others, each in the array's own order.

    Examples:
        >>> split_by_idx([-1], np.arange(3))
        [(array([2]), array([0, 1]))]
    """
    chosen = np.zeros(len(a[0]), dtype=bool)
    chosen[np.asarray(idxs)] = True
    return [(np.asarray(each)[chosen], np.asarray(each)[~chosen]) for each in a]


class DataLoader(torch_data.DataLoader[Any]):
    """0.7's loader of any dataset: batches are lists of tensors, `[*xs, y]`.

    Padding (`pad_idx`, `pre_pad`) and transposing are for text and not here.
    """

    def __init__(
        self,
        dataset: Any,
        batch_size: int = 1,
        shuffle: bool = False,
        sampler: Any = None,
        batch_sampler: Any = None,
        pad_idx: int = 0,
        num_workers: int | None = None,
        pin_memory: bool = False,
        drop_last: bool = False,
        pre_pad: bool = True,
        half: bool = False,
        transpose: bool = False,
        transpose_y: bool = False,
    ) -> None:
        if transpose or transpose_y:
            refuses("DataLoader(transpose=True) is for text")()
        del pad_idx, num_workers, pre_pad  # threads have nothing to gain on arrays
        how: dict[str, Any] = {"batch_sampler": batch_sampler}
        if batch_sampler is None:
            how = {"batch_size": batch_size, "sampler": sampler, "drop_last": drop_last}
            how["shuffle"] = shuffle and sampler is None
        super().__init__(
            dataset,
            pin_memory=pin_memory,
            collate_fn=lambda rows: [T(np.stack(part), half) for part in zip(*rows, strict=True)],
            **how,
        )


class PassthruDataset:
    """Several arrays with a target: `ds.xs`, `ds.y`."""

    def __init__(self, *args: Any, is_reg: bool = True, is_multi: bool = False) -> None:
        *xs, y = args
        self.xs, self.y, self.is_reg, self.is_multi = xs, np.asarray(y), is_reg, is_multi

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, i: Any) -> list[Any]:
        return [*(by_position(x)[i] for x in self.xs), self.y[i]]

    def arrays(self) -> list[np.ndarray]:
        """The inputs as the net gets them, and the target."""
        return [*(np.ascontiguousarray(x) for x in self.xs), self.y]


class ColumnarDataset(PassthruDataset):
    """Rows of a table: categories `(n, k)` of int64 and quantities `(n, m)` of float32."""

    def __init__(
        self, cats: Any, conts: Any, y: Any, is_reg: bool = True, is_multi: bool = False
    ) -> None:
        n = len(cats[0] if len(cats) else conts[0])
        self.cats = _columns(cats, n, np.int64)
        self.conts = _columns(conts, n, np.float32)
        y = np.zeros((n, 1)) if y is None else np.asarray(y)
        if is_reg:  # whole numbers too: a column of them cannot be classes
            y = y.reshape(n, -1).astype(np.float32)
        super().__init__(self.cats, self.conts, y, is_reg=is_reg, is_multi=is_multi)

    @classmethod
    def from_data_frames(
        cls, df_cat: Any, df_cont: Any, y: Any = None, is_reg: bool = True, is_multi: bool = False
    ) -> ColumnarDataset:
        """Of two tables, one of categories and one of quantities."""
        cats = [df_cat[name].to_numpy() for name in df_cat.columns]
        conts = [df_cont[name].to_numpy() for name in df_cont.columns]
        return cls(cats, conts, y, is_reg, is_multi)

    @classmethod
    def from_data_frame(
        cls,
        df: Any,
        cat_flds: Sequence[str],
        y: Any = None,
        is_reg: bool = True,
        is_multi: bool = False,
    ) -> ColumnarDataset:
        """Of one table, whose columns `cat_flds` are categories."""
        return cls.from_data_frames(
            df[list(cat_flds)], df.drop(columns=list(cat_flds)), y, is_reg, is_multi
        )


def _columns(columns: Any, n: int, dtype: Any) -> np.ndarray:
    if not len(columns):
        return np.zeros((n, 1), dtype=dtype)
    return np.stack([np.asarray(c) for c in columns], axis=1).astype(dtype)


class ColumnarModelData(ModelData):
    """Tables: each column, or categories and quantities, as inputs of their own."""

    def __init__(
        self,
        path: Any,
        trn_ds: Any,
        val_ds: Any,
        bs: int,
        test_ds: Any = None,
        shuffle: bool = True,
    ) -> None:
        self.bs = bs
        test = None if test_ds is None else _loader(test_ds, bs, False)
        super().__init__(path, _loader(trn_ds, bs, shuffle), _loader(val_ds, 2 * bs, False), test)

    @classmethod
    def from_arrays(
        cls,
        path: Any,
        val_idxs: Any,
        xs: Any,
        y: Any,
        is_reg: bool = True,
        is_multi: bool = False,
        bs: int = 64,
        test_xs: Any = None,
        shuffle: bool = True,
    ) -> ColumnarModelData:
        """Each column of `xs` is an input of its own, `forward(self, *columns)`."""
        y = np.asarray(y)
        (val_xs, trn_xs), (val_y, trn_y) = split_by_idx(val_idxs, np.asarray(xs), y)
        kinds = {"is_reg": is_reg, "is_multi": is_multi}
        test = None
        if test_xs is not None:
            zeros = np.zeros((len(test_xs), *y.shape[1:]), dtype=y.dtype)
            test = PassthruDataset(*np.asarray(test_xs).T, zeros, **kinds)
        return cls(
            path,
            PassthruDataset(*trn_xs.T, trn_y, **kinds),
            PassthruDataset(*val_xs.T, val_y, **kinds),
            bs,
            test,
            shuffle,
        )

    @classmethod
    def from_data_frames(
        cls,
        path: Any,
        trn_df: Any,
        val_df: Any,
        trn_y: Any,
        val_y: Any,
        cat_flds: Sequence[str],
        bs: int = 64,
        is_reg: bool = True,
        is_multi: bool = False,
        test_df: Any = None,
        shuffle: bool = True,
    ) -> ColumnarModelData:
        """Two tables; the columns `cat_flds` are categories, all others quantities."""

        def of(df: Any, y: Any) -> Any:
            if df is None:
                return None
            return ColumnarDataset.from_data_frame(df, cat_flds, y, is_reg, is_multi)

        return cls(path, of(trn_df, trn_y), of(val_df, val_y), bs, of(test_df, None), shuffle)

    @classmethod
    def from_data_frame(
        cls,
        path: Any,
        val_idxs: Any,
        df: Any,
        y: Any,
        cat_flds: Sequence[str],
        bs: int = 64,
        is_reg: bool = True,
        is_multi: bool = False,
        test_df: Any = None,
        shuffle: bool = True,
    ) -> ColumnarModelData:
        """One table, of which the rows `val_idxs` are for validation."""
        ((val_rows, trn_rows),) = split_by_idx(val_idxs, np.arange(len(df)))
        y = np.asarray(y)
        return cls.from_data_frames(
            path,
            df.iloc[trn_rows],
            df.iloc[val_rows],
            y[trn_rows],
            y[val_rows],
            cat_flds,
            bs,
            is_reg,
            is_multi,
            test_df,
            shuffle,
        )

    get_learner = refuses("get_learner builds 0.7's own net for tables")


def _loader(ds: Any, bs: int, shuffle: bool) -> ArrayLoader:
    loader = ArrayLoader(*ds.arrays(), bs=bs, shuffle=shuffle)
    loader.dataset = ds  # type: ignore[attr-defined]
    return loader
