"""0.7's `LayerOptimizer`: torch's optimizer with a parameter group for each part of a net."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from ..core import set_lrs as set_lrs

__all__ = ["LayerOptimizer", "set_lrs", "set_wds", "set_wds_out"]


def set_wds(opt: torch.optim.Optimizer, wds: Any) -> None:
    """Sets the weight decay of torch's optimizer: a number, or one for each parameter group."""
    _set(opt, "weight_decay", wds)


def set_wds_out(opt: torch.optim.Optimizer, wds: Any) -> None:
    """Sets the decoupled weight decay, which `fit` applies beside the step: `p -= lr * wd * p`."""
    _set(opt, "wd", wds)


def _set(opt: torch.optim.Optimizer, key: str, values: Any) -> None:
    groups = opt.param_groups
    for group, value in zip(groups, one_for_each(values, len(groups), key), strict=True):
        group[key] = value


def one_for_each(values: Any, n: int, name: str) -> list[Any]:
    """`values` as a list of n numbers: one for all, or one for each."""
    listed = list(values) if isinstance(values, Sequence | np.ndarray) and np.ndim(values) else []
    listed = listed or [values] * n
    assert len(listed) == n, f"{name} has {len(listed)} values for {n} groups"
    return [float(v) if isinstance(v, np.number) else v for v in listed]


class LayerOptimizer:
    """Parameter groups made of the parts of a net, with a rate and a weight decay each.

    Args:
        opt_fn: Makes the optimizer of parameter groups: `optim.Adam`, or a `functools.partial`.
        layer_groups: A module, or a list of modules, or of lists of them.
        lrs: The rate, or one for each group.
        wds: The weight decay, or one for each group.

    Examples:
        >>> opt = LayerOptimizer(torch.optim.SGD, [nn.Linear(2, 2), nn.Linear(2, 1)], [0.1, 0.2])
        >>> opt.lr, [group["lr"] for group in opt.opt.param_groups]
        (0.2, [0.1, 0.2])
    """

    def __init__(
        self, opt_fn: Callable[..., Any], layer_groups: Any, lrs: Any, wds: Any = None
    ) -> None:
        groups = list(layer_groups) if isinstance(layer_groups, list | tuple) else [layer_groups]
        n = len(groups)
        self.layer_groups, self.opt_fn = groups, opt_fn
        self.lrs = one_for_each(lrs, n, "lrs")
        self.wds = one_for_each(0.0 if wds is None else wds, n, "wds")
        self.opt = self._made()

    def _made(self) -> Any:
        parts = zip(self.layer_groups, self.lrs, self.wds, strict=True)
        return self.opt_fn(
            [{"params": _learns(part), "lr": lr, "weight_decay": wd} for part, lr, wd in parts]
        )

    @property
    def lr(self) -> float:
        """The last group's rate."""
        return float(self.lrs[-1])

    @property
    def mom(self) -> float:
        """The last group's momentum, or Adam's first beta; 0 where there is none."""
        group = self.opt.param_groups[-1]
        return float(group["betas"][0] if "betas" in group else group.get("momentum", 0.0))

    def set_lrs(self, lrs: Any) -> None:
        """Sets the rates."""
        lrs = one_for_each(lrs, len(self.layer_groups), "lrs")
        set_lrs(self.opt, lrs)
        self.lrs = lrs

    def set_wds(self, wds: Any) -> None:
        """Sets the weight decay of torch's optimizer, and takes the decoupled one away."""
        wds = one_for_each(wds, len(self.layer_groups), "wds")
        set_wds(self.opt, wds)
        set_wds_out(self.opt, 0.0)
        self.wds = wds

    def set_wds_out(self, wds: Any) -> None:
        """Sets the decoupled weight decay, and takes torch's away."""
        wds = one_for_each(wds, len(self.layer_groups), "wds")
        set_wds_out(self.opt, wds)
        set_wds(self.opt, 0.0)
        self.wds = wds

    def set_mom(self, momentum: float) -> None:
        """Sets the momentum of all groups, or Adam's first beta."""
        for group in self.opt.param_groups:
            if "betas" in group:
                group["betas"] = (momentum, group["betas"][1])
            elif "momentum" in group:
                group["momentum"] = momentum

    def set_beta(self, beta: float) -> None:
        """Sets Adam's second beta, or RMSprop's alpha."""
        for group in self.opt.param_groups:
            if "betas" in group:
                group["betas"] = (group["betas"][0], beta)
            elif "alpha" in group:
                group["alpha"] = beta

    def set_opt_fn(self, opt_fn: Callable[..., Any]) -> None:
        """Begins anew with another kind of optimizer."""
        if opt_fn is not self.opt_fn:
            self.opt_fn = opt_fn
            self.opt = self._made()


def _learns(part: Any) -> list[nn.Parameter]:
    return [p for module in _modules(part) for p in module.parameters() if p.requires_grad]


def _modules(part: Any) -> Iterator[nn.Module]:
    if isinstance(part, nn.Module):
        yield part
    else:
        for each in part:
            yield from _modules(each)
