"""One look at the first batch, before any step is made from it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, islice
from typing import Any

import torch
from torch import Tensor, nn

from .batches import seen
from .blame import note_stepper
from .callback import Events, Run, hears
from .checks import no_batch
from .core import device_of, explain
from .dataloader import ArrayLoader
from .losses import class_loss, label_problem, original
from .mistakes import NOT_YET, explain_failure
from .rng import random_state, set_random_state
from .stepper import Stepper
from .trained import Buffers, Trained
from .try_metrics import try_metrics

ENOUGH = 10**7  # labels that are looked through at once; more would be felt
Step = Callable[[Run, Events], Tensor]


def first_batch(run: Run, batches: Iterator[Any]) -> Iterator[Any]:
    """The same batches; the very first of a fit is looked at before anybody hears of it."""
    if run.looked or run.step > run.epoch_start:  # a resumed epoch may have no batch left
        return batches
    try:
        first = list(islice(batches, 1))
        _check_structure(first)
        if run.checks != "off":
            _check_input(run, first[0])
    except Exception:
        set_random_state(run.order, run.data.trn_dl)  # as if the batch had not been drawn
        raise
    return chain(first, batches)


def first_step(run: Run, stepper: Stepper) -> Step:
    """The step for the very first batch: the stepper's own, looked at on its way."""
    looked, run.looked = run.looked, True
    if looked or run.checks == "off" or device_of(run.net).type == "meta":
        return stepper.step

    def step(run: Run, events: Events) -> Tensor:
        trained = Trained(run.net, run.crit, run.opt)
        buffers = [Buffers(module) for module in trained.modules.values()]
        grads = [(p, p.grad) for _, p in trained.parameters()]
        run.preds = run.loss = NOT_YET
        try:
            loss = stepper.step(run, _Watched(events))
        except Exception as error:
            for each in buffers:
                each.put_back()
            for p, grad in grads:
                p.grad = grad
            set_random_state(run.order, run.data.trn_dl)  # as if the batch had not been drawn
            note_stepper(error, run)
            if isinstance(run.preds, Tensor):
                _check_all_labels(run)  # names the row of the array, not of the batch
            batch = run.x, run.y, run.preds, run.loss
            explain_failure(error, run.net, original(run.crit), *batch, _handlers(run))
            raise
        return loss

    return step


class _Watched(Events):
    """The events of a step; between loss and gradients the batch is looked at."""

    def __init__(self, events: Events) -> None:
        self.events = events
        for name in ("on_batch_begin", "on_backward_end", "on_batch_end"):
            setattr(self, name, getattr(events, name))

    def on_backward_begin(self, run: Run) -> None:
        generators = random_state(None)
        _check_loss(run)
        _check_preds(run)
        _check_all_labels(run)
        try_metrics(run)
        set_random_state(generators, None)
        self.events.on_backward_begin(run)
        if not isinstance(run.loss, Tensor):
            raise TypeError(_loss_replaced(run))


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


def _complain(run: Run, text: str, certain: bool = True) -> None:
    """An error where it is certain and wanted; a warning otherwise."""
    if certain and run.checks == "on":
        raise ValueError(text)
    warnings.warn(text, stacklevel=8)


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


def _check_input(run: Run, batch: Sequence[Any]) -> None:
    *xs, y = batch
    for name, t in [*(("x", x) for x in xs), ("y", y)]:
        if not isinstance(t, Tensor) or not (t.is_floating_point() and t.numel() and t.ndim):
            continue
        if t.layout != torch.strided:
            continue
        bad = ~t.isfinite().reshape(len(t), -1).all(1)
        if bad.any():
            _complain(run, _not_finite(name, t, int(bad.nonzero()[0])))
    problem = None if _is_ignored_part(run, y) else label_problem(run.crit, y)
    if problem:
        raise (TypeError if y.is_floating_point() else ValueError)(problem)
    rates = [float(group["lr"]) for group in run.opt.param_groups if "lr" in group]
    if rates and not any(rates) and not run.callbacks:
        text = explain(
            "the learning rate is 0: no weight will change",
            got=f"{type(run.opt).__name__} with lr {rates[0]:g}",
            wanted="a rate above 0",
            fix="set_lrs(opt, 1e-3)",
            entry="learning-rates",
        )
        _complain(run, text, certain=False)


def _is_ignored_part(run: Run, y: Any) -> bool:
    """Whether one of several processes has ignored labels only: the others may have more."""
    if run.team is None or not isinstance(y, Tensor) or y.is_floating_point():
        return False
    return bool((y == getattr(original(run.crit), "ignore_index", -100)).all())


def _not_finite(name: str, t: Tensor, row: int) -> str:
    return explain(
        f"{name} has numbers that are nan or infinite",
        got=f"row {row} of the first batch, {seen(t)}: {t[row].flatten()[:6].tolist()}...",
        wanted="finite numbers: one nan makes every weight nan",
        fix=f"look where it comes from; np.nan_to_num({name}), or leave those rows out",
        entry="nan-in-the-data",
    )


# ---- what comes out ----------------------------------------------------------------------


def _check_loss(run: Run) -> None:
    loss = run.loss
    if isinstance(loss, Tensor) and loss.numel() == 1:
        return
    fix, crit = "return one tensor, the mean over the rows: (...).mean()", original(run.crit)
    if isinstance(loss, Tensor) and getattr(crit, "reduction", "") == "none":
        fix = f"crit=nn.{type(crit).__name__}(), without reduction='none'"
    elif isinstance(loss, int | float):
        fix = "leave out .item() and float(): the gradients come through the tensor"
    got = seen(loss) if isinstance(loss, Tensor) else f"{type(loss).__name__}: {loss!r:.60}"
    raise TypeError(
        explain(
            "crit does not give a loss",
            got=got,
            wanted="a tensor of one number",
            fix=fix,
            entry="the-loss",
        )
    )


def _check_preds(run: Run) -> None:
    crit = original(run.crit)
    preds, y, name = run.preds, run.y, _name_of(crit)
    if getattr(crit, "reduction", "mean") == "sum":
        _complain(run, _sums(name), certain=False)
    if not isinstance(preds, Tensor) or not isinstance(y, Tensor):
        return
    if preds.is_complex() or not bool(preds.isfinite().all()):
        return  # the loss will tell
    p = preds.detach().float()
    if name in REGRESSIONS and p.shape != y.shape and p.numel() != 1:
        _complain(run, _broadcasts(preds, y, name))
    if name in LOGITS and p.numel() >= 16 and p.min() >= 0 and p.max() <= 1:
        _complain(run, _twice("sigmoid", name, "the net's last layer"), certain=False)
    if p.ndim < 2:
        return
    if name in LOG_PROBABILITIES and not _sums_to_one(p.exp()):
        _complain(run, _no_log_probabilities(p, name))
    if name in SCORES and p.shape[1] == 1:
        _complain(run, _one_class(preds, name))
    elif name in SCORES and _sums_to_one(p):  # their logarithms would come out as they went in
        _complain(run, _twice("softmax", name, "the net's last layer"), certain=False)


LOG_PROBABILITIES = "NLLLoss", "nll_loss"
SCORES = "CrossEntropyLoss", "cross_entropy"
LOGITS = "BCEWithLogitsLoss", "binary_cross_entropy_with_logits"
REGRESSIONS = {"MSELoss", "L1Loss", "SmoothL1Loss", "HuberLoss"} | {
    "mse_loss",
    "l1_loss",
    "smooth_l1_loss",
    "huber_loss",
}


def _name_of(crit: Any) -> str:
    return type(crit).__name__ if isinstance(crit, nn.Module) else getattr(crit, "__name__", "")


def _sums_to_one(p: Tensor) -> bool:
    """Whether the second axis holds probabilities."""
    return bool((p >= 0).all() and ((p.sum(1) - 1).abs() < 1e-2).all())


def _broadcasts(preds: Tensor, y: Tensor, name: str) -> str:
    fix = f"make them alike: y.reshape{tuple(preds.shape)}"
    if preds.ndim == y.ndim + 1 and preds.shape[-1] == 1:
        fix = "y.reshape(-1, 1) before from_arrays, or a net that ends in nn.Flatten(0)"
    elif y.ndim == preds.ndim + 1 and y.shape[-1] == 1:
        fix = "y.ravel() before from_arrays"
    return explain(
        f"predictions and y differ in shape, and {name} would compare each row with every other",
        got=f"predictions {seen(preds)}, y {seen(y)}",
        wanted="the same shape",
        fix=fix,
        entry="shapes-differ",
    )


def _no_log_probabilities(p: Tensor, name: str) -> str:
    probabilities = _sums_to_one(p)
    return explain(
        f"{name} wants log-probabilities, and the net gives "
        + ("probabilities" if probabilities else "scores"),
        got=f"predictions from {float(p.min()):.3g} to {float(p.max()):.3g}",
        wanted="logarithms of probabilities: none above 0, and their exp sums to 1 in each row",
        fix="end the net in nn.LogSoftmax(dim=1)"
        + (" in place of Softmax" if probabilities else ", or crit=nn.CrossEntropyLoss()"),
        entry="log-probabilities",
    )


def _one_class(preds: Tensor, name: str) -> str:
    return explain(
        "the net has one output, and a loss over one class is always 0",
        got=f"predictions {seen(preds)} into {name}",
        wanted="an output for each class",
        fix="nn.Linear(..., 2) for two classes, or crit=nn.BCEWithLogitsLoss() with float labels",
        entry="one-output",
    )


def _twice(what: str, name: str, where: str) -> str:
    return explain(
        f"{what} is taken twice: by {where}, and again by {name}",
        got=f"predictions that are {what}'s already",
        wanted=f"the scores themselves: {name} has the {what} in it",
        fix=f"leave the {what} out of the net",
        entry="softmax-twice",
    )


def _sums(name: str) -> str:
    return explain(
        "crit sums over the rows of a batch",
        got=f"{name}(reduction='sum')",
        wanted="the mean: the losses shown are averaged over rows, and rates depend on the batch",
        fix=f"crit=nn.{name}()",
        entry="the-loss",
    )


# ---- all labels -----------------------------------------------------------------------------


def _check_all_labels(run: Run) -> None:
    """The labels of all rows, not of the first batch alone; and rows of validation like these."""
    preds = run.preds
    classes = class_loss(run.crit) and isinstance(preds, Tensor) and preds.ndim == 2
    loaders = [(n, getattr(run.data, n)) for n in ("trn_dl", "val_dl")]
    arrays = [(n, dl.arrays) for n, dl in loaders if isinstance(dl, ArrayLoader)]
    for name, (*_, y) in arrays:
        if classes and y.ndim == 1 and y.dtype == torch.int64 and len(y) <= ENOUGH:
            problem = label_problem(run.crit, y, preds.shape[1], f"{name}'s y")
            if problem:
                _complain(run, problem)
    if len(arrays) == 2 and all(len(a) == len(arrays[0][1]) for _, a in arrays):
        for trn, val in zip(arrays[0][1], arrays[1][1], strict=True):
            if trn.shape[1:] != val.shape[1:]:
                _complain(run, _other_rows(trn, val))


def _other_rows(trn: Tensor, val: Tensor) -> str:
    return explain(
        "the rows to validate with have another shape than those to train on",
        got=f"to train on {seen(trn)}, to validate with {seen(val)}",
        wanted="the same shape but for the number of rows",
        fix="prepare both by one function",
        entry="shapes-differ",
    )


# ---- while it runs -----------------------------------------------------------------------


def at_epochs_end(run: Run) -> None:
    """Ends training whose epoch had no batch, or whose loss a GPU tells last of."""
    if run.step == run.epoch_start:
        raise ValueError(no_batch("trn_dl", run.epoch))
    if run.running_loss.is_bad():
        at_no_number(run)


def at_no_number(run: Run) -> None:
    """Ends training whose loss is nan or infinite, and says where it began."""
    if run.checks == "off":
        return
    rates = ", ".join(f"{float(group['lr']):g}" for group in run.opt.param_groups if "lr" in group)
    named = [(n, t) for n, t in run.net.named_parameters() if not bool(t.isfinite().all())]
    xs = run.x if isinstance(run.x, tuple) else [run.x]
    in_x = any(isinstance(t, Tensor) and not bool(t.isfinite().all()) for t in xs)
    parameter = f"; the first bad parameter: {named[0][0]}" if named else ""
    came = "; x itself has some" if in_x else ""
    last = run.running_loss.last
    before = "" if isinstance(last, float) else " or before"  # a GPU's comes later
    text = explain(
        f"the loss is {float(last)} at batch {run.batch}{before} of epoch {run.epoch}",
        got=f"lr {rates}{parameter}{came}",
        wanted="a finite loss: from here on nothing is learned",
        fix="leave out the rows with nan" if in_x else "a smaller rate: lr_find(...), or GradClip",
        entry="nan-loss",
    )
    if run.checks == "on":
        raise FloatingPointError(text)
    warnings.warn(text, stacklevel=4)
    run.checks = "off"  # said once
