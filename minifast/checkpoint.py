"""The state of a run: what it takes to continue as if it had not been interrupted.

`resume` loads it.
"""

from __future__ import annotations

import copy
from typing import Any

from .callback import Callback, Run
from .core import explain, length
from .history import plain
from .metrics import metric_names
from .rng import random_state
from .sharded import is_sharded, put_together, whole_state
from .storage import CheckpointError, as_data, load_weights, save_weights
from .trained import Trained

__all__ = ["CheckpointError", "load_weights", "save_weights", "snapshot"]

FORMAT = 2
KEYS = {
    *("processes", "epoch", "batch", "step", "net", "loss", "strays", "buffers", "opt_class"),
    *("opt", "opt_params", "grads", "stepper", "callbacks", "metrics", "running_loss", "history"),
    *("stopped", "given", "size", "assigned", "loader", "ahead", "began", "order", "random"),
    "values",
}


def snapshot(run: Run) -> dict[str, Any]:
    """The state of a run between two of its batches, or two of its epochs.

    `fit(..., resume=state)` with the same arguments continues from there to the same end, to the
    bit. It holds tensors, numbers, strings, lists and dicts, all copied: of net, loss (if it is a
    module), optimizer, stepper, callbacks (in the order of the list), metrics that have a
    `state_dict`, random generators (PyTorch's, its GPUs', NumPy's, Python's, and those that draw
    for the loader), the loader's own `state_dict`, place in the epoch and its order, gradients that
    wait for their step, the smoothed loss and the history. Take it in `on_epoch_begin`, as the
    first of the list, or with `run.after(...)` in `on_batch_end` or `on_epoch_end`, after all other
    callbacks have handled the event.

    Raises:
        TypeError: if one of them holds anything else.

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
    trained = Trained(run.net, run.crit, run.opt)
    if is_sharded(run.net):
        _check_all_in_net(trained)
        net, opt = whole_state(run.net, run.opt)
    else:
        net, opt = run.net.state_dict(), run.opt.state_dict()
    state = {
        "format": FORMAT,
        "processes": processes(run),
        "epoch": run.epoch + ended,
        "batch": 0 if ended else run.step - run.epoch_start,
        "step": run.step,
        "net": net,
        "loss": {name: module.state_dict() for name, module in trained.loss.items()},
        "strays": trained.strays,
        "buffers": trained.unsaved_buffers(),
        "opt_class": type(run.opt).__name__,
        "opt": opt,
        "opt_params": trained.optimized(),
        "grads": _waiting_gradients(run, trained),
        "stepper": [type(run.stepper).__name__, stepper_state(run)],
        "callbacks": [
            [type(c).__name__, c.changes_training, put_together(own_state(run, c))]
            for c in run.callbacks
        ],
        "metrics": {name: metric.state_dict() for name, metric in metrics_with_state(run)},
        "running_loss": run.running_loss.state_dict(),
        "history": rows,
        "values": {} if ended else {name: plain(value) for name, value in run.values.items()},
        "stopped": None if run.paused else run.stopped,
        "given": run.given,
        "size": size_of(run),
        "assigned": run.data.trn_dl is not run.first_loader,
        "loader": _loader_state(run, ended),
        "ahead": _before_ahead(run, ended, "random"),
        "began": run.began,
        "order": run.order,
        "random": random_state(run.data.trn_dl),
    }
    return dict(as_data(state, "state"))


def _check_all_in_net(trained: Trained) -> None:
    foreign = [name for name, _ in trained.parameters() if not name.startswith("net.")]
    if foreign:
        raise TypeError(
            explain(
                "a checkpoint of a net in parts cannot hold what is trained beside the net",
                got=f"{foreign[0]}, of {len(foreign)} parameters that are not the net's",
                wanted="an optimizer over the net's parameters alone, where fully_shard is used",
                fix="make the loss's parameters the net's, and use them from there",
                entry="checkpoints",
            )
        )


def metrics_with_state(run: Run) -> list[tuple[str, Any]]:
    """The metrics that can be saved, by their column."""
    pairs = zip(metric_names(run.metrics), run.metrics, strict=True)
    return [
        (name, metric)
        for name, metric in pairs
        if callable(getattr(metric, "state_dict", None))
        and callable(getattr(metric, "load_state_dict", None))
    ]


def saves_its_place(loader: Any) -> bool:
    """Whether the loader is one that saves its place itself, as torchdata's StatefulDataLoader."""
    names = "state_dict", "load_state_dict"
    return all(callable(getattr(loader, name, None)) for name in names)


def place_of(run: Run) -> dict[str, Any]:
    """Where the generators and the loader are, before a batch is drawn ahead."""
    loader = run.data.trn_dl
    own = loader.state_dict() if saves_its_place(loader) else None
    return {"random": random_state(loader), "loader": own}


def _before_ahead(run: Run, ended: bool, name: str) -> Any:
    """Part of the place before the batch that waits was drawn ahead; None if none waits."""
    noted = None if ended or run.batches is None else run.batches.noted
    return None if noted is None else noted[name]


def _loader_state(run: Run, ended: bool) -> dict[str, Any] | None:
    """The loader's own, once this fit has drawn from it."""
    fresh = run.step == run.epoch_start and not ended
    if not saves_its_place(run.data.trn_dl) or (fresh and not run.step):
        return None
    cut = run.max_batches == run.step - run.epoch_start  # by `steps=`, before its own end
    own = _before_ahead(run, ended, "loader")
    return {"state": run.data.trn_dl.state_dict() if own is None else own, "cut": cut}


def processes(run: Run) -> int:
    """How many processes train together."""
    return 1 if run.team is None else int(run.team.size)


def stepper_state(run: Run) -> Any:
    """The stepper's state, if it has one."""
    return run.stepper.state_dict() if hasattr(run.stepper, "state_dict") else {}


def lives_here(run: Run, c: Callback) -> bool:
    """Whether this process is one in which the callback is called."""
    return run.rank == 0 or not c.first_process_only


def own_state(run: Run, c: Callback) -> dict[str, Any]:
    """The callback's state; empty in a process in which it is not called."""
    return c.state_dict() if lives_here(run, c) else {}


def _waiting_gradients(run: Run, trained: Trained) -> dict[str, Any]:
    """Those that a later batch adds to: there are some where the last step was skipped."""
    named = trained.parameters() if run.skip_step else ()
    return {name: put_together(p.grad) for name, p in named if p.grad is not None}


def size_of(run: Run) -> dict[str, int | None]:
    """What must be the same for a run to continue; None where the loader does not tell."""
    loader = run.data.trn_dl
    rows = getattr(loader, "n_rows", None)
    if rows is None:
        rows = length(getattr(loader, "dataset", None))
    sampler = getattr(loader, "batch_sampler", None)
    sizes = [getattr(loader, "bs", None), getattr(loader, "batch_size", None)]
    bs = next((n for n in (*sizes, getattr(sampler, "batch_size", None)) if isinstance(n, int)), 0)
    return {
        "rows to train on": rows,
        "rows in a batch": bs * processes(run) or None,
        "batches in an epoch": run.n_batches,
    }
