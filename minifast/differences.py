"""How a saved state differs from the run that is to continue from it, before anything is loaded."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from .storage import has_nan, weights_differ
from .trained import Trained

__all__: list[str] = []  # of use to `checkpoint` alone

LARGEST = torch.finfo(torch.float32).max
COUNTS = 2**53  # more batches than any run has
# How torch computes the step, not which one: the run's own choice counts, not the file's.
KERNELS = ("foreach", "fused", "capturable", "differentiable")
NOT_NEGATIVE = {"exp_avg_sq", "max_exp_avg_sq", "exp_inf", "sum", "square_avg", "acc_delta", "step"}


def tensors_differ(trained: Trained, state: Mapping[str, Any]) -> list[str]:
    """What differs between what the run trains and what a state holds of it."""
    saved = {"net": state["net"], **state["loss"]}
    found = [f"{name} is missing" for name in trained.modules if name not in saved]
    found += [f"{name} is too many" for name in saved if name not in trained.modules]
    for name, module in trained.modules.items():
        prefix = "" if name == "net" else f"{name}."
        found += [
            prefix + what for what in weights_differ(module.state_dict(), saved.get(name, {}))
        ]
    found += weights_differ(trained.strays, state["strays"])
    parameters = dict(trained.parameters())
    for name, p in parameters.items():
        root = next((root for root in saved if name.startswith(f"{root}.")), "")
        value = saved[root].get(name[len(root) + 1 :]) if root else state["strays"].get(name)
        if isinstance(value, Tensor) and has_nan(value) and not has_nan(p):
            found.append(f"{name} holds nan")
    for name, grad in state["grads"].items():
        if name not in parameters or not _fits(grad, parameters[name]):
            found.append(f"the gradient of {name} is {seen(grad)}")
    buffers = trained.unsaved_buffers()
    found += [f"{name} is too many" for name in state["buffers"] if name not in buffers]
    return found


def _fits(grad: Any, p: Tensor) -> bool:
    same = isinstance(grad, Tensor) and grad.dtype == p.dtype
    return same and (is_lazy(p) or grad.shape == p.shape)


def optimizer_differs(opt: Optimizer, name: str, state: Mapping[str, Any]) -> list[str]:
    """What differs between an optimizer and a saved state: class, groups, options, tensors."""
    if name != type(opt).__name__:
        return [f"opt is {name}, here {type(opt).__name__}"]
    ours, theirs = (
        [len(group["params"]) for group in groups]
        for groups in (opt.param_groups, state["param_groups"])
    )
    if ours != theirs:
        return [f"opt has groups of {theirs} parameters, here {ours}"]
    if [i for group in state["param_groups"] for i in group["params"]] != [*range(sum(ours))]:
        return ["opt has its parameters in another order"]
    found = []
    for i, (here, there) in enumerate(zip(opt.param_groups, state["param_groups"], strict=True)):
        found += [f"opt's group {i}: {what}" for what in _options_differ(opt, here, there)]
    return found or [*_slots_differ(opt, state)]


def _options_differ(opt: Optimizer, here: Any, there: Any) -> Iterator[str]:
    yield from (f"{name} is missing" for name in here if name not in there)
    for name in [n for n in here if n in there and n != "params"]:
        then, now = there[name], here[name]
        if name in KERNELS:
            same = isinstance(then, bool | None)
        elif isinstance(now, bool | str | None) or name == "param_names":
            same = type(then) is type(now) and then == now
        else:
            yield from (f"{name}{what}" for what in form_differs(then, now, numbers=True))
            continue
        if not same:
            yield f"{name} is {then!r:.60}, here {now!r:.60}"
    if type(opt).__module__.startswith("torch.optim"):
        yield from _refused(opt, there)


def _refused(opt: Optimizer, there: Any) -> Iterator[str]:
    """What torch itself says of the options when such an optimizer is made."""
    known = inspect.signature(type(opt)).parameters
    options = {n: v for n, v in there.items() if n in known and n not in ("params", *KERNELS)}
    try:
        type(opt)([nn.Parameter(torch.zeros(2, 2))], **options)
    except Exception as error:
        yield str(error).split("\n")[0]


def _slots_differ(opt: Optimizer, state: Mapping[str, Any]) -> Iterator[str]:
    """What the optimizer keeps for each parameter, against what it keeps after a step."""
    groups = [group for group in state["param_groups"] for _ in group["params"]]
    parameters = [p for group in opt.param_groups for p in group["params"]]
    for i, slots in state["state"].items():
        if type(i) is not int or not 0 <= i < len(parameters) or not isinstance(slots, dict):
            yield f"opt has a state for {i!r:.60}, of {len(parameters)} parameters"
            continue
        like = _after_a_step(opt, parameters[i], groups[i]) if slots else None
        for what in _slot_differs(slots, like, parameters[i]):
            yield f"opt's {what} for parameter {i}"


def _slot_differs(
    slots: Mapping[str, Any], like: Mapping[str, Any] | None, p: Tensor
) -> Iterator[str]:
    for name, value in slots.items():
        if isinstance(value, Tensor):
            negative = name in NOT_NEGATIVE and bool((value < 0).any())
            if negative or has_nan(value):
                yield f"{name} holds nan or negative numbers"
            elif like is not None and name not in like and value.shape != p.shape:
                yield f"{name} is {seen(value)}"
    for name, value in (like or {}).items():
        if name not in slots:
            yield f"{name} is missing"
        elif not _same_kind(slots[name], value):
            yield f"{name} is {seen(slots[name])}, here {seen(value)}"


def _same_kind(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and a.dtype == b.dtype
    return not list(form_differs(a, b, numbers=True))


def _after_a_step(opt: Optimizer, p: Tensor, group: Mapping[str, Any]) -> dict[str, Any] | None:
    """What a PyTorch optimizer keeps for a parameter like `p` after a step, without values.

    It is made by a step for a small one; None where that cannot be made.
    """
    sharded = hasattr(p, "full_tensor")
    if not type(opt).__module__.startswith("torch.optim") or sharded or is_lazy(p):
        return None
    small = torch.zeros([min(n, 2 + i % 2) for i, n in enumerate(p.shape)], dtype=p.dtype)
    known = inspect.signature(type(opt)).parameters
    options = {n: v for n, v in group.items() if n in known and n not in ("params", *KERNELS)}
    like = nn.Parameter(small)
    like.grad = torch.zeros_like(small)
    try:
        trial = type(opt)([like], **options)
        trial.step()
    except Exception:  # LBFGS wants a closure, SparseAdam sparse gradients
        return None
    return {name: _as_large(value, small, p) for name, value in trial.state[like].items()}


def _as_large(value: Any, small: Tensor, p: Tensor) -> Any:
    if not isinstance(value, Tensor) or value.ndim != p.ndim:
        return value
    sizes = zip(value.shape, small.shape, p.shape, strict=True)
    shape = [large if n == m else n for n, m, large in sizes]
    return torch.empty(shape, dtype=value.dtype, device="meta")


def form_differs(saved: Any, fresh: Any, where: str = "", numbers: bool = False) -> Iterator[str]:
    """Where a saved state has another form than a fresh one of the same object.

    None may have become anything; a number stays a number, a text a text, a dict keeps its keys.
    `numbers` asks that finite numbers have stayed finite, and positive ones positive.

    Examples:
        >>> list(form_differs({"count": "3", "last": 1.5}, {"count": 0, "last": None}))
        ["['count'] is a str, here an int"]
    """
    if fresh is None:
        return
    if isinstance(fresh, dict) and isinstance(saved, dict):
        yield from (f"{where}[{key!r}] is missing" for key in fresh if key not in saved)
        for key in [key for key in fresh if key in saved]:
            yield from form_differs(saved[key], fresh[key], f"{where}[{key!r}]", numbers)
    elif isinstance(fresh, list | tuple) and isinstance(saved, list | tuple):
        if numbers and len(fresh) != len(saved):
            yield f"{where} has {len(saved)} parts, here {len(fresh)}"
        for i, (a, b) in enumerate(zip(saved, fresh, strict=False)):
            yield from form_differs(a, b, f"{where}[{i}]", numbers)
    else:
        yield from _leaf_differs(saved, fresh, where, numbers)


def _leaf_differs(saved: Any, fresh: Any, where: str, numbers: bool) -> Iterator[str]:
    if numbers and _is_number(fresh) and _is_number(saved):
        if not _is_sane(saved, fresh):
            yield f"{where} is {saved!r:.60}, here {fresh!r:.60}"
    elif not (isinstance(saved, type(fresh)) or _may_become(saved, fresh, numbers)):
        yield f"{where} is {_article(saved)}, here {_article(fresh)}"


def _may_become(saved: Any, fresh: Any, numbers: bool) -> bool:
    """Whether a number was replaced by a tensor, as in a sum of tensors that begins at 0."""
    return not numbers and _is_number(fresh) and (_is_number(saved) or isinstance(saved, Tensor))


def _is_number(value: Any) -> bool:
    return isinstance(value, bool | int | float) or (isinstance(value, Tensor) and value.ndim == 0)


def _is_sane(saved: Any, fresh: Any) -> bool:
    if isinstance(saved, Tensor) and saved.is_complex():
        return False
    if isinstance(saved, bool) and not isinstance(fresh, bool):
        return False
    here, there = float(fresh), float(saved) if abs(saved) <= LARGEST else math.inf
    return not math.isfinite(here) or (math.isfinite(there) and (there >= 0 or here < 0))


def counts_differ(state: Mapping[str, Any], n_batches: int | None) -> Iterator[str]:
    """Numbers of epochs and batches that no run can have."""
    counts = {name: state[name] for name in ("epoch", "batch", "step")}
    counts["count"] = state["running_loss"]["count"]
    for name, value in counts.items():
        if type(value) is not int or not 0 <= value < COUNTS:
            yield f"{name} is {value!r:.60}"
            return
    most = counts["step"] if n_batches is None else min(n_batches, counts["step"])
    if counts["batch"] > most:
        yield f"it is at batch {counts['batch']} of {most}"
    average = state["running_loss"]["average"]
    if type(average) not in (int, float) or not abs(average) <= LARGEST:
        yield f"the smoothed loss is {average!r:.60}"
    if not isinstance(state["stopped"], str | None):
        yield f"stopped is {_article(state['stopped'])}"
    rows = state["history"]
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        yield "the history is not a list of dicts"
    elif not all(type(row.get("epoch")) in (int, float) for row in rows):
        yield "the history has rows without an epoch"


def names_differ(what: str, saved: Iterable[Any], ours: Iterable[Any]) -> list[str]:
    """Which are there, in their order, if those are not ours."""
    then, now = list(saved), list(ours)
    return [f"{what} [{', '.join(then)}], here [{', '.join(now)}]"] if then != now else []


def seen(value: Any) -> str:
    """What a value is, in a few words."""
    if isinstance(value, Tensor):
        nan = ", with nan" if has_nan(value) else ""
        return f"{str(value.dtype).removeprefix('torch.')}{tuple(value.shape)}{nan}"
    return f"{type(value).__name__} {value!r:.40}"


def _article(value: Any) -> str:
    name = type(value).__name__
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"
