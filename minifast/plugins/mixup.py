"""Learn from mixtures."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from ..callback import Callback, Run
from ..core import explain
from ..losses import original
from ._arguments import number


class MixUp(Callback):
    """Learns from each batch mixed with itself in another order: `t * x + (1 - t) * x[order]`.

    Zhang et al. 2018, [arXiv:1710.09412](https://arxiv.org/abs/1710.09412). The loss is mixed
    alike, `t * crit(preds, y) + (1 - t) * crit(preds, y[order])`; `trn_loss` is that of the mixed
    input against the first of the two targets. t is drawn from Beta(alpha, alpha) for each batch,
    by PyTorch's generator. Inputs and targets are tensors, or tuples, lists or dicts of them.

    Args:
        alpha: Near 0 mixes little, 1 anything.

    Raises:
        TypeError, ValueError: if `alpha` is not a number above 0; at the batch, if an input cannot
            be mixed: integers, booleans, or a tensor whose first axis is not the batch's rows.

    Examples:
        >>> from minifast.testing import example_fit
        >>> history = example_fit([MixUp(alpha=0.4)])
    """

    changes_training = True
    must_precede = ("LabelSmoothing", "GradAccumulation")
    conflicts_with = ("MixUp",)

    def __init__(self, alpha: float = 0.4) -> None:
        fix = "MixUp(alpha=0.4), or leave MixUp out"
        wanted = "a number above 0"
        self.alpha = number(
            "alpha", alpha, lambda v: 0 < v < math.inf, wanted, fix=fix, entry="mixing"
        )
        self.targets: list[tuple[float, Any]] = []  # of this batch, with their shares
        self.crit: Any = None

    def on_train_begin(self, run: Run) -> None:
        """Notes the loss: another callback may wrap it."""
        self.targets, self.crit = [], original(run.crit)

    def on_batch_begin(self, run: Run) -> None:
        """Mixes the input."""
        rows = _rows(run)  # before anything is drawn
        alpha = torch.tensor(float(self.alpha))
        part = torch.distributions.Beta(alpha, alpha).sample().item()
        order = torch.randperm(rows)
        self.targets = [(part, run.y), (1 - part, _each(run.y, lambda t: t[order.to(t.device)]))]
        run.x = _each(run.x, lambda t: t.lerp(t[order.to(t.device)], 1 - part))

    def transform_loss(self, run: Run, preds: Any, loss: Any) -> Any:
        """The mixed loss."""
        if not self.targets:  # the batch is not mixed yet
            return loss
        (part, _), (rest, other) = self.targets
        return part * loss + rest * self.crit(preds, other)

    def on_backward_begin(self, run: Run) -> None:
        """Mixes the loss."""
        run.loss = self.transform_loss(run, run.preds, run.loss)

    def on_batch_end(self, run: Run) -> None:
        """Lets go of the targets."""
        self.targets = []


def _each(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The tensors in `value` changed."""
    if isinstance(value, dict):
        return {key: _each(v, change) for key, v in value.items()}
    if isinstance(value, tuple | list):
        parts = [_each(v, change) for v in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    return change(value)


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, dict | tuple | list):
        for v in value.values() if isinstance(value, dict) else value:
            yield from _leaves(v)
    else:
        yield value


def _rows(run: Run) -> int:
    """The batch's rows, if all its parts have as many and can be mixed."""
    parts = [("x", v) for v in _leaves(run.x)] + [("y", v) for v in _leaves(run.y)]
    rows = next((v.shape[0] for _, v in parts if isinstance(v, Tensor) and v.ndim), 0)
    for name, v in parts:
        strided = isinstance(v, Tensor) and v.layout == torch.strided
        if not strided or not v.ndim or v.shape[0] != rows:
            wanted = f"tensors whose first axis is the batch's {rows} rows"
        elif name == "x" and not (v.is_floating_point() or v.is_complex()):
            wanted = "floats: a mixture of two integers or of two masks is neither"
        else:
            continue
        got = f"{v.dtype} of shape {tuple(v.shape)}" if strided else type(v).__name__
        raise TypeError(
            explain(
                f"MixUp cannot mix the batch's {name}",
                got=got.removeprefix("torch."),
                wanted=wanted,
                fix="leave MixUp out; or, for pixels stored as integers, x.astype(np.float32)",
                entry="mixing",
            )
        )
    return rows
