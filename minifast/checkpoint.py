"""The state of a run: what it takes to go on as if nothing had happened."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from .callback import Run

__all__ = ["snapshot"]


def snapshot(run: Run) -> dict[str, Any]:
    """The state of a run at the beginning of an epoch, taken in `on_epoch_begin`.

    `fit(..., epochs, resume=state)` with the same arguments goes on from there to the same end, to
    the bit. It holds tensors, numbers, strings, lists and dicts, all copied: of net, optimizer,
    callbacks (in the order of the list), random generators (torch, its GPUs, numpy, Python, the
    loader's), the smoothed loss and the history.

    Examples:
        >>> from minifast.callback import Callback
        >>> from minifast.testing import example_fit
        >>> states = []
        >>> class Keep(Callback):
        ...     def on_epoch_begin(self, run):
        ...         states.append(snapshot(run))
        >>> history = example_fit([Keep()], epochs=3)
        >>> example_fit([Keep()], epochs=3, resume=states[1])["val_loss"] == history["val_loss"]
        True
    """
    state = {
        "epoch": run.epoch,
        "step": run.step,
        "net": run.net.state_dict(),
        "opt": run.opt.state_dict(),
        "callbacks": [callback.state_dict() for callback in run.callbacks],
        "running_loss": run.running_loss.state_dict(),
        "history": list(run.history),
        "random": random_state(run.data.trn_dl),
    }
    return copy.deepcopy(state)


def restore(run: Run, state: dict[str, Any]) -> None:
    """Puts the run where the state was taken."""
    state = copy.deepcopy(state)
    run.epoch, run.step = state["epoch"], state["step"]
    run.net.load_state_dict(state["net"])
    run.opt.load_state_dict(state["opt"])
    for callback, own in zip(run.callbacks, state["callbacks"], strict=True):
        callback.load_state_dict(own)
    run.running_loss.load_state_dict(state["running_loss"])
    for row in state["history"]:
        run.history.append(row)
    set_random_state(state["random"], run.data.trn_dl)


@contextmanager
def left_as_it_was(net: nn.Module, opt: torch.optim.Optimizer, loader: Any) -> Iterator[None]:
    """Puts weights, buffers, gradients, optimizer and random generators back at the end.

    Examples:
        >>> net = nn.Linear(2, 1)
        >>> before = net.weight.clone()
        >>> with left_as_it_was(net, torch.optim.SGD(net.parameters(), lr=0.1), None):
        ...     _ = net.weight.data.zero_()
        >>> torch.equal(net.weight, before)
        True
    """
    weights, state = copy.deepcopy(net.state_dict()), copy.deepcopy(opt.state_dict())
    grads = [(p, None if p.grad is None else p.grad.clone()) for p in net.parameters()]
    generators = random_state(loader)
    try:
        yield
    finally:
        net.load_state_dict(weights)
        opt.load_state_dict(state)
        for p, grad in grads:
            p.grad = grad
        set_random_state(generators, loader)


def random_state(loader: Any) -> dict[str, Any]:
    """The random generators of torch, its GPUs, numpy, Python and the loader, as plain data."""
    generator = getattr(loader, "generator", None)
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
        "numpy": _plain(np.random.get_state(legacy=False)),
        "python": _plain(random.getstate()),
        "loader": None if generator is None else generator.get_state(),
    }


def set_random_state(state: dict[str, Any], loader: Any) -> None:
    """Puts the generators where `random_state` found them."""
    torch.set_rng_state(state["torch"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])
    inner = state["numpy"]["state"]
    keys = {"key": np.array(inner["key"], dtype=np.uint32), "pos": inner["pos"]}
    np.random.set_state({**state["numpy"], "state": keys})
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    if state["loader"] is not None:
        loader.generator.set_state(state["loader"])


def _plain(value: Any) -> Any:
    """Tuples and arrays as lists, so that a file may hold them as data."""
    if isinstance(value, dict):
        return {key: _plain(v) for key, v in value.items()}
    if isinstance(value, np.ndarray):
        return value.tolist()
    return [_plain(v) for v in value] if isinstance(value, tuple | list) else value
