"""What to learn from: rows, and the loaders that hand them out in batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from .arrays import as_tensor, by_position, length
from .core import T, V, explain, to_np
from .dataloader import ArrayLoader
from .rows import Rows, stays_away

__all__ = ["ArraysDataset", "ImageClassifierData", "ModelData", "T", "V", "to_np"]

LABELS = 2**16  # looked through at a time
Transform = Callable[..., Any]
Pair = tuple[Any, Any]


class ArraysDataset:
    """Rows of `x` with their `y`: `ds[i]` is row i, counted from 0, of pandas' objects too.

    Attributes:
        x, y: The arrays as they were given.
        c: Number of classes: the largest label plus one; the columns of a 2-D `y`.
        sz: `x.shape[1]`: 784 for flat digits.
        is_reg: Whether `y` is a quantity rather than a class.
        is_multi: Whether a row may belong to several classes (`y` is 2-D).

    Examples:
        >>> ds = ArraysDataset(np.zeros((3, 784)), np.array([0, 4, 1]))
        >>> len(ds), ds.c, ds.sz
        (3, 5, 784)
        >>> row, label = ds[1]
    """

    def __init__(self, x: Any, y: Any, is_reg: bool = False) -> None:
        self.x = x if hasattr(x, "shape") else as_tensor(x, "x").numpy()
        self.y = y if hasattr(y, "shape") else as_tensor(y, "y").numpy()
        self.is_reg = is_reg
        self.is_multi = self.y.ndim == 2 and not is_reg

    def __len__(self) -> int:
        return length(self.x) or 0

    def __getstate__(self) -> tuple[dict[str, Any], dict[str, Rows]]:
        """A copy has the same files, mapped again: not in memory what is larger than that."""
        arrays = {k: v for k, v in vars(self).items() if isinstance(v, np.ndarray)}
        mapped = {k: Rows(v) for k, v in arrays.items() if stays_away(v)}
        mapped = {k: rows for k, rows in mapped.items() if rows.file is not None}
        return {k: v for k, v in vars(self).items() if k not in mapped}, mapped

    def __setstate__(self, state: tuple[dict[str, Any], dict[str, Rows]]) -> None:
        kept, mapped = state
        vars(self).update(kept, **{k: rows.source for k, rows in mapped.items()})

    def __getitem__(self, i: Any) -> tuple[Any, Any]:
        return by_position(self.x)[i], by_position(self.y)[i]

    @property
    def c(self) -> int:  # noqa: D102 - documented with the class
        if self.is_reg or self.is_multi:
            return int(self.y.shape[1]) if self.y.ndim > 1 else 1
        if not stays_away(self.y):
            return int(as_tensor(self.y, "y").max()) + 1
        parts = ArrayLoader(self.y, bs=LABELS)
        return max(int(labels.max()) for (labels,) in parts) + 1

    @property
    def sz(self) -> int:  # noqa: D102 - documented with the class
        return int(self.x.shape[1])


class ModelData:
    """The loaders of a task: what to train on, what to validate with, what to predict.

    Args:
        path: The folder of the task; kept, not read or made.
        trn_dl: Any iterable of batches `(x, y)`: an `ArrayLoader`, a torch `DataLoader`, a list.
        val_dl: The same for validation; without it `fit` trains only.
        test_dl: The same for rows to predict.

    Examples:
        >>> import torch
        >>> batches = [(torch.zeros(2, 3), torch.zeros(2)), (torch.ones(1, 3), torch.ones(1))]
        >>> md = ModelData(".", batches)
        >>> len(md.trn_dl)
        2
    """

    def __init__(
        self, path: str | Path, trn_dl: Any, val_dl: Any = None, test_dl: Any = None
    ) -> None:
        self.path = path
        for name, dl in ("trn_dl", trn_dl), ("val_dl", val_dl), ("test_dl", test_dl):
            if dl is not None or name == "trn_dl":
                _check_loader(name, dl)
        self.trn_dl, self.val_dl, self.test_dl = trn_dl, val_dl, test_dl

    @property
    def trn_ds(self) -> Any:
        """The training loader's data set."""
        return self.trn_dl.dataset

    @property
    def val_ds(self) -> Any:
        """The validation loader's data set."""
        return self.val_dl.dataset

    @property
    def test_ds(self) -> Any:
        """The test loader's data set."""
        return self.test_dl.dataset

    @property
    def trn_y(self) -> Any:
        """The training labels."""
        return self.trn_ds.y

    @property
    def val_y(self) -> Any:
        """The validation labels."""
        return self.val_ds.y

    @property
    def is_reg(self) -> bool:
        """Whether the target is a quantity rather than a class."""
        return bool(self.trn_ds.is_reg)

    @property
    def is_multi(self) -> bool:
        """Whether a row may belong to several classes."""
        return bool(self.trn_ds.is_multi)

    @property
    def sz(self) -> int:
        """`x.shape[1]` of the training data."""
        return int(self.trn_ds.sz)


class DatasetLoader(ArrayLoader):
    """An `ArrayLoader` that knows its data set, as `md.trn_ds` and `md.trn_y` ask for it."""

    def __init__(self, dataset: ArraysDataset, part: str, **options: Any) -> None:
        names = (f"x of {part}", f"y of {part}")
        y = dataset.y
        if dataset.is_reg:
            away = stays_away(y)
            y = Rows(y, name=names[1], quantity=True) if away else _quantity(y, names[1])
        super().__init__(dataset.x, y, names=names, **options)
        self.dataset = dataset


class ImageClassifierData(ModelData):
    """Images, or any other arrays, with a label each."""

    bs: int
    classes: Sequence[Any] | None

    @property
    def c(self) -> int:
        """Number of classes: of `classes` if they were given, else the largest label plus one."""
        if self.classes is not None:
            return len(self.classes)
        loaders = [dl for dl in (self.trn_dl, self.val_dl) if dl is not None]
        return max(int(dl.dataset.c) for dl in loaders)

    @classmethod
    def from_arrays(
        cls,
        path: str | Path,
        trn: Pair,
        val: Pair | None,
        bs: int = 64,
        tfms: tuple[Transform | None, Transform | None] = (None, None),
        classes: Sequence[Any] | None = None,
        num_workers: int = 0,
        test: Any = None,
        continuous: bool = False,
        *,
        seed: int | None = None,
    ) -> ImageClassifierData:
        """Loaders over arrays in memory, or memory-mapped.

        Args:
            path: The folder of the task; kept as `md.path`, not read or made.
            trn: `(x, y)` to train on: arrays, tensors or lists of the same length.
            val: `(x, y)` to validate with; None if there is none.
            bs: Rows in a batch, for every loader.
            tfms: `(train, validation)`: called with the `x` of each batch on its way out. The
                second serves the test loader too.
            classes: Names of the classes.
            num_workers: Accepted and not used: batches of arrays need no workers.
            test: `x`, or `(x, y)`, to predict. Without labels they are zeros.
            continuous: `y` is a quantity: it becomes float32.
            seed: Shuffle the training rows by a generator of their own. Without it the order comes
                from torch's global generator.

        Returns:
            `md` with `trn_dl` (shuffled, the last batch kept), `val_dl` and `test_dl` (in order).

        Raises:
            TypeError: if an array does not hold numbers.
            ValueError: if an `x` and its `y` differ in length.

        Examples:
            >>> x, y = np.random.rand(100, 28, 28), np.arange(100) % 10
            >>> md = ImageClassifierData.from_arrays(".", (x[:80], y[:80]), (x[80:], y[80:]), bs=32)
            >>> md.c, md.sz, len(md.trn_dl), len(md.val_dl)
            (10, 28, 3, 1)
            >>> xb, yb = next(iter(md.val_dl))
            >>> xb.shape, xb.dtype, yb.dtype
            (torch.Size([20, 28, 28]), torch.float32, torch.int64)
        """
        del num_workers

        def loader(part: str, pair: Pair, tfm: Transform | None, **options: Any) -> DatasetLoader:
            return DatasetLoader(
                ArraysDataset(*pair, is_reg=continuous), part, bs=bs, tfm=tfm, **options
            )

        trn, trn_tfm, val_tfm = _pair("trn", trn), *tfms
        trn_dl = loader("trn", trn, trn_tfm, shuffle=True, seed=seed)
        val_dl = loader("val", _pair("val", val), val_tfm) if val is not None else None
        test_dl = None
        if test is not None:
            pair = test if isinstance(test, tuple) else (test, _no_labels(test, trn[1]))
            test_dl = loader("test", pair, val_tfm)
        md = cls(path, trn_dl, val_dl, test_dl)
        md.bs, md.classes = bs, classes
        return md


def _quantity(y: Any, name: str) -> Tensor:
    t = as_tensor(y, name)
    return t if t.is_complex() else t.float()


def _no_labels(test: Any, y: Any) -> np.ndarray:
    """Zeros in the shape that 0.7 gives a test set without labels."""
    n = length(test) or 0
    shape = np.shape(y)
    return np.zeros((n, shape[1] if len(shape) > 1 else 1), dtype=np.float32)


def _pair(name: str, pair: Any) -> Pair:
    if isinstance(pair, tuple | list) and len(pair) == 2:
        return pair[0], pair[1]
    count = f" of {len(pair)}" if isinstance(pair, tuple | list) else ""
    raise TypeError(
        explain(
            f"{name} is no pair of arrays",
            got=f"{type(pair).__name__}{count}",
            wanted="(x, y)",
            fix="from_arrays(path, (x, y), (x_valid, y_valid))",
            entry="pairs",
        )
    )


def _check_loader(name: str, dl: Any) -> None:
    if isinstance(dl, Iterable) and not isinstance(dl, Tensor | np.ndarray | str | dict):
        return
    raise TypeError(
        explain(
            f"{name} yields no batches",
            got=type(dl).__name__,
            wanted="an iterable of batches (x, y)",
            fix="ArrayLoader(x, y), or ImageClassifierData.from_arrays for arrays",
            entry="loaders",
        )
    )
