"""Nets that lie in parts on several processes (`fully_shard`), and tensors of that kind."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


def lies_in_parts(t: Any) -> bool:
    """Whether each process has a part of the tensor only.

    Examples:
        >>> lies_in_parts(torch.zeros(2))
        False
    """
    return hasattr(t, "full_tensor")  # a DTensor, whose module is slow to import


def is_sharded(net: nn.Module) -> bool:
    """Whether some of the net's parameters lie in parts."""
    return any(map(lies_in_parts, net.parameters()))


def put_together(value: Any) -> Any:
    """The same with whole tensors on the CPU for those in parts. All processes take part in it.

    Examples:
        >>> put_together({"a": [torch.ones(1), 2]})
        {'a': [tensor([1.]), 2]}
    """
    if lies_in_parts(value):
        return value.detach().full_tensor().cpu()
    if isinstance(value, Mapping):
        return {key: put_together(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [put_together(v) for v in value]
    return value


def taken_apart(value: Any, like: Mapping[str, Any]) -> Any:
    """The same with whole tensors cut into parts, where `like` has one in parts by their name."""
    if not isinstance(value, Mapping):
        return value
    return {
        key: part_like(v, like[key])
        if isinstance(v, Tensor) and lies_in_parts(like.get(key))
        else taken_apart(v, like)
        for key, v in value.items()
    }


def part_like(t: Tensor, like: Any) -> Tensor:
    """This process's part of a whole tensor that all have, as `like` is one; or all of it.

    Examples:
        >>> part_like(torch.ones(1), torch.zeros(1))
        tensor([1.])
    """
    if not lies_in_parts(like):
        return t.to(like.device)
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(t.to(like.device), like.device_mesh, like.placements)


def whole_state(net: nn.Module, opt: torch.optim.Optimizer) -> tuple[Any, Any]:
    """The states of a net in parts and its optimizer as of one that is whole, on the CPU.

    The first process has them whole, the others may have less.
    """
    from torch.distributed.checkpoint import state_dict as dcp

    options = dcp.StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights = dcp.get_model_state_dict(net, options=options)
    parts: Any = dcp.get_optimizer_state_dict(net, opt, options=options).get("state", {})
    names, groups = _names_and_groups(net, opt)
    state = {i: parts[name] for i, name in enumerate(names) if name in parts}
    return weights, {"state": state, "param_groups": groups}


def put_whole_state(net: nn.Module, opt: torch.optim.Optimizer, weights: Any, state: Any) -> None:
    """Gives each process its part of what `whole_state` gave, or an ordinary net's state."""
    from torch.distributed.checkpoint import state_dict as dcp

    options = dcp.StateDictOptions(full_state_dict=True)
    dcp.set_model_state_dict(net, weights, options=options)
    names, _ = _names_and_groups(net, opt)
    named: Any = {
        "state": {names[i]: part for i, part in state["state"].items()},
        "param_groups": [
            {**group, "params": [names[i] for i in group["params"]]}
            for group in state["param_groups"]
        ],
    }
    dcp.set_optimizer_state_dict(net, opt, named, options=options)


def _names_and_groups(net: nn.Module, opt: torch.optim.Optimizer) -> tuple[list[str], Any]:
    """The optimizer's parameters by name, in the order of its own state, and its groups."""
    of = {id(p): name for name, p in net.named_parameters()}
    names = [of[id(p)] for group in opt.param_groups for p in group["params"]]
    return names, opt.state_dict()["param_groups"]
