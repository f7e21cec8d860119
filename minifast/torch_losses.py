"""PyTorch's own losses: which of them a loss is, and the labels that it takes."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from .batches import seen
from .core import explain
from .losses import DIVISORS, OWN_LOSSES, is_changed, original

__all__: list[str] = []  # of use to the package alone

MODULES: dict[type[nn.Module], Any] = {
    **OWN_LOSSES,
    nn.HingeEmbeddingLoss: F.hinge_embedding_loss,
    nn.KLDivLoss: F.kl_div,
    nn.MultiLabelMarginLoss: F.multilabel_margin_loss,
    nn.MultiLabelSoftMarginLoss: F.multilabel_soft_margin_loss,
    nn.MultiMarginLoss: F.multi_margin_loss,
    nn.PoissonNLLLoss: F.poisson_nll_loss,
    nn.SoftMarginLoss: F.soft_margin_loss,
}
FORWARDS: dict[Any, Any] = {module.forward: function for module, function in MODULES.items()}
CLASS_LOSSES = (F.nll_loss, F.cross_entropy, F.multi_margin_loss)


def torch_loss(crit: Any) -> Any:
    """The PyTorch function that a loss is, or that its module calls; None for any other loss.

    What the loss is decides, not its name: a user's `nll_loss` may take whatever it likes, as may a
    subclass with a `forward` of its own.

    Examples:
        >>> torch_loss(nn.NLLLoss()) is torch_loss(partial(F.nll_loss, ignore_index=3))
        True
        >>> def nll_loss(preds, y): ...
        >>> torch_loss(nll_loss)
    """
    crit = original(crit)
    while isinstance(crit, partial) and not crit.args:
        crit = crit.func
    if not isinstance(crit, nn.Module):
        return next((function for function in DIVISORS if function is crit), None)
    own_call = type(crit).__call__ is not nn.Module.__call__
    return None if own_call or is_changed(crit) else FORWARDS.get(type(crit).forward)


def loss_option(crit: Any, name: str, default: Any = None) -> Any:
    """An option of a loss: an attribute of its module, or a keyword of a `functools.partial`."""
    crit = original(crit)
    while isinstance(crit, partial):
        if name in crit.keywords:
            return crit.keywords[name]
        crit = crit.func
    return getattr(crit, name, default)


def loss_name(crit: Any) -> str:
    """What messages call a loss."""
    crit = original(crit)
    while isinstance(crit, partial):
        crit = crit.func
    return str(getattr(crit, "__name__", type(crit).__name__))


# ---- losses over classes -------------------------------------------------------------------


def class_loss(crit: Any) -> bool:
    """Whether it is a PyTorch loss that takes classes: integers from 0."""
    return torch_loss(crit) in CLASS_LOSSES


def label_problem(crit: Any, y: Any, classes: int | None = None, name: str = "y") -> str | None:
    """The text about labels that a class loss cannot take; None if nothing is found.

    `classes` is how many outputs the net has, once that is known.
    """
    if not class_loss(crit) or not isinstance(y, Tensor) or not y.numel():
        return None
    loss = loss_name(crit)
    if y.is_floating_point() and (y.ndim == 1 or (y.ndim == 2 and y.shape[1] == 1)):
        problem = f"the labels y are floats, and {loss} wants classes"
        fix = "y.astype(np.int64) before from_arrays; for a quantity, crit=nn.MSELoss()"
        return _labels(problem, y, fix, "float-labels")
    if y.ndim == 2 and y.shape[1] == 1:
        problem = f"the labels {name} are a column, and {loss} wants a row of them"
        return _labels(problem, y, "y.ravel() before from_arrays", "shapes-differ")
    if y.is_floating_point() or y.ndim != 1:
        return None  # probabilities, or a class for each pixel
    return _range_problem(y, _counted(crit, y), classes, name)


def all_ignored(crit: Any, y: Tensor) -> bool:
    """Whether a class loss leaves out every label: it is nan, and all its gradients are 0."""
    return class_loss(crit) and bool(y.numel()) and not bool(_counted(crit, y).any())


def _counted(crit: Any, y: Tensor) -> Tensor:
    """Which labels count: all except `ignore_index`, which may be any integer."""
    if torch_loss(crit) is F.multi_margin_loss:
        return torch.ones_like(y, dtype=torch.bool)
    return torch.ne(y, loss_option(crit, "ignore_index", -100))


def _range_problem(y: Tensor, counted: Tensor, classes: int | None, name: str) -> str | None:
    if not bool(counted.any()):
        return None
    low, high = int(y[counted].min()), int(y[counted].max())
    if low < 0:
        problem = f"{name} holds the label {low}, and classes are counted from 0"
        fix = "classes, y = np.unique(y, return_inverse=True); to leave out those rows, "
        return _labels(problem, y, f"{fix}crit's ignore_index={low}", "label-range")
    if classes is None or high < classes:
        return None
    row = int((counted & (y >= classes)).nonzero()[0])
    problem = f"{name} holds the label {high} (row {row}), and the net has {classes} outputs"
    fix = f"end the net in {high + 1} outputs, or number the classes from 0: np.unique(y, "
    fix += f"return_inverse=True); to leave out those rows, crit's ignore_index={high}"
    if low == 1 and high == classes:
        problem, fix = f"the labels {name} start at 1, and classes are counted from 0", "y - 1"
    return _labels(problem, y, fix, "label-range")


def _labels(problem: str, y: Tensor, fix: str, entry: str) -> str:
    return explain(
        problem,
        got=f"{seen(y)}, the first {y.flatten()[:4].tolist()}",
        wanted="integers 0, 1, 2, ...: int64 of shape (rows,)",
        fix=fix,
        entry=entry,
    )


# ---- predictions and targets -----------------------------------------------------------


def pair_problem(crit: Any, p: Tensor, y: Tensor, said: str) -> tuple[str, str, str, str] | None:
    """Problem, wanted, fix and entry of predictions and targets that a PyTorch loss refused."""
    if p.device != y.device:
        return "predictions and y are apart", "one device", "leave the device to fit", "devices"
    if class_loss(crit):
        return _pair_of_classes(p, y)
    if "between 0 and 1" in said:
        wanted = "probabilities, 0 to 1"
        fix = "crit=nn.BCEWithLogitsLoss(), or end the net in nn.Sigmoid()"
        return "BCELoss wants probabilities, and the net gives scores", wanted, fix, "sigmoid"
    if p.shape != y.shape:
        fix = f"y.reshape{tuple(p.shape)} before from_arrays"
        if p.ndim == y.ndim + 1 and p.shape[-1] == 1:
            fix = "y.reshape(-1, 1) before from_arrays"
        elif p.numel() != y.numel():
            fix = f"end the net in {y.shape[1] if y.ndim > 1 else 1} outputs"
        return "predictions and y differ in shape", "the same shape", fix, "shapes-differ"
    if p.dtype != y.dtype:
        fix = "from_arrays(..., continuous=True), or y.astype(np.float32)"
        return "predictions and y differ in type", "floats in both", fix, "target-dtype"
    return None


def _pair_of_classes(p: Tensor, y: Tensor) -> tuple[str, str, str, str] | None:
    if p.ndim == 1 or (len(p) != len(y)):
        wanted = "(rows, classes): a row of outputs for each label"
        fix = "end the net in nn.Linear(..., classes), and keep the first axis for the rows"
        return "the net's outputs do not fit the labels", wanted, fix, "shapes-differ"
    if y.ndim == 2:
        wanted = "the number of the class: int64 of shape (rows,)"
        return "the labels y are one-hot", wanted, "y.argmax(1) before from_arrays", "one-hot"
    if y.dtype != torch.int64:
        fix = "y.long()"
        if y.is_floating_point() and p.ndim == y.ndim + 1 > 2:
            fix = "y.astype(np.int64): uint8 arrays with several axes are taken as images, not as "
            fix += "a class for each pixel"
        return "the labels y are no int64", "int64", fix, "float-labels"
    return None
