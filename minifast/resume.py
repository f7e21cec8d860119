"""Resuming: puts a run where its state was taken, all of it or nothing."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch.optim import Optimizer

from .batches import Lookahead
from .callback import Callback, Events, Run
from .checkpoint import (
    FORMAT,
    KEYS,
    lives_here,
    metrics_with_state,
    own_state,
    place_of,
    processes,
    saves_its_place,
    size_of,
    stepper_state,
)
from .core import explain
from .dataloader import ArrayLoader
from .differences import (
    KERNELS,
    counts_differ,
    form_differs,
    names_differ,
    optimizer_differs,
    order_differs,
    tensors_differ,
)
from .errors import add_note
from .files import older
from .rng import generators, random_state, set_random_state, start_alike
from .sharded import is_sharded, part_like, put_whole_state, taken_apart
from .storage import CheckpointError, put_weights, read_state
from .trained import Aside, Attributes, Trained, load_optimizer

__all__: list[str] = []  # of use to `model` alone


def restore(run: Run, resume: dict[str, Any] | str | Path, events: Events) -> None:
    """Puts the run where a state, or the one in a file, was taken.

    A state from inside an epoch is loaded twice: what callbacks set up in `on_epoch_begin` (modes,
    hooks, `run.data`) is not in it, so that event is fired in between; what the handlers changed
    is then as it was saved.

    Where there is no file yet and a callback of the run writes to that very path, the run begins.

    Raises:
        FileNotFoundError: if there is none, and no callback writes to it.
        CheckpointError: if it is of another run, or cannot be loaded; nothing has changed then.
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
    _check(origin, lambda: _differences(run, state))
    inside = bool(state["batch"]) and state["stopped"] is None and state["epoch"] < run.epochs
    with _all_or_nothing(run) as holders:
        _load(run, copy.deepcopy(state) if inside else state, origin)
        if not inside:
            return
        start_alike(run.data.trn_dl, run.began)
        set_random_state(run.began, run.data.trn_dl)
        run.net.train()
        for holder in holders:
            holder.own = {}  # what handlers open now is theirs to close, in `on_train_end`
        events.on_epoch_begin(run)
        stopped = run.stopped
        _check(origin, lambda: _epoch_differs(run, state))
        _load(run, state, origin)
        run.stopped = stopped


def _read(run: Run, path: Path) -> dict[str, Any] | None:
    """The state in the file; None if the run is to begin, and to write there."""
    paths = [getattr(c, "path", None) for c in run.callbacks]
    writes = [Path(p) for p in paths if p is not None]
    if path in writes and not path.exists() and not older(path, 1).exists():
        return None
    return read_state(path)


@contextmanager
def _all_or_nothing(run: Run) -> Iterator[list[Attributes]]:
    """Leaves everything as it was if something fails, so that `on_train_end` changes nothing."""
    aside = Aside(run.net, run.crit, run.opt, run.data.trn_dl)
    metrics = [metric for _, metric in metrics_with_state(run)]
    holders = [Attributes(holder) for holder in (run.stepper, *run.callbacks, *metrics)]
    fields = {name: getattr(run, name) for name in FIELDS}
    loss, data = run.running_loss.state_dict(), run.data
    try:
        yield holders
    except BaseException:
        with ExitStack() as parts:  # each part also if another one fails
            parts.callback(aside.put_back)
            for holder in holders:
                parts.callback(holder.put_back)
            parts.callback(run.running_loss.load_state_dict, loss)
            parts.callback(run.history._rows.clear)
            for name, value in fields.items():
                parts.callback(setattr, run, name, value)
            run.data = data
        raise


FIELDS = (
    *("epoch", "step", "epoch_start", "batch", "stopped", "began", "order", "positioned"),
    *("ahead", "values"),
)


def _load(run: Run, state: dict[str, Any], origin: str) -> None:
    try:
        _put(run, state, origin)
    except CheckpointError:
        raise
    except Exception as error:
        notes = "; ".join(getattr(error, "__notes__", ()))
        what = f"{type(error).__name__}: {error}".split("\n")[0]
        raise _differs(origin, [f"{what}{notes and f' ({notes})'}"]) from error


@torch.no_grad()
def _put(run: Run, state: dict[str, Any], origin: str) -> None:
    run.epoch, run.step, run.batch = state["epoch"], state["step"], state["batch"]
    run.epoch_start = run.step - state["batch"]
    trained = Trained(run.net, run.crit, run.opt)
    opt = _with_own_kernels(run.opt, state["opt"])
    if is_sharded(run.net):
        put_whole_state(run.net, run.opt, state["net"], opt)
    else:
        put_weights(run.net, state["net"], origin)
        load_optimizer(run.opt, opt)
    _put_tensors(trained, state)
    with _said("stepper"):
        if hasattr(run.stepper, "load_state_dict"):
            run.stepper.load_state_dict(state["stepper"][1])
    _put_callbacks(run, state)
    for name, metric in metrics_with_state(run):
        if state["metrics"].get(name):
            with _said(name):
                metric.load_state_dict(state["metrics"][name])
    run.running_loss.load_state_dict(state["running_loss"])
    run.history._rows.clear()
    for row in state["history"]:
        run.history.append(row)
    run.stopped, run.began, run.order = state["stopped"], state["began"], state["order"]
    run.ahead, run.values = state["ahead"], dict(state["values"])
    _put_generators(run, state)


def _put_tensors(trained: Trained, state: dict[str, Any]) -> None:
    """What is trained beside the net, and all gradients that wait."""
    for name, module in trained.loss.items():
        module.load_state_dict(state["loss"][name])
    for name, p in trained.strays.items():
        p.copy_(state["strays"][name])
    for name, value in state["buffers"].items():
        trained.put_buffer(name, value)
    for name, p in trained.parameters():
        grad = state["grads"].get(name)
        p.grad = None if grad is None else part_like(grad, p)


def _put_callbacks(run: Run, state: dict[str, Any]) -> None:
    saved = _that_matter(state["callbacks"])
    names = run.net.state_dict() if is_sharded(run.net) else {}
    for callback, (name, own) in zip(_ours(run, saved), saved, strict=True):
        if own and lives_here(run, callback):
            with _said(name):
                callback.load_state_dict(taken_apart(own, names))


def _put_generators(run: Run, state: dict[str, Any]) -> None:
    loader, position = run.data.trn_dl, state["loader"]
    if position is not None:
        loader.load_state_dict(position["state"])
        run.positioned = bool(state["batch"])
        if not state["batch"] and position["cut"]:
            iter(loader)  # the pass that is over; the next one begins from scratch
        elif not state["batch"]:
            loader.state_dict()  # torchdata's begins the pass that is over here, not in training
    elif not state["batch"]:
        start_alike(loader, state["random"])
    for each in run.order or None, run.ahead:
        if each is not None:
            set_random_state(each, loader)  # an error would come now, not in the epoch
    set_random_state(state["random"], loader)


@contextmanager
def _said(name: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        add_note(error, f"in the state of {name}")
        raise


def _with_own_kernels(opt: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """The saved state with the run's own choice of kernels, which may be another machine's."""
    pairs = zip(state["param_groups"], opt.param_groups, strict=True)
    groups = [there | {k: here[k] for k in KERNELS if k in here} for there, here in pairs]
    return {**state, "param_groups": groups}


# ---- comparing ---------------------------------------------------------------------------


def _check(origin: str, differences: Callable[[], list[str]]) -> None:
    try:
        found = differences()
    except Exception as error:  # a state of whatever form
        raise _differs(origin, [f"it cannot be read: {type(error).__name__}: {error}"]) from error
    if found:
        raise _differs(origin, found)


def _differences(run: Run, state: dict[str, Any]) -> list[str]:
    """What is different here from where the state was taken."""
    if state.get("format") != FORMAT or not set(state) >= KEYS:
        return ["it is not a checkpoint of a run, or one of another version of minifast"]
    trained = Trained(run.net, run.crit, run.opt)
    found = [*counts_differ(state, None if state["batch"] == 0 else _most_batches(run, state))]
    found += tensors_differ(trained, state)
    found += optimizer_differs(run.opt, state["opt_class"], state["opt"])
    found += [] if found else order_differs(state["opt_params"], trained.optimized())
    stepper, own = state["stepper"]
    found += names_differ("stepper", [stepper], [type(run.stepper).__name__])
    found += form_differs(own, stepper_state(run), "the stepper's state")
    # Between two epochs more or fewer processes may continue, with other batches.
    if state["batch"] or state["processes"] == processes(run):
        found += _sizes_differ(state["given"], run.given)
    if not state["assigned"]:  # no callback had given the run another loader
        found += _generators_differ(run, state)
    return found + _other_callbacks(run, state["callbacks"])


def _most_batches(run: Run, state: dict[str, Any]) -> int | None:
    return None if state["assigned"] else run.n_batches


def _epoch_differs(run: Run, state: dict[str, Any]) -> list[str]:
    """What is different once `on_epoch_begin` has let callbacks assign other loaders."""
    return _sizes_differ(state["size"], size_of(run)) + _generators_differ(run, state)


def _sizes_differ(then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    return [f"{name}: {then.get(name)}, here {n}" for name, n in now.items() if then.get(name) != n]


def _generators_differ(run: Run, state: dict[str, Any]) -> list[str]:
    """Which generators draw for the loader, and whether it saves its own place."""
    loader = run.data.trn_dl
    found = names_differ(
        "generators of the loader", sorted(state["random"]["loader"]), sorted(generators(loader))
    )
    if state["loader"] is not None and not saves_its_place(loader):
        found.append("a loader with a state_dict, here one without")
    if state["loader"] is None and state["step"] and saves_its_place(loader):
        found.append("a loader without a state_dict, here one with it")
    return found


def _other_callbacks(run: Run, saved: Iterable[Any]) -> list[str]:
    """Those that only watch, and have no state to continue with, may come and go."""
    matter = _that_matter(saved)
    ours = _ours(run, matter)
    found = names_differ(
        "callbacks", (name for name, _ in matter), (type(c).__name__ for c in ours)
    )
    if not found:
        for callback, (name, own) in zip(ours, matter, strict=True):
            if own:
                found += form_differs(own, _fresh(run, callback), f"the state of {name}: ")
    return found


def _that_matter(saved: Iterable[Any]) -> list[tuple[str, Any]]:
    return [(name, own) for name, changes, own in saved if changes or own]


def _ours(run: Run, matter: list[tuple[str, Any]]) -> list[Callback]:
    known = {name for name, _ in matter}
    return [
        c
        for c in run.callbacks
        if c.changes_training or type(c).__name__ in known or _fresh(run, c) != {}
    ]


def _fresh(run: Run, c: Callback) -> dict[str, Any] | None:
    """A callback's state before its own is loaded; None if it has none before its epoch begins."""
    try:
        return own_state(run, c)
    except AttributeError:
        return None


def _differs(origin: str, what: list[str]) -> CheckpointError:
    return CheckpointError(
        explain(
            f"{origin} is of another run, or damaged",
            got="; ".join(what[:5]) + ("; ..." if len(what) > 5 else ""),
            wanted="the run that it was saved from: the same net, loss, optimizer, data, callbacks",
            fix="call fit with the same arguments as then; for the weights alone, load_weights",
            entry="another-run",
        )
    )


def drawn_again(run: Run, batches: int) -> Iterator[Any]:
    """The epoch's batches after the first so many, in the order that the epoch had."""
    loader = run.data.trn_dl
    now = random_state(loader)
    if not run.positioned:
        start_alike(loader, run.order)
    set_random_state(run.order, loader)
    rest: Any = iter(run.loader_for(loader, training=True))
    if run.team is not None:
        batches = run.team.skipped(loader, batches)
    if run.positioned:  # it continues by itself
        run.positioned = False
    elif hasattr(rest, "skip"):
        rest.skip(batches)
    else:
        for _ in islice(rest, batches):
            pass
    set_random_state(now, loader)
    return iter(rest)


def looking_ahead(run: Run, loader: Any, batches: Iterable[Any], done: int) -> Lookahead:
    """The epoch's batches with a way to ask whether one is the last; of a loader whose length may
    be wrong or missing, the next one is drawn then.

    If the state that is resumed was taken with a batch drawn ahead, it is drawn ahead here, too.
    """
    sure = run.n_batches if isinstance(loader, ArrayLoader) else None
    found = Lookahead(batches, None if sure is None else sure - done, partial(place_of, run))
    if done and run.ahead is not None:
        now = random_state(run.data.trn_dl)
        set_random_state(run.ahead, run.data.trn_dl)
        found.is_last()
        set_random_state(now, run.data.trn_dl)
    run.ahead = None
    return found
