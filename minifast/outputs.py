"""A look at the predictions and the loss of the first batch."""

from __future__ import annotations

import math
import warnings

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from .batches import seen
from .callback import Run
from .core import explain
from .losses import original
from .mistakes import MEANT
from .torch_losses import loss_name, loss_option, torch_loss

__all__: list[str] = []  # of use to `look` alone


def complain(run: Run, text: str, certain: bool = True) -> None:
    """An error where it is certain and wanted; a warning otherwise."""
    if certain and run.checks == "on":
        raise ValueError(text)
    warnings.warn(text, stacklevel=9)


def check_loss(run: Run) -> None:
    loss = run.loss
    if isinstance(loss, Tensor) and loss.numel() == 1:
        return
    fix, crit = "return one tensor, the mean over the rows: (...).mean()", original(run.crit)
    if isinstance(loss, Tensor) and getattr(crit, "reduction", "") == "none":
        fix = f"crit=nn.{loss_name(crit)}(), without reduction='none'"
    elif isinstance(loss, int | float):
        fix = "leave out .item() and float(): the gradients come through the tensor"
    got = seen(loss) if isinstance(loss, Tensor) else f"{type(loss).__name__}: {loss!r:.60}"
    raise TypeError(
        explain(
            "crit does not give a loss",
            got=got,
            wanted="a tensor of one number",
            fix=fix,
            entry="the-loss",
        )
    )


def check_preds(run: Run) -> None:
    function, name = torch_loss(run.crit), loss_name(run.crit)
    preds, y = run.preds, run.y
    if loss_option(run.crit, "reduction", "mean") == "sum":
        complain(run, _sums(name), certain=False)
    dense = isinstance(preds, Tensor) and preds.layout == torch.strided and not preds.is_nested
    if function is None or not dense or not isinstance(y, Tensor) or not preds.numel():
        return
    if preds.is_complex() or not bool(preds.isfinite().all()):
        return  # the loss will tell
    p = preds.detach().float()
    if function in REGRESSIONS and p.shape != y.shape and p.numel() != 1:
        complain(run, _broadcasts(preds, y, name))
    differ = p.ndim > 0 and bool((p != p[:1]).any())  # a last layer begun at 0 has equal rows
    inside = differ and p.numel() >= 16 and p.min() >= 0 and p.max() <= 1
    if function is F.binary_cross_entropy_with_logits and inside:
        complain(run, _twice("sigmoid", name, "the net's last layer"), certain=False)
    if p.ndim < 2 or not preds.is_floating_point():
        return
    eps = _precision(preds)
    if function is F.nll_loss and not _sums_to_one(p.exp(), eps):
        complain(run, _no_log_probabilities(p, name, _sums_to_one(p, eps)))
    if function is F.cross_entropy and p.shape[1] == 1:
        complain(run, _one_class(preds, name))
    elif function is F.cross_entropy and differ and _sums_to_one(p, eps):
        complain(run, _twice("softmax", name, "the net's last layer"), certain=False)


REGRESSIONS = (F.mse_loss, F.l1_loss, F.smooth_l1_loss, F.huber_loss)


def _precision(preds: Tensor) -> float:
    """The `eps` of the smallest dtype that holds the predictions as they are.

    A net may compute in half the bits and give float32, as under `MixedPrecision`.
    """
    halves = torch.bfloat16, torch.float16
    exact = [d for d in halves if torch.equal(preds.to(d).to(preds.dtype), preds)]
    return max(torch.finfo(dtype).eps for dtype in (preds.dtype, *exact))


def _sums_to_one(p: Tensor, eps: float) -> bool:
    """Whether the second axis holds probabilities, as far as numbers of this precision can.

    A rounded log-probability is off by eps / 2 of itself, and the mean size of log-probabilities,
    their entropy, is at most the logarithm of their number.
    """
    most = max(1e-2, eps * (1 + math.log(p.shape[1])))
    return bool((p >= 0).all() and ((p.sum(1) - 1).abs() < most).all())


def _broadcasts(preds: Tensor, y: Tensor, name: str) -> str:
    fix = f"make them alike: y.reshape{tuple(preds.shape)}"
    if preds.ndim == y.ndim + 1 and preds.shape[-1] == 1:
        fix = "y.reshape(-1, 1) before from_arrays, or a net that ends in nn.Flatten(0)"
    elif y.ndim == preds.ndim + 1 and y.shape[-1] == 1:
        fix = "y.ravel() before from_arrays"
    return explain(
        f"predictions and y differ in shape, and {name} would compare each row with every other",
        got=f"predictions {seen(preds)}, y {seen(y)}",
        wanted="the same shape",
        fix=f"{fix}; {MEANT}",
        entry="shapes-differ",
    )


def _no_log_probabilities(p: Tensor, name: str, probabilities: bool) -> str:
    return explain(
        f"{name} wants log-probabilities, and the net gives "
        + ("probabilities" if probabilities else "scores"),
        got=f"predictions from {float(p.min()):.3g} to {float(p.max()):.3g}",
        wanted="logarithms of probabilities: none above 0, and their exp sums to 1 in each row",
        fix="end the net in nn.LogSoftmax(dim=1)"
        + (" in place of Softmax" if probabilities else ", or crit=nn.CrossEntropyLoss()")
        + f"; {MEANT}",
        entry="log-probabilities",
    )


def _one_class(preds: Tensor, name: str) -> str:
    return explain(
        "the net has one output, and a loss over one class is always 0",
        got=f"predictions {seen(preds)} into {name}",
        wanted="an output for each class",
        fix="nn.Linear(..., 2) for two classes, or crit=nn.BCEWithLogitsLoss() with float labels; "
        f"{MEANT}",
        entry="one-output",
    )


def _twice(what: str, name: str, where: str) -> str:
    return explain(
        f"{what} is taken twice: by {where}, and again by {name}",
        got=f"predictions that are {what}'s already",
        wanted=f"the scores themselves: {name} has the {what} in it",
        fix=f"leave the {what} out of the net",
        entry="softmax-twice",
    )


def _sums(name: str) -> str:
    return explain(
        "crit sums over the rows of a batch",
        got=f"{name}(reduction='sum')",
        wanted="the mean: the losses shown are averaged over rows, and lr depends on the batch",
        fix=f"crit=nn.{name}()",
        entry="the-loss",
    )
