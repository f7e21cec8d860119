"""Classes of unequal size."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core import to_np


def class_weights(y: Any, c: int | None = None) -> Tensor:
    """Weights that let every class count the same: `n / (c * count)`, for `nn.NLLLoss(weight=...)`.

    Args:
        y: Labels, whole numbers, `(n,)`.
        c: Number of classes; the largest label plus one if not given.

    Returns:
        float32 `(c,)`; the mean weight over the rows is 1. A class without rows has weight 0.

    Examples:
        >>> class_weights([0, 0, 0, 1])
        tensor([0.6667, 2.0000])
    """
    counts = np.bincount(to_np(y), minlength=c or 0)
    weights = np.where(counts > 0, counts.sum() / np.maximum(counts, 1) / (counts > 0).sum(), 0)
    return torch.from_numpy(weights.astype(np.float32))
