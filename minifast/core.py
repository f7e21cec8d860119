"""Tensors, devices, modes and messages: what every other module stands on."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from .arrays import as_tensor as as_tensor
from .arrays import length as length
from .arrays import training_dtype as training_dtype
from .errors import explain as explain

__all__ = ["T", "V", "set_lrs", "to_gpu", "to_np"]

Movable = TypeVar("Movable", Tensor, nn.Module)


def whole_number(name: str, value: Any, least: int, *, fix: str, entry: str) -> int:
    """The value as an int, if it is a whole number and not below `least`.

    Raises:
        TypeError: if it is no whole number (a truth value is none).
        ValueError: if it is below.

    Examples:
        >>> whole_number("bs", np.int64(64), 1, fix="bs=64", entry="batch-size")
        64
    """
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if whole and value >= least:
        return int(value)
    raise (ValueError if whole else TypeError)(
        explain(
            f"{name} cannot be {value!r}",
            got=repr(value),
            wanted=f"a whole number, {least} or more",
            fix=fix,
            entry=entry,
        )
    )


def positive(name: str, value: Any, *, fix: str, entry: str) -> Any:
    """The value, a number or a list of them, if all are above 0 and finite.

    Raises:
        ValueError: if one is not.

    Examples:
        >>> positive("max_lr", [0.1, 0.01], fix="OneCycle(0.1)", entry="schedules")
        [0.1, 0.01]
    """
    numbers = [value] if isinstance(value, int | float) else value
    if all(0 < number < float("inf") for number in numbers):
        return value
    wanted = "above 0 and finite"
    raise ValueError(
        explain(f"{name} cannot be {value!r}", got=repr(value), wanted=wanted, fix=fix, entry=entry)
    )


# ---- tensors -----------------------------------------------------------------------------


def T(a: Any, half: bool = False, cuda: bool = False) -> Tensor:  # noqa: N802
    """The tensor of an array-like: whole numbers as int64, floats as float32.

    A tensor is handed back as it is, a single number becomes one of shape (1,). Memory is shared
    with a numpy array that has the right dtype already.

    Args:
        a: Array, list, number or tensor.
        half: float16 for floats.
        cuda: Move it to the GPU, if there is one.

    Raises:
        TypeError: if `a` does not hold numbers.

    Examples:
        >>> T([[1, 2], [3, 4]]) @ T([[1], [1]])
        tensor([[3],
                [7]])
        >>> T(np.arange(3) / 2)
        tensor([0.0000, 0.5000, 1.0000])
    """
    if isinstance(a, Tensor):
        t = a
    else:
        t = torch.atleast_1d(as_tensor(a))
        t = t.to(training_dtype(t.dtype))
    if half and t.dtype.is_floating_point:
        t = t.half()
    return to_gpu(t) if cuda else t


def V(x: Any, requires_grad: bool = False, volatile: bool = False) -> Any:  # noqa: N802
    """`T(x)` where the net is: on the GPU once this program has used it, on the CPU otherwise.

    A net moved by `.cuda()` has used it, so `net(V(x))` works for a moved net and for one that
    was not. A tensor that is part of a graph stays part of it; a list or tuple gives a list.

    Args:
        x: Array-like or tensor, or a list or tuple of them.
        requires_grad: Give a leaf that collects gradients.
        volatile: 0.7's word for "no gradients": the result is detached.

    Examples:
        >>> w = V(np.ones(2), requires_grad=True)
        >>> (w * w).sum().backward()
        >>> w.grad
        tensor([2., 2.])
    """
    if isinstance(x, list | tuple):
        return [V(o, requires_grad, volatile) for o in x]
    t = T(x, cuda=torch.cuda.is_initialized())
    if volatile:
        return t.detach()
    return t.detach().requires_grad_() if requires_grad and not t.requires_grad else t


def to_np(v: Any) -> Any:
    """The numpy array of a tensor (on any device, with gradients or not), number or array.

    Shares memory with a tensor on the CPU. A list or tuple gives a list of arrays.

    Examples:
        >>> to_np(torch.ones(2, requires_grad=True) * 3)
        array([3., 3.], dtype=float32)
    """
    if isinstance(v, list | tuple):
        return [to_np(o) for o in v]
    if isinstance(v, Tensor):
        v = v.detach().cpu()
        return (v.float() if v.dtype == torch.bfloat16 else v).numpy()  # numpy has no bfloat16
    return np.asarray(v)


def to_gpu(x: Movable) -> Movable:
    """`x.cuda()` where there is an NVIDIA GPU; `x` itself where there is none.

    Examples:
        >>> net = to_gpu(nn.Linear(2, 1))
    """
    return x.cuda() if torch.cuda.is_available() else x


# ---- nets and optimizers -----------------------------------------------------------------


def device_of(net: nn.Module) -> torch.device:
    """Where the net's parameters are (its buffers, if it has none; else the CPU)."""
    first = next(chain(net.parameters(), net.buffers()), None)
    return torch.device("cpu") if first is None else first.device


@contextmanager
def modes_kept(net: nn.Module) -> Iterator[None]:
    """Gives every part of the net its train or eval mode back at the end."""
    found = [(module, module.training) for module in net.modules()]
    try:
        yield
    finally:
        for module, training in found:
            module.training = training


def set_lrs(opt: torch.optim.Optimizer, lrs: float | Sequence[float]) -> None:
    """Sets the learning rate from here on: one number, or one for each parameter group.

    The optimizer keeps its state (momentum, Adam's averages), so this is what goes between two
    fits. A learning rate that is a tensor stays one; groups that share a tensor get one each where
    theirs differ.

    Args:
        opt: Any optimizer of `torch.optim`.
        lrs: The learning rate, or a list with as many as `opt.param_groups`.

    Raises:
        ValueError: if their number is not that of the groups; nothing is changed then.

    Examples:
        >>> opt = torch.optim.SGD(nn.Linear(2, 1).parameters(), lr=0.1)
        >>> set_lrs(opt, 1e-2)
        >>> opt.param_groups[0]["lr"]
        0.01
    """
    groups = opt.param_groups
    if isinstance(lrs, Sequence | np.ndarray):
        numbers = [float(lr) for lr in lrs]
    else:
        numbers = [float(lrs)] * len(groups)
    if len(numbers) != len(groups):
        raise ValueError(
            explain(
                "lrs has another length than the optimizer has parameter groups",
                got=f"{len(numbers)} learning rates for {len(groups)} groups",
                wanted="one number, or one for each group",
                fix=f"set_lrs(opt, {numbers[0] if numbers else 1e-2})",
                entry="learning-rates",
            )
        )
    filled: dict[int, float] = {}  # tensors by their ids
    for group, lr in zip(groups, numbers, strict=True):
        old = group["lr"]
        if not isinstance(old, Tensor):
            group["lr"] = lr
        elif filled.setdefault(id(old), lr) == lr:
            old.fill_(lr)  # a compiled step reads the learning rate from this very tensor
        else:
            group["lr"] = torch.full_like(old, lr)


# ---- screens ---------------------------------------------------------------------------


def in_notebook() -> bool:
    """Whether the code runs in a Jupyter kernel (a notebook, Colab, an IDE's cells)."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and hasattr(ipython.get_ipython(), "kernel")
