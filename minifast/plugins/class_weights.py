"""Classes of unequal size."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core import explain, to_np


def class_weights(y: Any, c: int | None = None, ignore_index: int = -100) -> Tensor:
    """Weights that let every class count the same: `n / (c * count)`, for `nn.NLLLoss(weight=...)`.

    Args:
        y: Labels, integers from 0, `(n,)` or in a column `(n, 1)`.
        c: Number of classes; the largest label plus one if not given.
        ignore_index: Rows with this label do not count, as in `nn.NLLLoss(ignore_index=...)`.

    Returns:
        float32 `(c,)`; the mean weight over the rows that count is 1. A class without rows has
        weight 0.

    Raises:
        ValueError: for labels that are not integers, of another shape, or not from 0 to c - 1.

    Examples:
        >>> class_weights([0, 0, 0, 1])
        tensor([0.6667, 2.0000])
    """
    labels = np.asarray(to_np(y))
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels.reshape(-1)
    found = f"{labels.dtype} of shape {labels.shape}"
    if labels.dtype.kind not in "iub" or labels.ndim != 1:
        raise ValueError(_not_labels(found))
    labels = labels[labels != ignore_index].astype(np.int64)
    if not len(labels):
        raise ValueError(_not_labels(f"{found}, of which no label counts"))
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or (c is not None and high >= c):
        raise ValueError(_not_labels(f"labels from {low} to {high}, c={c}"))
    counts = np.bincount(labels, minlength=c or 0)
    weights = np.where(counts > 0, counts.sum() / np.maximum(counts, 1) / (counts > 0).sum(), 0)
    return torch.from_numpy(weights.astype(np.float32))


def _not_labels(got: str) -> str:
    return explain(
        "y must be a class for each row",
        got=got,
        wanted="integers (n,) from 0 to c - 1; rows with ignore_index do not count",
        fix="y.astype(np.int64) for floats, y.argmax(1) for one-hot labels, y.ravel() for a class "
        "for each pixel",
        entry="class-weights",
    )
