"""What training changes: the one list that checkpoints, `lr_find`, `SaveBest` and teams use."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from .losses import original
from .reach import reachable
from .rng import random_state, set_random_state, start_alike
from .storage import has_nan, weights_differ

__all__: list[str] = []  # of use to the package alone


class Trained:
    """The tensors that training changes: of the net, of the loss, and whatever else is optimized.

    Attributes:
        modules: The net as `"net"`, and the loss's modules that training can change (it trains
            parameters of theirs, or they are in train mode and have buffers): a loss that is a
            module itself, or is made of one by `functools.partial`, a method or a closure.
        strays: The optimizer's parameters that belong to none of them, by their place in it.

    Examples:
        >>> class Scaled(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.scale = nn.Parameter(torch.ones(1))
        >>> net, crit = nn.Linear(2, 1), Scaled()
        >>> opt = torch.optim.SGD([*net.parameters(), *crit.parameters()], lr=0.1)
        >>> [name for name, _ in Trained(net, crit, opt).parameters()]
        ['net.weight', 'net.bias', 'loss.scale']
    """

    def __init__(self, net: nn.Module, crit: Any, opt: Optimizer) -> None:
        self.net, self.opt = net, opt
        optimized = {id(p) for group in opt.param_groups for p in group["params"]}
        own = {id(module) for module in net.modules()}
        self.modules = {"net": net}
        for path, module in reachable(original(crit), nn.Module).items():
            trained = any(id(p) in optimized for p in module.parameters())
            kept = any(m.training and [*m.buffers()] for m in module.modules())
            if id(module) not in own and (trained or kept):
                self.modules[f"loss{path}"] = module
        known = {id(p) for module in self.modules.values() for p in module.parameters()}
        self.strays: dict[str, Tensor] = {
            f"opt.{i}.{j}": p
            for i, group in enumerate(opt.param_groups)
            for j, p in enumerate(group["params"])
            if id(p) not in known
        }

    @property
    def loss(self) -> dict[str, nn.Module]:
        """The modules without the net."""
        return {name: module for name, module in self.modules.items() if name != "net"}

    def parameters(self) -> Iterator[tuple[str, Tensor]]:
        """All parameters by name, those that are not optimized included."""
        for root, module in self.modules.items():
            for name, p in module.named_parameters():
                yield f"{root}.{name}", p
        yield from self.strays.items()

    def buffers(self) -> list[Tensor]:
        """The buffers of all modules, except those that a lazy one has not made yet."""
        found = (b for module in self.modules.values() for b in module.buffers())
        return [b for b in found if not is_lazy(b)]

    def unsaved_buffers(self) -> dict[str, Tensor]:
        """Those that are in no `state_dict`: registered with `persistent=False`."""
        found = {}
        for root, module in self.modules.items():
            saved = module.state_dict(keep_vars=True)
            for name, b in module.named_buffers():
                if name not in saved:
                    found[f"{root}.{name}"] = b
        return found

    def put_buffer(self, path: str, value: Tensor) -> None:
        """Sets a buffer that `unsaved_buffers` named. It may have grown, as caches do."""
        root = next(r for r in sorted(self.modules, key=len)[::-1] if path.startswith(f"{r}."))
        owner, _, name = path[len(root) + 1 :].rpartition(".")
        module = self.modules[root].get_submodule(owner)
        now = module._buffers[name]
        shrunk = now is not None and any(
            n < m for n, m in zip(value.shape, now.shape, strict=False)
        )
        if now is None or now.dtype != value.dtype or now.ndim != value.ndim or shrunk:
            raise ValueError(f"{path} is {tuple(value.shape)} of {value.dtype}")
        if now.shape == value.shape:
            now.copy_(value)
        else:
            module._buffers[name] = value.to(now.device)


def others(net: nn.Module, opt: Optimizer) -> list[Tensor]:
    """What the optimizer changes and is not the net's: a loss may have parameters."""
    ours = {id(p) for p in net.parameters()}
    return [p for group in opt.param_groups for p in group["params"] if id(p) not in ours]


def copied(state: dict[str, Any]) -> dict[str, Any]:
    """A copy of a `state_dict`, which may hold more than tensors (`get_extra_state`)."""
    return {
        name: value.detach().clone() if isinstance(value, Tensor) else copy.deepcopy(value)
        for name, value in state.items()
    }


class Form:
    """The names, shapes and dtypes of a net's weights, to compare a saved copy of them with."""

    def __init__(self, net: nn.Module) -> None:
        self.like: dict[str, Any] = {
            name: torch.empty(t.shape, dtype=t.dtype, device="meta")
            if isinstance(t, Tensor) and not is_lazy(t)
            else t
            for name, t in net.state_dict().items()
        }
        self.sound = {name for name, p in net.named_parameters() if not has_nan(p)}

    def check(self, weights: dict[str, Any]) -> None:
        """Compares weights, if there are any.

        Raises:
            ValueError: if they are not such a net's; the message lists what differs.
        """
        if not isinstance(weights, dict):
            raise ValueError(f"weights are a {type(weights).__name__}")
        found = weights_differ(self.like, weights) if weights else []
        for name, t in weights.items():
            if name in self.sound and isinstance(t, Tensor) and has_nan(t):
                found.append(f"{name} holds nan")
        if found:
            raise ValueError("; ".join(found[:3]))


def load_optimizer(opt: Optimizer, state: dict[str, Any]) -> None:
    """Loads an optimizer's state as it was saved.

    PyTorch gives the state the dtype of the parameters, which may be smaller, and replaces learning
    rates that are tensors, which others may hold.
    """
    before = [dict(group) for group in opt.param_groups]
    opt.load_state_dict(state)
    for old, group in zip(before, opt.param_groups, strict=True):
        for name, value in group.items():
            held = old.get(name)
            if isinstance(held, Tensor) and isinstance(value, Tensor):
                held.copy_(value)
                group[name] = held
    parameters = [p for group in opt.param_groups for p in group["params"]]
    for i, saved in state["state"].items():
        now = opt.state[parameters[i]]
        for name, value in saved.items():
            if isinstance(value, Tensor) and value.dtype != now[name].dtype:
                now[name] = value.to(now[name].device)


class Buffers:
    """A copy of a net's buffers, to put it back, whether they were written to or replaced."""

    def __init__(self, net: nn.Module) -> None:
        self.kept = [
            (module, {name: (b, None if b is None else _cloned(b)) for name, b in own})
            for module in net.modules()
            if (own := [*module._buffers.items()])
        ]

    @torch.no_grad()
    def put_back(self) -> None:
        """Gives each its values again; a lazy one that was made meanwhile stays."""
        for module, buffers in self.kept:
            for name, (b, before) in buffers.items():
                if b is not None and before is None:  # it was lazy
                    continue
                module._buffers[name] = b
                if b is not None and before is not None and _can_be_written(b):
                    b.copy_(before)


class Aside:
    """A copy of what training changes, to put it back: the same tensors get their values again.

    What a lazy module made at its first batch cannot be taken back: it gets fresh weights.
    """

    def __init__(self, net: nn.Module, crit: Any, opt: Optimizer, loader: Any) -> None:
        trained = Trained(net, crit, opt)
        self.opt, self.loader = opt, loader
        self.modules = [m for root in trained.modules.values() for m in root.modules()]
        self.lazy = [m for m in self.modules if any(map(is_lazy, _own(m)))]
        self.tensors = [
            (t, t.detach().clone())
            for t in {id(t): t for _, t in trained.parameters()}.values()
            if not is_lazy(t)
        ]
        self.buffers = [Buffers(root) for root in trained.modules.values()]
        self.extra = [(m, copy.deepcopy(m.get_extra_state())) for m in self.modules if _extra(m)]
        self.grads = [
            (p, None if p.grad is None else p.grad.clone()) for _, p in trained.parameters()
        ]
        self.state = copy.deepcopy(opt.state_dict())
        self.random = random_state(loader)

    def put_back(self) -> None:
        """Puts everything back; each part also if another one fails."""
        with ExitStack() as parts:  # the last one is called first
            parts.callback(set_random_state, self.random, self.loader)
            parts.callback(start_alike, self.loader, self.random)
            parts.callback(load_optimizer, self.opt, self.state)
            parts.callback(self._put_back_grads)
            for module in self.lazy:
                parts.callback(_begin_again, module)
            for module, state in self.extra:
                parts.callback(module.set_extra_state, state)
            for buffers in self.buffers:
                parts.callback(buffers.put_back)
            parts.callback(self._put_back_tensors)

    @torch.no_grad()
    def _put_back_tensors(self) -> None:
        for t, value in self.tensors:
            t.copy_(value)

    def _put_back_grads(self) -> None:
        for p, grad in self.grads:
            p.grad = grad


class Attributes:
    """A copy of what a stepper, callback or metric holds, to put it back."""

    def __init__(self, holder: Any) -> None:
        self.holder = holder
        self.own = dict(vars(holder)) if hasattr(holder, "__dict__") else {}
        self.state: Any = None
        with suppress(Exception):  # it has no state, or none yet
            self.state = copy.deepcopy(holder.state_dict())

    def put_back(self) -> None:
        """Sets its attributes, and loads its state, which they may share with it."""
        self._set()
        if self.state:
            try:
                self.holder.load_state_dict(self.state)
            except Exception:  # it takes no state, its own included
                self._set()

    def _set(self) -> None:
        for name in [*vars(self.holder)] if self.own else ():
            if name not in self.own:
                del self.holder.__dict__[name]
        if self.own:
            vars(self.holder).update(self.own)


@contextmanager
def preserve_state(
    net: nn.Module, crit: Any, opt: Optimizer, loader: Any, stepper: Any = None
) -> Iterator[None]:
    """Puts back at the end what training changes, however it ends.

    That is weights, buffers and gradients of net and loss, the optimizer, the stepper, and random
    generators.

    Examples:
        >>> net = nn.Linear(2, 1)
        >>> before = net.weight.clone()
        >>> with preserve_state(net, None, torch.optim.SGD(net.parameters(), lr=0.1), None):
        ...     _ = net.weight.data.zero_()
        >>> torch.equal(net.weight, before)
        True
    """
    with ExitStack() as parts:
        parts.callback(Attributes(stepper).put_back)
        parts.callback(Aside(net, crit, opt, loader).put_back)
        yield


def _grown(t: Tensor, before: Tensor) -> bool:
    sizes = zip(t.shape, before.shape, strict=False)
    return t.ndim == before.ndim and all(now >= then for now, then in sizes)


def _can_be_written(t: Tensor) -> bool:
    """Whether no number of it stands for many, as after `expand`: training cannot write those."""
    dense = t.layout == torch.strided
    return not dense or all(n < 2 or step for n, step in zip(t.shape, t.stride(), strict=True))


def _cloned(t: Tensor) -> Tensor | None:
    return None if is_lazy(t) else t.detach().clone()


def _own(module: nn.Module) -> list[Tensor]:
    tensors = (*module._parameters.values(), *module._buffers.values())
    return [t for t in tensors if t is not None]


def _extra(module: nn.Module) -> bool:
    return type(module).get_extra_state is not nn.Module.get_extra_state


def _begin_again(module: Any) -> None:
    if hasattr(module, "reset_parameters") and not any(map(is_lazy, _own(module))):
        module.reset_parameters()
