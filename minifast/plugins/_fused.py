"""torch's fused kernels of SGD and Adam, called on the state that the optimizer itself keeps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim import optimizer as torch_optimizer

Group = dict[str, Any]

# Private names, looked up once: where one is gone or does something else, `_kernels` tells.
SGD_KERNEL: Any = getattr(torch, "_fused_sgd_", None)
ADAM_KERNEL: Any = getattr(torch, "_fused_adam_", None)
ADAMW_KERNEL: Any = getattr(torch, "_fused_adamw_", None)


@torch.no_grad()
def fused_step(opt: Optimizer) -> None:
    """The step that the optimizer would make with `fused=True`."""
    step = _sgd if type(opt) is SGD else _adam
    for group in opt.param_groups:
        params = [p for p in group["params"] if p.grad is not None]
        if params:
            step(group, params, [p.grad for p in params], opt.state)
            increment_version(params)  # the kernels do not tell autograd that they wrote


def uncovered(opt: Optimizer) -> str | None:
    """Why the optimizer's next step is not one for its kernel; None if it is."""
    if type(opt) not in (SGD, Adam, AdamW):
        return f"{type(opt).__name__} is not SGD, Adam or AdamW"
    if "step" in vars(opt):
        return "the optimizer's step was replaced, as schedulers of torch do"
    if any(hooks_on_step(opt)):
        return "the optimizer has hooks on its step"
    for group in opt.param_groups:
        if any(group.get(flag) for flag in FLAGS):
            return f"one of {', '.join(FLAGS)} was asked for"
        if not all(map(_dense, group["params"])):
            return "a parameter or gradient is not dense, float32 and on the CPU"
    return None


def hooks_on_step(opt: Any) -> tuple[Any, ...]:
    """The hooks on an optimizer's step, and those on every optimizer's."""
    of_all: Any = torch_optimizer
    return (
        opt._optimizer_step_pre_hooks,
        opt._optimizer_step_post_hooks,
        of_all._global_optimizer_pre_hooks,
        of_all._global_optimizer_post_hooks,
    )


FLAGS = "foreach", "fused", "differentiable", "capturable"


def _dense(p: Tensor) -> bool:
    dense = p.dtype == torch.float32 and p.is_cpu and p.layout == torch.strided
    return dense and (p.grad is None or p.grad.layout == torch.strided)


def _sgd(group: Group, params: list[Tensor], grads: list[Any], state: Any) -> None:
    momentum = group["momentum"]
    options = {name: group[name] for name in SGD_OPTIONS}
    if momentum == 0:
        SGD_KERNEL(params, grads, [], is_first_step=False, **options)
        return
    # Parameters that have their first gradient now are a call of their own: it fills their buffers.
    first = [state[p].get("momentum_buffer") is None for p in params]
    for begins in {*first}:
        those = [i for i, new in enumerate(first) if new == begins]
        if begins:
            for i in those:
                state[params[i]]["momentum_buffer"] = torch.empty_like(grads[i])
        buffers = [state[params[i]]["momentum_buffer"] for i in those]
        some = [params[i] for i in those], [grads[i] for i in those], buffers
        SGD_KERNEL(*some, is_first_step=begins, **options)


SGD_OPTIONS = "weight_decay", "momentum", "lr", "dampening", "nesterov", "maximize"


def _adam(group: Group, params: list[Tensor], grads: list[Any], state: Any) -> None:
    states = [state[p] for p in params]
    for p, own in zip(params, states, strict=True):
        if not own:
            own["step"] = torch.zeros((), dtype=torch.float32)
            own["exp_avg"] = torch.zeros_like(p, memory_format=torch.preserve_format)
            own["exp_avg_sq"] = torch.zeros_like(p, memory_format=torch.preserve_format)
            if group["amsgrad"]:
                own["max_exp_avg_sq"] = torch.zeros_like(p, memory_format=torch.preserve_format)
    steps = [own["step"] for own in states]
    torch._foreach_add_(steps, 1)
    beta1, beta2 = group["betas"]
    kernel: Callable[..., None] = ADAMW_KERNEL if group["decoupled_weight_decay"] else ADAM_KERNEL
    kernel(
        params,
        grads,
        [own["exp_avg"] for own in states],
        [own["exp_avg_sq"] for own in states],
        [own["max_exp_avg_sq"] for own in states] if group["amsgrad"] else [],
        steps,
        lr=group["lr"],
        beta1=float(beta1),
        beta2=float(beta2),
        weight_decay=group["weight_decay"],
        eps=group["eps"],
        amsgrad=group["amsgrad"],
        maximize=group["maximize"],
    )
