"""Training, validation and prediction: the loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import count, islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from . import look, nonfinite
from .callback import Callback, Events, Run
from .checks import check_list, check_loader, check_net, check_stepper, checked_run, displays
from .core import T, V, device_of, modes_kept, set_lrs, to_np
from .dataset import ModelData
from .epoch_row import row_begun, row_ended
from .errors import AsRaised
from .evaluation import evaluate
from .history import History
from .interrupts import interrupts
from .mistakes import explains_reuse
from .prediction import iter_predict, predict, predict_with_targs
from .resume import drawn_again, looking_ahead, restore
from .rng import random_state
from .run_loaders import loader_views
from .stepper import Stepper, split_batch
from .team import checking, failing_together, heard, join, same_net, together

__all__ = [
    "T",
    "V",
    "fit",
    "iter_predict",
    "predict",
    "predict_with_targs",
    "set_lrs",
    "to_np",
    "validate",
]


def fit(
    net: nn.Module,
    data: ModelData,
    epochs: int | None = None,
    crit: Callable[..., Tensor] | None = None,
    opt: torch.optim.Optimizer | None = None,
    metrics: Sequence[Any] | None = (),
    callbacks: Sequence[Callback] | None = (),
    *,
    n_epochs: int | None = None,
    stepper: Stepper | None = None,
    progress: bool | Callback = True,
    steps: int | None = None,
    resume: dict[str, Any] | str | Path | None = None,
    checks: str = "on",
) -> History:
    """Trains `net` on `data`, in place, and validates it after each epoch.

    On the CPU the weights are, to the bit, those of the loop in `examples/plain_loop.py`. Batches
    go where the net's parameters are. The net is left in the train or eval mode it was found in.
    Calling `fit` again trains on with the same net and optimizer.

    Args:
        net: Sequential or any other module, on any device.
        data: The loaders: `trn_dl` to train on, `val_dl` (or None) to validate with.
        epochs: How many times to go through `trn_dl`.
        crit: The loss: `crit(preds, y)` gives a 0-dim tensor, the mean over the batch's rows.
        opt: An optimizer over the net's parameters.
        metrics: Functions `(preds, targs) -> number`; see `minifast.metrics`.
        callbacks: What else should happen; see `minifast.callback`. Called in this order.
        n_epochs: fastai's name of `epochs`.
        stepper: How one batch is learned; see `minifast.stepper`.
        progress: Print the table and show the bar; or a callback of your own that shows something
            else. It receives each event after all others.
        steps: How many batches an epoch has at most: for a stream that has no end. Each epoch
            iterates `trn_dl` anew, which goes on where it was if it is an iterator itself.
        resume: The path of a `Checkpoint`, or a state that `minifast.checkpoint.snapshot` took, of
            a fit with the same arguments: goes on from there, to the same end. A path at which one
            of the callbacks will write, and has not yet, begins.
        checks: `"on"`: what is wrong with the first batch is an error, what is suspicious a
            warning, a loss that is nan or infinite an error. `"warn"`: where torch would go on, go
            on with a warning. `"off"`: do not look.

    Returns:
        A row an epoch: `epoch`, `trn_loss` (smoothed as fastai does), `val_loss`, the metrics.
        Each row of the validation set counts once in them, however the batches fall. `trn_loss`
        leaves out a batch in which nothing counts, such as one whose labels are all ignored.

    Raises:
        TypeError, ValueError: before any step, when an argument or the first batch is not what it
            should be; weights, buffers and random generators are as they were.
        FloatingPointError: when the loss is nan or infinite; on a GPU once that is known.
        CheckpointError: if `resume` is of another run.
        KeyboardInterrupt: on Ctrl-C.

    Whatever error ends it carries the epochs so far as its attribute `history`.

    Examples:
        >>> from minifast import ArrayLoader
        >>> x = torch.randn(200, 4)
        >>> md = ModelData(".", ArrayLoader(x, x.sum(1, keepdim=True), shuffle=True))
        >>> net = nn.Linear(4, 1)
        >>> opt = torch.optim.SGD(net.parameters(), lr=0.1)
        >>> history = fit(net, md, epochs=5, crit=nn.MSELoss(), opt=opt, progress=False)
        >>> history["trn_loss"][-1] < history["trn_loss"][0]
        True
    """
    stepper = stepper or Stepper()
    with checking():
        run = checked_run(
            net, data, epochs, crit, opt, metrics, callbacks, n_epochs, stepper, steps, checks
        )
        shown_by = displays(progress, run.callbacks)
    run.team = join()
    events = Events(heard(run, [*run.callbacks, *shown_by]))
    with AsRaised(), together(run, stepper) as stepper, _undone_afterwards(run, events):
        if resume is not None:
            restore(run, resume, events)
        for epoch in range(run.epoch, run.epochs):
            if run.stopped:
                break
            if epoch > run.epoch:  # a resumed one may be half done
                run.epoch, run.epoch_start = epoch, run.step
            _train_epoch(run, stepper, events)
            if run.stopped:
                break
            run.values = row_begun(run)
            if run.data.val_dl is not None:
                net.eval()
                events.on_validate_begin(run)
                rows = run.loader_for(run.data.val_dl)
                run.values |= evaluate(net, rows, run.crit, run.metrics, stepper)
                events.on_validate_end(run)
            events.on_epoch_end(run)
            run.history.append(row_ended(run))
    return run.history


@contextmanager
def _undone_afterwards(run: Run, events: Events) -> Iterator[None]:
    """What training sets up and takes back, however it ends; no end loses the history."""
    try:
        with (
            interrupts(run),
            modes_kept(run.net),
            loader_views(run),
            events.training(run),
            explains_reuse(run),
        ):
            yield
    except BaseException as error:
        with suppress(Exception):  # one that takes no attributes is raised as it is
            error.history = run.history  # type: ignore[attr-defined]
        raise
    finally:
        run.history.stopped = run.stopped


def _train_epoch(run: Run, stepper: Stepper, events: Events) -> None:
    """Learns from each batch of the training data once, or until somebody asks to stop."""
    device = device_of(run.net)
    batches, numbers = _begun(run, events)
    batches, step = look.first_look(run, stepper, batches)
    for batch in batches:
        run.batch = next(numbers)
        run.x, run.y = split_batch(batch, device)
        del batch  # nobody else holds it now, so that the next one finds its memory still warm
        events.on_batch_begin(run)
        no_number = run.running_loss.add(step(run, events)) and not nonfinite.counts_nothing(run)
        step = stepper.step  # the very first one was looked at
        run.step += 1
        events.on_batch_end(run)
        if no_number and not run.stopped:
            nonfinite.at_no_number(run)
        run.x = run.y = run.preds = run.loss = None
        if run.stopped:
            break
    if not run.stopped:
        look.at_epochs_end(run)


def _begun(run: Run, events: Events) -> tuple[Iterator[Any], Iterator[int]]:
    """The batches of the epoch and their numbers; of a resumed one, which `restore` has begun,
    those that are left."""
    done = run.step - run.epoch_start
    if not done:
        run.batch, run.values = 0, {}
        run.net.train()
        run.began = random_state(run.data.trn_dl)
        events.on_epoch_begin(run)
        if run.stopped:
            return iter(()), count()
        run.order = random_state(run.data.trn_dl) if run.team is None else run.team.order(run)
    loader = run.loader_for(run.data.trn_dl, training=True)
    batches = drawn_again(run, done) if done else iter(loader)
    if run.team is not None:
        batches = run.team.training_parts(run, loader, batches)
    if run.max_batches is not None:
        batches = islice(batches, run.max_batches - done)
    batches = run.batches = looking_ahead(run, loader, batches, done)
    if run.team is not None:
        batches = run.team.taken(run, batches)
    return batches, count(done)


def validate(
    net: nn.Module,
    dl: Any,
    crit: Callable[..., Tensor],
    metrics: Sequence[Any] | None = (),
    *,
    stepper: Stepper | None = None,
) -> dict[str, float]:
    """Returns the loss and the metrics over all rows of a loader.

    The batches are the loader's, and each counts by what its loss or metric divides by: its rows,
    or for a loss over classes the sum of the weights of the labels that are not ignored.

    The net is put in eval mode and back; no gradients are kept.

    Args:
        net: Any module.
        dl: A loader of batches `(x, y)`, such as `md.val_dl`.
        crit: The loss: `crit(preds, y)`.
        metrics: As for `fit`.
        stepper: The stepper that the net was trained with, if its `forward` is not the plain one.

    Returns:
        `{"val_loss": ..., "accuracy": ..., ...}`, in the order of the metrics.

    Examples:
        >>> from minifast import ArrayLoader
        >>> dl = ArrayLoader(torch.ones(3, 2), torch.zeros(3, 2))
        >>> validate(nn.Identity(), dl, nn.MSELoss())
        {'val_loss': 1.0}
    """
    with checking():
        check_net(net)
        check_loader(dl)
        metrics = check_list("metrics", metrics, "functions (preds, targs) -> number")
        stepper = check_stepper(stepper or Stepper())
    with failing_together(), modes_kept(net):
        same_net(net)
        net.eval()
        return evaluate(net, dl, crit, metrics, stepper)
