"""Numbers that are nan or infinite: in a batch, in a loss, in the weights; and what they mean."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from .batches import leaves, seen
from .callback import Run
from .core import explain
from .losses import WeightedLoss
from .mistakes import MEANT, NOT_YET
from .rng import random_state, set_random_state
from .trained import Buffers, Trained

__all__: list[str] = []  # of use to `model` and `look` alone


def not_finite(xs: Sequence[Any], y: Any) -> tuple[str, str] | None:
    """What of a batch is nan or infinite, and where; None if nothing is, as far as it can be asked.

    Such numbers may be meant: a mask that is added, rows without a target, gaps that a net fills.
    """
    for name, value in [*(("x", x) for x in xs), ("y", y)]:
        for t in leaves(value):
            dense = isinstance(t, Tensor) and t.layout == torch.strided and not t.is_nested
            if not dense or not t.ndim or not has(is_not_finite, t):
                continue
            row = int((~t.isfinite()).reshape(len(t), -1).any(1).nonzero()[0])
            numbers = ", ".join(f"{n:.4g}" for n in t[row].flatten()[:6].tolist())
            return name, f"row {row} of {{batch}}, {seen(t)}: {numbers}..."
    return None


def is_not_finite(t: Tensor) -> Tensor:
    return ~t.isfinite()


def has(kind: Callable[[Tensor], Tensor], t: Tensor | None) -> bool:
    """Whether one of the entries is of a kind; False where the tensor cannot be asked."""
    if t is None or is_lazy(t) or not (t.is_floating_point() or t.is_complex()):
        return False
    if t.layout == torch.sparse_coo:
        t = t.coalesce().values()
    try:
        return bool(kind(t).any())
    except RuntimeError:  # a layout or dtype without the operation
        return False


def nan_in_data(what: str, found: tuple[str, str]) -> str:
    name, where = found
    return explain(
        f"{name} has numbers that are nan or infinite, and {what}",
        got=where.format(batch="the first batch"),
        wanted="finite numbers, or a loss and gradients that leave the others out",
        fix="np.nan_to_num, or leave out those rows; in a loss (preds - y)[y.isfinite()], as "
        f"torch.where and * 0 give nan gradients; {MEANT}",
        entry="nan-in-the-data",
    )


# ---- a loss that is not finite ----------------------------------------------------------


def counts_nothing(run: Run) -> bool:
    """Whether the loss is nan because nothing in the batch counts, such as labels all ignored.

    All gradients are 0 then and training continues, so the smoothed loss leaves the batch out. It
    is asked only where a loss is not finite: the loss divides by 0, and no weight or gradient is
    nan. A GPU tells of a loss when its batch is gone, and then the weights alone decide.
    """
    running = run.running_loss
    if not running.nans and not isinstance(running.last, Tensor):
        return False
    if not math.isfinite(running.average):
        return False
    tensors = (t for _, p in parameters(run) for t in (p, p.grad))
    if any(has(is_not_finite, t) for t in tensors):
        return False
    if not isinstance(running.last, Tensor) and not _divides_by_zero(run):
        return False
    running.leave_out_nan()
    return math.isfinite(running.average)


def _divides_by_zero(run: Run) -> bool:
    """Whether the batch's loss divides by 0; one that is not known is called once more."""
    if run.preds is None or run.preds is NOT_YET:
        return False
    if isinstance(run.crit, WeightedLoss):
        return bool(run.loss_weight == 0)
    crit = WeightedLoss(run.crit)
    buffers = [Buffers(module) for module in Trained(run.net, run.crit, run.opt).loss.values()]
    generators = random_state(None)
    try:
        with torch.no_grad():
            crit(run.preds, run.y)
    finally:
        set_random_state(generators, None)
        for each in buffers:
            each.put_back()
    return crit.divisor is not None and bool(crit.divisor == 0)


def parameters(run: Run) -> Iterator[tuple[str, Tensor]]:
    for name, p in Trained(run.net, run.crit, run.opt).parameters():
        yield name.removeprefix("net."), p


def at_no_number(run: Run) -> None:
    """Ends training whose loss is nan or infinite, and says where it began."""
    if run.checks == "off":
        return
    lrs = ", ".join(f"{float(group['lr']):g}" for group in run.opt.param_groups if "lr" in group)
    bad = next((name for name, p in parameters(run) if has(is_not_finite, p)), None)
    data = not_finite(run.x if isinstance(run.x, tuple) else [run.x], run.y)
    last = run.running_loss.last
    before = "" if isinstance(last, float) else " or before"  # a GPU's comes later
    fix = "a smaller learning rate: lr_find(...), or GradClip"
    if data:
        fix = "np.nan_to_num, leave out those rows, or a loss that leaves them out"
    elif run.preds is not None and _divides_by_zero(run):
        fix = "nothing in the batch counts: divide by count.clamp(min=1) in the loss"
    parameter = f"; the first bad parameter: {bad}" if bad else ""
    rows = f"; {data[0]} is not finite in {data[1].format(batch='the batch')}" if data else ""
    text = explain(
        f"the loss is {float(last)} at batch {run.batch}{before} of epoch {run.epoch}",
        got=f"lr {lrs}{parameter}{rows}",
        wanted="a finite loss: from here on nothing is learned",
        fix=f"{fix}; {MEANT}",
        entry="nan-loss",
    )
    if run.checks == "on":
        raise FloatingPointError(text)
    warnings.warn(text, stacklevel=4)
    run.checks = "off"  # said once
