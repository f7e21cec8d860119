"""One look at the first batch, before any step is made from it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import chain, islice
from typing import Any

import torch
from torch import Tensor

from .batches import seen
from .blame import note_stepper
from .callback import Events, Run, hears
from .checks import no_batch
from .core import device_of, explain, modes_kept
from .dataloader import ArrayLoader
from .losses import original
from .mistakes import NOT_YET, explain_failure
from .nonfinite import at_no_number, counts_nothing, has, nan_in_data, not_finite, parameters
from .outputs import check_loss, check_preds, complain
from .rng import random_state, set_random_state
from .stepper import Stepper, split_batch
from .torch_losses import all_ignored, class_loss, label_problem, loss_name
from .trained import Buffers, Trained
from .try_metrics import try_metrics

ENOUGH = 10**7  # labels that are looked through at once; more would be felt
Step = Callable[[Run, Events], Tensor]


def first_look(run: Run, stepper: Stepper, batches: Iterator[Any]) -> tuple[Iterator[Any], Step]:
    """The batches of an epoch and its step; the very first of a fit are looked at on their way."""
    if run.looked or run.stopped:
        return batches, stepper.step
    run.looked = True
    look = _FirstLook(stepper)
    if run.step == run.epoch_start:  # a resumed epoch may have no batch left
        batches = look.at_batch(run, batches)
    on_meta = device_of(run.net).type == "meta"
    return batches, stepper.step if run.checks == "off" or on_meta else look.step


class _FirstLook:
    """What is known of the first batch, until its step is done."""

    def __init__(self, stepper: Stepper) -> None:
        self.stepper = stepper
        self.y: Any = None  # as the loader gave it
        self.not_finite: tuple[str, str] | None = None

    def at_batch(self, run: Run, batches: Iterator[Any]) -> Iterator[Any]:
        """The same batches, before a callback receives the first one."""
        try:
            first = list(islice(batches, 1))
            _check_structure(first)
        except Exception:
            set_random_state(run.order, run.data.trn_dl)  # as if the batch had not been drawn
            raise
        if run.checks != "off":
            _check_learning_rate(run)
            *xs, self.y = first[0]
            self.not_finite = not_finite(xs, self.y)
        return chain(first, batches)

    def step(self, run: Run, events: Events) -> Tensor:
        """The stepper's own step; on an error nothing has changed."""
        trained = Trained(run.net, run.crit, run.opt)
        buffers = [Buffers(module) for module in trained.modules.values()]
        grads = [(p, p.grad) for _, p in trained.parameters()]
        run.preds = run.loss = NOT_YET
        try:
            if _steps_plainly(run) and isinstance(run.y, Tensor) and not run.y.is_floating_point():
                _check_labels(run)
            return self.stepper.step(run, _Watched(events, self))
        except Exception as error:
            for each in buffers:
                each.put_back()
            for p, grad in grads:
                p.grad = grad
            set_random_state(run.order, run.data.trn_dl)  # as if the batch had not been drawn
            note_stepper(error, run)
            if isinstance(run.preds, Tensor):
                self.check_all_labels(run)  # names the row of the array, not of the batch
            batch = run.x, run.y, run.preds, run.loss
            explain_failure(error, run.net, original(run.crit), *batch, _handlers(run))
            raise

    def check_loss(self, run: Run) -> None:
        """Refuses a batch that holds nan and whose loss is not finite."""
        if self.not_finite and not bool(run.loss.isfinite().all()):
            what = f"the loss is {float(run.loss.detach())}"
            complain(run, nan_in_data(what, self.not_finite))
            self.not_finite = None  # said once

    def check_gradients(self, run: Run) -> None:
        """Refuses a batch that holds nan and would make weights nan."""
        if not self.not_finite or run.skip_step or not _steps_plainly(run):
            return
        bad = [name for name, p in parameters(run) if has(torch.isnan, p.grad)]
        if bad and type(run.stepper).update is Stepper.update:
            complain(run, nan_in_data(f"the gradient of {bad[0]} is nan", self.not_finite))

    def check_all_labels(self, run: Run) -> None:
        """The labels of all rows, if the loss gets them as the loader yields them."""
        if _steps_plainly(run) and _same(run.y, self.y):
            _check_all_labels(run)


def _steps_plainly(run: Run) -> bool:
    """Whether the loss is known to be `crit(run.preds, run.y)`."""
    step = getattr(run.stepper.step, "__func__", run.stepper.step)
    return str(getattr(step, "__module__", "")).startswith("minifast.")


def _same(a: Any, b: Any) -> bool:
    if not isinstance(a, Tensor) or not isinstance(b, Tensor) or a.shape != b.shape:
        return False
    return a is b or torch.equal(a, b.to(a.device))


class _Watched(Events):
    """The events of a step; between loss and gradients the batch is looked at."""

    def __init__(self, events: Events, look: _FirstLook) -> None:
        self.events, self.look = events, look
        for name in ("on_batch_begin", "on_batch_end"):
            setattr(self, name, getattr(events, name))

    def on_backward_begin(self, run: Run) -> None:
        generators = random_state(None)
        check_loss(run)
        self.look.check_loss(run)
        if _steps_plainly(run):
            check_preds(run)
        self.look.check_all_labels(run)
        _check_validation_rows(run)
        try_metrics(run)
        set_random_state(generators, None)
        self.events.on_backward_begin(run)
        if not isinstance(run.loss, Tensor):
            raise TypeError(_loss_replaced(run))

    def on_backward_end(self, run: Run) -> None:
        self.events.on_backward_end(run)
        self.look.check_gradients(run)


def _handlers(run: Run) -> str:
    """The handlers that may have changed the batch, or the loss if there is one already."""
    events = ["on_batch_begin"] + ["on_backward_begin"] * (run.loss is not NOT_YET)
    found = [(c, event) for event in events for c in run.callbacks if hears(c, event)]
    return ", ".join(f"{type(callback).__name__}.{event}" for callback, event in found)


def _loss_replaced(run: Run) -> str:
    handlers = [type(c).__name__ for c in run.callbacks if hears(c, "on_backward_begin")]
    return explain(
        "a callback has assigned a loss that cannot be differentiated",
        got=f"run.loss = {type(run.loss).__name__}, after on_backward_begin of "
        + ", ".join(handlers),
        wanted="a tensor, computed from run.preds",
        fix="run.loss = run.loss + ..., without .item() and float()",
        entry="the-loss",
    )


# ---- what goes in ------------------------------------------------------------------------


def _check_structure(first: list[Any]) -> None:
    if not first:
        raise ValueError(no_batch("trn_dl"))
    (batch,) = first
    if isinstance(batch, Sequence) and not isinstance(batch, str) and len(batch) > 1:
        return
    raise TypeError(
        explain(
            "the loader's batch has no input and target",
            got=f"a dict with {', '.join(map(str, batch))}"
            if isinstance(batch, dict)
            else seen(batch),
            wanted="(x, y), or (x1, ..., xn, y)",
            fix="yield tuples: ArrayLoader(x, y) does, and a DataLoader over TensorDataset(x, y)",
            entry="loaders",
        )
    )


def _check_learning_rate(run: Run) -> None:
    rates = [float(group["lr"]) for group in run.opt.param_groups if "lr" in group]
    if rates and not any(rates) and not run.callbacks:
        text = explain(
            "the learning rate is 0: no weight will change",
            got=f"{type(run.opt).__name__} with lr {rates[0]:g}",
            wanted="a learning rate above 0",
            fix="set_lrs(opt, 1e-3)",
            entry="learning-rates",
        )
        complain(run, text, certain=False)


def _check_labels(run: Run) -> None:
    """Labels below 0, before a GPU is told of them: it would not recover."""
    problem = label_problem(run.crit, run.y) if run.y.ndim == 1 else None
    if problem:
        raise ValueError(problem)


# ---- all labels -----------------------------------------------------------------------------


def _check_all_labels(run: Run) -> None:
    """The labels of all rows, not of the first batch alone."""
    preds = run.preds
    if not class_loss(run.crit) or not isinstance(preds, Tensor) or preds.ndim != 2:
        return
    for name in ("trn_dl", "val_dl"):
        loader = getattr(run.data, name)
        y = loader.arrays[-1] if isinstance(loader, ArrayLoader) else None
        if not isinstance(y, Tensor) or y.ndim != 1 or y.dtype != torch.int64 or len(y) > ENOUGH:
            continue
        problem = label_problem(run.crit, y, preds.shape[1], f"{name}'s y")
        if problem:
            complain(run, problem)
        elif name == "trn_dl" and all_ignored(run.crit, y):
            complain(run, _nothing_counts(name, y, loss_name(run.crit)), certain=False)


def _nothing_counts(name: str, y: Tensor, loss: str) -> str:
    return explain(
        f"every label of {name}'s y is {int(y[0])}, which {loss} leaves out",
        got=seen(y),
        wanted="labels that count: without them the loss is nan and no weight changes",
        fix="give the rows their labels",
        entry="label-range",
    )


def _check_validation_rows(run: Run) -> None:
    """Rows to validate with that differ in shape from those to train on, if the net refuses them.

    A convolution may take images of several sizes.
    """
    trn, val = run.data.trn_dl, run.data.val_dl
    if not isinstance(trn, ArrayLoader) or not isinstance(val, ArrayLoader):
        return
    if len(trn.arrays) != len(val.arrays):
        return
    pairs = [*zip(trn.arrays, val.arrays, strict=True)]
    other = [(a, b) for a, b in pairs[:-1] if a.shape[1:] != b.shape[1:]]
    if not other:
        return
    device = device_of(run.net)
    rows = val.gatherer()(torch.zeros(1, dtype=torch.int64, device=val.arrays[0].device))
    with modes_kept(run.net), torch.no_grad():
        run.net.eval()
        try:
            run.stepper.forward(run.net, split_batch(rows, device)[0])
        except Exception as error:
            raise ValueError(_other_rows(*other[0])) from error


def _other_rows(trn: Tensor, val: Tensor) -> str:
    return explain(
        "the net cannot take the rows to validate with",
        got=f"to train on {seen(trn)}, to validate with {seen(val)}",
        wanted="rows of the same shape in both, or of a shape that the net takes",
        fix="prepare both with the same function",
        entry="shapes-differ",
    )


# ---- while it runs -----------------------------------------------------------------------


def at_epochs_end(run: Run) -> None:
    """Ends training whose epoch had no batch, or whose loss a GPU tells last of."""
    if run.step == run.epoch_start:
        raise ValueError(no_batch("trn_dl", run.epoch))
    if run.running_loss.is_bad() and not counts_nothing(run):
        at_no_number(run)
