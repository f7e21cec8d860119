"""The state of a run: what it takes to go on as if nothing had happened."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from .callback import Callback, Run
from .core import explain, length
from .files import older
from .sharded import is_sharded, part_like, put_together, put_whole_state, taken_apart, whole_state
from .storage import (
    CheckpointError,
    as_data,
    load_weights,
    put_weights,
    read_state,
    save_weights,
    weights_differ,
)

__all__ = ["CheckpointError", "load_weights", "save_weights", "snapshot"]

FORMAT = 1
KEYS = {
    *("epoch", "batch", "step", "net", "opt", "grads", "stepper", "callbacks", "running_loss"),
    *("history", "stopped", "given", "order", "random"),
}


def snapshot(run: Run) -> dict[str, Any]:
    """The state of a run between two of its batches, or two of its epochs.

    `fit(..., resume=state)` with the same arguments goes on from there to the same end, to the bit.
    It holds tensors, numbers, strings, lists and dicts, all copied: of net, optimizer, stepper and
    callbacks (in the order of the list), random generators (torch, its GPUs, numpy, Python, the
    loader's), place in the epoch and its order, gradients that wait for their step, the smoothed
    loss and the history. Take it in `on_epoch_begin`, as the first of the list, or by
    `run.after(...)` in `on_batch_end` or `on_epoch_end`, when all others have heard the event.

    Examples:
        >>> from minifast.callback import Callback
        >>> from minifast.testing import example_fit
        >>> states = []
        >>> class Keep(Callback):
        ...     def on_batch_end(self, run):
        ...         run.after(lambda run: states.append(snapshot(run)))
        >>> history = example_fit([Keep()], epochs=3)
        >>> example_fit([], epochs=3, resume=states[11])["val_loss"] == history["val_loss"]
        True
    """
    return copy.deepcopy(state_of(run))


def state_of(run: Run) -> dict[str, Any]:
    """`snapshot`, its tensors shared with the run's: for a file, which is a copy itself."""
    ended = run.values.get("epoch") == run.epoch  # its row is there
    rows = list(run.history)
    if ended and not (rows and rows[-1]["epoch"] == run.epoch):
        rows.append(run.values)
    if is_sharded(run.net):
        net, opt = whole_state(run.net, run.opt)
    else:
        net, opt = run.net.state_dict(), run.opt.state_dict()
    state = {
        "format": FORMAT,
        "processes": _processes(run),
        "epoch": run.epoch + ended,
        "batch": 0 if ended else run.step - run.epoch_start,
        "step": run.step,
        "net": net,
        "opt": opt,
        "grads": _waiting_gradients(run),
        "stepper": [type(run.stepper).__name__, _stepper_state(run)],
        "callbacks": [
            [type(c).__name__, c.changes_training, put_together(_own(run, c))]
            for c in run.callbacks
        ],
        "running_loss": run.running_loss.state_dict(),
        "history": rows,
        "stopped": None if run.paused else run.stopped,
        "given": run.given,
        "order": _listed(run.order),
        "random": _listed(random_state(run.data.trn_dl)),
    }
    return dict(as_data(state, "state"))


def _processes(run: Run) -> int:
    return 1 if run.team is None else int(run.team.size)


def _stepper_state(run: Run) -> Any:
    return run.stepper.state_dict() if hasattr(run.stepper, "state_dict") else {}


def _lives_here(run: Run, c: Callback) -> bool:
    """Whether this process is one in which the callback is called."""
    return run.rank == 0 or not c.first_process_only


def _own(run: Run, c: Callback) -> dict[str, Any]:
    return c.state_dict() if _lives_here(run, c) else {}


def _waiting_gradients(run: Run) -> dict[str, Any]:
    """Those that a later batch adds to: there are some where the last step was skipped."""
    named = run.net.named_parameters() if run.skip_step else ()
    return {name: put_together(p.grad) for name, p in named if p.grad is not None}


def size_of(run: Run) -> dict[str, int | None]:
    """What must be the same for a run to go on; None where the loader does not tell."""
    loader = run.data.trn_dl
    rows = getattr(loader, "n_rows", None)
    if rows is None:
        rows = length(getattr(loader, "dataset", None))
    return {"rows to train on": rows, "batches in an epoch": run.n_batches}


# ---- going on ----------------------------------------------------------------------------


def restore(run: Run, resume: dict[str, Any] | str | Path) -> None:
    """Puts the run where a state, or the one in a file, was taken.

    Where there is no file yet and a callback of the run writes to that very path, the run begins.

    Raises:
        FileNotFoundError: if there is none, and nobody writes to it.
        CheckpointError: if it is of another run; nothing has changed then.
    """
    if isinstance(resume, dict):
        state, origin = copy.deepcopy(resume), "the state"
    else:
        found = (
            _read(run, Path(resume))
            if run.team is None
            else run.team.from_first(lambda: _read(run, Path(resume)))
        )
        if found is None:
            return
        state, origin = found, str(resume)
    if state.get("format") != FORMAT or not set(state) >= KEYS:
        raise _differs(origin, ["it is no checkpoint of a run, or one of another minifast"])
    differs = _differences(run, state)
    if differs:
        raise _differs(origin, differs)
    _put(run, state, origin)


def _read(run: Run, path: Path) -> dict[str, Any] | None:
    """The state in the file; None if the run is to begin, and to write there."""
    paths = [getattr(c, "path", None) for c in run.callbacks]
    writes = [Path(p) for p in paths if p is not None]
    if path in writes and not path.exists() and not older(path, 1).exists():
        return None
    return read_state(path)


def _put(run: Run, state: dict[str, Any], origin: str) -> None:
    run.epoch, run.step = state["epoch"], state["step"]
    run.epoch_start = run.step - state["batch"]
    if is_sharded(run.net):
        put_whole_state(run.net, run.opt, state["net"], state["opt"])
    else:
        put_weights(run.net, state["net"], origin)
        run.opt.load_state_dict(state["opt"])
    for name, p in run.net.named_parameters():
        grad = state["grads"].get(name)
        p.grad = None if grad is None else part_like(grad, p)
    if hasattr(run.stepper, "load_state_dict"):
        run.stepper.load_state_dict(state["stepper"][1])
    saved = _that_matter(state["callbacks"])
    names = run.net.state_dict() if is_sharded(run.net) else {}
    for callback, (_, own) in zip(_ours(run, saved), saved, strict=True):
        if own and _lives_here(run, callback):
            callback.load_state_dict(taken_apart(own, names))
    run.running_loss.load_state_dict(state["running_loss"])
    for row in state["history"]:
        run.history.append(row)
    run.stopped, run.order = state["stopped"], state["order"]
    set_random_state(state["random"], run.data.trn_dl)


def _differences(run: Run, state: dict[str, Any]) -> list[str]:
    """What is otherwise here than where the state was taken, in words."""
    found = weights_differ(run.net.state_dict(), state["net"])
    ours, theirs = (
        [len(group["params"]) for group in groups]
        for groups in (run.opt.param_groups, state["opt"]["param_groups"])
    )
    if ours != theirs:
        found.append(f"opt has groups of {theirs} parameters, here {ours}")
    pairs: list[tuple[str, Any, Any]] = [
        ("stepper", state["stepper"][0], type(run.stepper).__name__),
    ]
    # Between two epochs more or fewer processes may go on, with other batches.
    if state["batch"] or state.get("processes", 1) == _processes(run):
        pairs += [(name, state["given"].get(name), now) for name, now in run.given.items()]
    found += [f"{name}: {then}, here {now}" for name, then, now in pairs if then != now]
    return found + _other_callbacks(run, state["callbacks"])


def _other_callbacks(run: Run, saved: Iterable[Any]) -> list[str]:
    """Those that only watch, and have nothing to go on with, may come and go."""
    matter = _that_matter(saved)
    then = [name for name, _ in matter]
    now = [type(c).__name__ for c in _ours(run, matter)]
    return [f"callbacks [{', '.join(then)}], here [{', '.join(now)}]"] if then != now else []


def _that_matter(saved: Iterable[Any]) -> list[tuple[str, Any]]:
    return [(name, own) for name, changes, own in saved if changes or own]


def _ours(run: Run, matter: list[tuple[str, Any]]) -> list[Callback]:
    known = {name for name, _ in matter}
    return [
        c for c in run.callbacks if c.changes_training or type(c).__name__ in known or _own(run, c)
    ]


def _differs(origin: str, what: list[str]) -> CheckpointError:
    return CheckpointError(
        explain(
            f"{origin} is of another run",
            got="; ".join(what[:5]) + ("; ..." if len(what) > 5 else ""),
            wanted="the run that it was saved from: the same net, optimizer, data and callbacks",
            fix="call fit with the arguments of then; for the weights alone, load_weights",
            entry="another-run",
        )
    )


def drawn_again(run: Run, batches: int) -> Iterator[Any]:
    """The epoch's batches behind the first so many, in the order that the epoch had."""
    now = random_state(run.data.trn_dl)
    set_random_state(run.order, run.data.trn_dl)
    rest: Any = iter(run.loader_for(run.data.trn_dl, training=True))
    if run.team is not None:
        batches = run.team.skipped(run.data.trn_dl, batches)
    if hasattr(rest, "skip"):
        rest.skip(batches)
    else:
        for _ in islice(rest, batches):
            pass
    set_random_state(now, run.data.trn_dl)
    return iter(rest)


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
    """The random generators of torch, its GPUs, numpy, Python and the loader."""
    generator = getattr(loader, "generator", None)
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
        "numpy": np.random.get_state(legacy=False),
        "python": random.getstate(),
        "loader": None if generator is None else generator.get_state(),
    }


def set_random_state(state: dict[str, Any], loader: Any) -> None:
    """Puts the generators where `random_state` found them, or where a file says."""
    torch.set_rng_state(state["torch"])
    here = torch.cuda.device_count() if state["cuda"] else 0
    for i, each in enumerate(state["cuda"][:here]):  # it may come from a machine with more of them
        torch.cuda.set_rng_state(each, i)
    inner = state["numpy"]["state"]
    keys = {"key": np.array(inner["key"], dtype=np.uint32), "pos": inner["pos"]}
    np.random.set_state({**state["numpy"], "state": keys})
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    if state["loader"] is not None:
        loader.generator.set_state(state["loader"])


def _listed(value: Any) -> Any:
    """Arrays as lists, so that a file may hold them as data."""
    if isinstance(value, dict):
        return {key: _listed(v) for key, v in value.items()}
    return value.tolist() if isinstance(value, np.ndarray) else value
