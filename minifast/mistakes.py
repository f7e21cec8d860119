"""What torch's errors mean, in words: for a batch that a net or a loss cannot take."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .batches import leaves, seen
from .core import explain
from .torch_losses import label_problem, loss_name, pair_problem, torch_loss

TORCHS = TypeError, ValueError, RuntimeError, IndexError, NotImplementedError, AttributeError
OURS = "errors-and-fixes#"
REUSED = "through the graph a second time"  # what PyTorch says of it
MEANT = 'if it is meant, fit(..., checks="warn")'  # where a check may be wrong
LOOK = "run net(x) on one batch by hand: the last line of the traceback in your code fails"
NOT_YET = object()  # stands for predictions, or a loss, that were not computed yet


def explain_failure(
    error: Exception,
    net: nn.Module,
    crit: Any,
    x: Any,
    y: Any,
    preds: Any,
    loss: Any,
    changed_by: str = "",
) -> None:
    """Raises the error in words, of the same type, if it came from net, loss or optimizer.

    A note says which handlers may have changed the batch or the loss before.

    One that is in words already, or came from a callback, is left alone. So is one of a kind that
    torch does not raise for a wrong input: it is the user's own.
    """
    notes = getattr(error, "__notes__", [])
    if OURS in str(error) or any(note.startswith("raised by") for note in notes):
        return
    if type(error) not in TORCHS or "allocate memory" in str(error):
        return
    if "nference tensor" in str(error):
        text = _inference_tensors(str(error).split(". ")[0])
    elif preds is NOT_YET:
        text = _of_the_net(error, net, x)
    elif loss is NOT_YET:
        text = _of_the_loss(error, crit, preds, y)
    else:
        text = _of_the_step(error, net, x, y, preds)
    raise _noted(type(error)(text), changed_by) from error  # a local would hold it in a cycle


def _noted(error: Exception, changed_by: str) -> Exception:
    if changed_by:
        error.add_note(f"before it ran, and may have changed the batch or its loss: {changed_by}")
    return error


# ---- the net -----------------------------------------------------------------------------


def _of_the_net(error: Exception, net: nn.Module, x: Any) -> str:
    said = str(error).split("\n")[0]
    name, module, reached = _where(error, net)
    unknown = "net cannot take the batch", f"what {name} takes", LOOK, "net-input"
    known = (means for pattern, *means in _NET if re.search(pattern, said))
    problem, wanted, fix, entry = next(known, unknown)
    if entry == "net-input" and reached is not None:
        wanted, fix = _shape_for(module, reached, said) or (wanted, fix)
    got = f"x {seen(x)}; at {name}: {said}"
    if entry == "devices":
        places = sorted({str(p.device) for p in net.parameters()})
        got = f"x {seen(x)}; the net on {', '.join(places)}"
    if entry == "dtypes":
        got = f"x {seen(x)}; the net computes in {_dtypes(net)}"
        if reached is not None and reached.dtype == torch.bool:
            wanted = f"float32 at {name}: of several inputs booleans are masks, and stay bool"
            fix = "that array's .astype(np.float32), if it is not a mask"
        elif reached is not None and reached.is_complex():  # float32 would drop a part
            wanted, fix = "one type for both", "x.astype(np.complex64), or net.to(torch.complex128)"
    return explain(problem, got=got, wanted=wanted, fix=fix, entry=entry)


# What torch says; the problem, what was wanted, the fix, the entry.
_NET = (
    (
        r"same device|different devices|on device|device type|meta tensor|Placeholder storage",
        "net and batch are not on one device",
        "all of the net on one device; batches follow it there",
        "net.cuda() or net.cpu() on the whole net, before the optimizer is made",
        "devices",
    ),
    (
        r"type Long, Int|scalar types: Long|indices.*must be.*(Long|Int)",
        "the net looks up rows of an embedding, and x must hold integers",
        "int64",
        "x.astype(np.int64), or x.long() of a tensor",
        "dtypes",
    ),
    (
        r"same dtype|scalar type|data ?type|Input type|weight dtype|"
        r"expected .*(Float|Double|Long)|not implemented for",
        "net and batch compute in different types",
        "float32 in both",
        "x.astype(np.float32) before from_arrays, or net.float()",
        "dtypes",
    ),
    (
        r"more than 1 value per channel",
        "BatchNorm cannot take a single row in training",
        "two rows or more in each batch",
        "a larger bs",
        "lone-row",
    ),
    (
        r"index out of range in self",
        "x holds a number that is not a row of the embedding",
        "integers from 0 to num_embeddings - 1",
        "nn.Embedding(int(x.max()) + 1, ...)",
        "net-input",
    ),
    (
        r"forward\(\) (takes|missing|got)",
        "the net takes another number of inputs than a batch has",
        "as many inputs as forward has arguments: a loader yields (x1, ..., xn, y)",
        "give forward an argument for each input, or one *xs",
        "net-input",
    ),
    (
        r"missing the required .forward",
        "the net has no forward",
        "a method forward(self, x)",
        "look for its name: it must be spelt forward, and stand inside the class",
        "net-forward",
    ),
    (
        r"has no attribute",
        "the net's forward fails: an attribute does not exist",
        "a forward that runs",
        "look at the line that the traceback ends in: a method of that type, or for an attribute "
        "of the net, self.name = ... in __init__ after super().__init__()",
        "net-forward",
    ),
)


def _where(error: Exception, net: nn.Module) -> tuple[str, Any, Tensor | None]:
    """The innermost part of the net that the error came through, and what reached it."""
    names = {id(module): name for name, module in net.named_modules()}
    found: tuple[str, Any, Tensor | None] = "the net", net, None
    # Not the frame that caught it: to read its variables, `error` too, is to keep them with it.
    trace = error.__traceback__.tb_next if error.__traceback__ else None
    while trace is not None:
        here = trace.tb_frame.f_locals
        module = here.get("self")
        if isinstance(module, nn.Module) and id(module) in names:
            reached = here.get("input", here.get("x"))
            reached = reached if isinstance(reached, Tensor) else None
            name = f"net.{names[id(module)]}" if names[id(module)] else "the net"
            brief = str(module).split("\n")[0]
            if reached is not None or module is not found[1]:
                found = f"{name}, {brief.rstrip('(')}", module, reached
        trace = trace.tb_next
    return found


def _shape_for(module: Any, reached: Tensor, said: str) -> tuple[str, str] | None:
    """What the module wants, and how to give it; None where that is not certain."""
    shape = tuple(reached.shape)
    if isinstance(module, nn.Linear) and "shapes cannot be multiplied" in said:
        wanted = f"{module.in_features} numbers in each row's last axis, not {shape[-1]}"
        if math.prod(shape[1:]) == module.in_features:
            return wanted, "nn.Flatten() before it, or x = x.reshape(len(x), -1)"
        wide = math.prod(shape[1:]) if len(shape) > 2 else shape[-1]
        flat = "nn.Flatten(), " if len(shape) > 2 else ""
        return wanted, f"{flat}nn.Linear({wide}, {module.out_features})"
    channels = getattr(module, "in_channels", None) or getattr(module, "num_features", None)
    axes = next((int(n) for n in re.findall(r"(\d)d$", type(module).__name__)), 0)
    if channels is None or not axes:
        return None
    lengths = ["length"] if axes == 1 else ["depth", "height", "width"][-axes:]
    wanted = (
        f"(rows, {', '.join([str(channels), *lengths])}): {channels} channels on the second axis"
    )
    return wanted, _channels_fixed(module, channels, axes, shape)


def _channels_fixed(module: Any, channels: int, axes: int, shape: tuple[int, ...]) -> str:
    """How `shape` comes to have the channels on axis 1, if there is one way to it."""
    rank = axes + 2
    if len(shape) == rank and shape[1] == channels:
        return LOOK  # it is something else
    if len(shape) == rank and shape[-1] == channels:
        order = 0, rank - 1, *range(1, rank - 1)
        return f"the channels are on the last axis: np.transpose(x, {order})"
    if len(shape) == rank - 1 and channels == 1:
        return f"x = x.reshape(len(x), 1, {', '.join(map(str, shape[1:]))})"
    side = math.isqrt(shape[1] // channels) if len(shape) == 2 else 0
    if axes == 2 and side > 1 and channels * side**2 == shape[1]:
        return f"if they are square images: x = x.reshape(len(x), {channels}, {side}, {side})"
    if len(shape) == rank:
        return f"{type(module).__name__} with {shape[1]} channels in place of {channels}"
    return f"x with {rank} axes: x = x.reshape(len(x), {channels}, ...)"


def _dtypes(net: nn.Module) -> str:
    found = {str(p.dtype).removeprefix("torch.") for p in net.parameters()}
    return ", ".join(sorted(found)) or "nothing of its own"


# ---- the loss ----------------------------------------------------------------------------


def _of_the_loss(error: Exception, crit: Any, preds: Any, y: Any) -> str:
    name = loss_name(crit)
    said = str(error).split("\n")[0]
    got = f"predictions {seen(preds)}, y {seen(y)}; {name}: {said}"
    if isinstance(error, TypeError) and re.search(r"positional|keyword argument", said):
        wanted = "a function of two: crit(preds, y)"
        fix = "crit=lambda preds, y: ..., or functools.partial for the rest"
        return explain("crit cannot be called", got=got, wanted=wanted, fix=fix, entry="the-loss")
    if preds is None or isinstance(preds, np.ndarray):
        return explain(
            "the net does not return a tensor",
            got=got,
            wanted="a tensor with a row for each row of x",
            fix="end forward in: return x",
            entry="net-forward",
        )
    if not isinstance(preds, Tensor):
        part = f"[{next(iter(preds), 'name')!r}]" if isinstance(preds, Mapping) else "[0]"
        return explain(
            "crit cannot take the net's output, which it gets whole",
            got=got,
            wanted=f"a loss of all that the net returns, here a {type(preds).__name__}",
            fix=f"crit=lambda preds, y: {name}(preds{part}, y), or a net that returns one tensor",
            entry="outputs",
        )
    if isinstance(y, Tensor) and torch_loss(crit) is not None:
        problem = label_problem(crit, y, preds.shape[1] if preds.ndim == 2 else None)
        if problem:
            raise (TypeError if y.is_floating_point() else ValueError)(problem) from error
        found = pair_problem(crit, preds, y, said)
        if found:
            problem, wanted, fix, entry = found
            return explain(problem, got=got, wanted=wanted, fix=fix, entry=entry)
    return explain(
        "the loss cannot be computed of predictions and y",
        got=got,
        wanted=f"predictions and targets that {name} takes",
        fix="try crit(net(x), y) on the batch by hand",
        entry="the-loss",
    )


# ---- gradients and step ------------------------------------------------------------------


def _of_the_step(error: Exception, net: nn.Module, x: Any, y: Any, preds: Any) -> str:
    said = str(error).split("\n")[0]
    got = f"{type(error).__name__}: {said}"
    if not torch.is_grad_enabled() and "does not require grad" in said:
        return explain(
            "fit is called where PyTorch computes no gradients",
            got="torch.inference_mode() or torch.no_grad() around fit",
            wanted="gradients: only predict, validate and report do without",
            fix="call fit outside of it, or with torch.enable_grad() inside torch.no_grad()",
            entry="no-gradient",
        )
    if REUSED in said:
        return _second_backward(x, y)
    if "does not require grad" in said:
        frozen = not any(p.requires_grad for p in net.parameters())
        return explain(
            "there is no way from the loss back to a parameter",
            got="all parameters frozen" if frozen else got,
            wanted="a loss computed from the net's outputs, and a parameter that may change",
            fix="p.requires_grad_() for the parameters to be learned"
            if frozen
            else "no detach(), .data, numpy or torch.no_grad() on the way from the net to the loss",
            entry="no-gradient",
        )
    if "closure" in said:
        return explain(
            "the optimizer steps by a closure, which fit does not have",
            got=got,
            wanted="an optimizer whose step() needs nothing: SGD, Adam, AdamW, RMSprop, ...",
            fix="opt=optim.Adam(net.parameters()), or a Stepper whose step calls it",
            entry="closures",
        )
    if "dtype" in said or "scalar type" in said:
        return explain(
            "predictions and y differ in type",
            got=f"predictions {seen(preds)}, y {seen(y)}",
            wanted="floats in both",
            fix="from_arrays(..., continuous=True), or y.astype(np.float32)",
            entry="target-dtype",
        )
    return explain(
        "gradients or the step fail",
        got=got,
        wanted="a net and a loss that torch can differentiate",
        fix="try crit(net(x), y).backward() and opt.step() by hand",
        entry="no-gradient",
    )


@contextmanager
def explains_reuse(run: Any) -> Iterator[None]:
    """Explains a graph that is used twice, which no first batch can show."""
    try:
        yield
    except RuntimeError as error:
        notes = getattr(error, "__notes__", [])
        if REUSED not in str(error) or any(note.startswith("raised by") for note in notes):
            raise
        raise RuntimeError(_second_backward(run.x, run.y)) from error


def _inference_tensors(said: str) -> str:
    return explain(
        "some tensors were made under torch.inference_mode(), and cannot be trained with",
        got=said,
        wanted="a net, an optimizer and rows that were made outside of it",
        fix="make the net outside of it; torch.no_grad() in its place, or x.clone(), for rows",
        entry="no-gradient",
    )


def _second_backward(x: Any, y: Any) -> str:
    """Of a graph that an earlier batch has used: rows have it, or something keeps it."""
    tensors = [(n, t) for n, v in (("x", x), ("y", y)) for t in leaves(v) if isinstance(t, Tensor)]
    rows = [f"{name} {seen(t)}, from {t.grad_fn.name()}" for name, t in tensors if t.grad_fn]
    if rows:
        problem = "the rows are computed by a graph that an earlier batch has used up"
        got, fix = "; ".join(rows), "compute them under torch.no_grad(), or x = x.detach()"
    else:
        problem = "the step goes back into a graph that an earlier batch has used up"
        got = "rows without a graph, so the net or the loss keeps a tensor of an earlier batch"
        fix = "detach what is kept: self.hidden = hidden.detach()"
    return explain(
        problem,
        got=got,
        wanted="a graph of its own for each batch",
        fix=fix,
        entry="no-gradient",
    )
