"""One pass over a loader without gradients: what `validate` and `predict` have in common."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import chain, islice
from typing import Any

import torch
from torch import Tensor, nn

from . import checks
from .batches import batch_size, cloned
from .core import device_of, explain, modes_kept
from .dataloader import ArrayLoader
from .errors import add_note
from .losses import declared_by, divides_by_rows, is_changed, original
from .metrics import (
    WeightedMean,
    accuracy,
    accuracy_multi,
    as_float,
    check_number,
    meter,
    metric_names,
)
from .mistakes import NOT_YET, explain_failure
from .reach import reachable
from .stepper import Stepper, split_batch
from .team import Team, join


@contextmanager
def loss_in_eval_mode(crit: Any) -> Iterator[None]:
    """Puts the modules of a loss in eval mode and back: dropout in a loss is for training."""
    modules = list(reachable(original(crit), nn.Module).values())
    with ExitStack() as modes:
        for module in modules:
            modes.enter_context(modes_kept(module))
            module.eval()
        yield


@torch.no_grad()
def evaluate(
    net: nn.Module,
    dl: Any,
    crit: Callable[..., Tensor],
    metrics: Sequence[Any],
    stepper: Stepper,
) -> dict[str, float]:
    """The loss and the metrics over a loader, with the net as it is, which is in eval mode."""
    device, team = device_of(net), join()
    meters = [WeightedMean(crit), *map(meter, metrics)]
    known = list(map(_is_known, [crit, *metrics]))
    bs = rows_at_once(dl, net, stepper, all(known))
    names = ["val_loss", *metric_names(metrics)]
    with loss_in_eval_mode(crit), numbered("validation") as place:
        for batch in eval_batches(dl, team, bs):
            x, y = split_batch(checked_structure(batch), device)
            preds = forward(stepper, net, x)
            update_loss(meters[0], known[0], net, x, y, preds, team)
            for name, each, safe in zip(names[1:], meters[1:], known[1:], strict=True):
                with named(name):
                    _update(each, safe, x, y, preds, team)
            place.batch += 1
    values = {}
    for name, each in zip(names, meters, strict=True):
        with named(name):
            value = each.compute() if team is None else team.computed(each)
            check_number(value)
            values[name] = as_float(value)
    return values


class Place:
    """Where a pass over a loader is: the number of its batch, from 0."""

    batch = 0


@contextmanager
def numbered(doing: str) -> Iterator[Place]:
    """Adds to an error a note with the batch at which it was raised."""
    place = Place()
    try:
        yield place
    except Exception as error:
        add_note(error, f"raised by {doing}: batch {place.batch} (from 0) of its loader")
        raise


@contextmanager
def named(metric: str) -> Iterator[None]:
    """Adds to an error a note with the name of the metric."""
    try:
        yield
    except Exception as error:
        add_note(error, f"raised by the {'loss' if metric == 'val_loss' else f'metric {metric}'}")
        raise


def checked_structure(batch: Any) -> Any:
    """The batch, if it has parts by place: an input and a target.

    Raises:
        TypeError: for a mapping, whose keys would be taken for the parts, and for a text.
    """
    if not isinstance(batch, Mapping | str | bytes):
        return batch
    raise TypeError(
        explain(
            "the loader's batch has no input and target",
            got=f"a {type(batch).__name__} with {', '.join(map(str, batch))}"
            if isinstance(batch, Mapping)
            else type(batch).__name__,
            wanted="(x, y), or (x1, ..., xn, y); x itself may be a dict",
            fix="yield (batch, batch.pop('labels')), or (batch, None) to predict: a collate_fn, or "
            "a generator over the loader",
            entry="loaders",
        )
    )


def update_loss(
    loss: Any, safe: bool, net: nn.Module, x: Any, y: Any, preds: Any, team: Team | None
) -> None:
    """`_update`, whose errors are explained; a metric's own are its author's."""
    try:
        _update(loss, safe, x, y, preds, team)
    except Exception as error:
        explain_failure(error, net, original(loss.function), x, y, preds, NOT_YET)
        raise


def _update(meter: Any, safe: bool, x: Any, y: Any, preds: Any, team: Team | None) -> None:
    """Adds a batch to a metric. What it may write into is a copy: the next one gets the net's."""
    given = (preds, y) if safe else (cloned(preds), cloned(y))
    if team is not None:
        team.update(meter, *given)
    elif isinstance(meter, WeightedMean):
        meter.update(*given, batch_size(x, y))
    else:
        meter.update(*given)


def forward(stepper: Stepper, net: nn.Module, x: Any) -> Any:
    """The net's output for a batch; PyTorch's errors are explained."""
    try:
        return stepper.forward(net, x)
    except Exception as error:
        explain_failure(error, net, None, x, None, NOT_YET, NOT_YET)
        raise


def eval_batches(dl: Any, team: Team | None, bs: int) -> Iterable[Any]:
    """The batches to evaluate, of arrays in their own order and `bs` rows for each process."""
    if isinstance(dl, ArrayLoader):
        return dl.in_order(bs) if team is None else team.in_order(dl, bs * team.size)
    return _at_least_one(dl if team is None else team.in_order(dl, 0))


def _at_least_one(batches: Iterable[Any]) -> Iterator[Any]:
    batches = iter(batches)
    first = list(islice(batches, 1))
    if not first:
        raise ValueError(checks.no_batch("the loader"))
    return chain(first, batches)


# ---- how many rows at once ---------------------------------------------------------------

# Where no gradient is kept a batch may be larger: fewer calls, and it still fits the cache.
EVAL_ROWS, EVAL_BYTES = 2000, 2**21

ROW_METRICS = accuracy, accuracy_multi
ROW_MODULES = {
    *(nn.Linear, nn.Identity, nn.Dropout, nn.AlphaDropout),
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish),
    *(nn.Sigmoid, nn.Tanh, nn.LogSigmoid, nn.Softplus, nn.Softsign, nn.Hardtanh),
    *(nn.Hardsigmoid, nn.Hardswish, nn.Threshold),
}


def rows_at_once(dl: Any, net: nn.Module, stepper: Stepper, known: bool) -> int:
    """How many rows of arrays are evaluated at once: the loader's batch size, or more if safe.

    A net, a loss or a metric may look at the whole batch, and then another batch size gives another
    value; a convolution may need the memory. Safe is what is known not to: PyTorch's own dense
    layers in a `Sequential`, PyTorch's own losses (a mean over rows), minifast's metrics of rows.
    """
    bs = int(getattr(dl, "bs", 0))
    if not known or not isinstance(dl, ArrayLoader) or dl.tfm is not None:
        return bs
    if not _keeps_rows_apart(net) or stepper_forward(stepper) is not Stepper.forward:
        return bs
    if any(len(a.shape) < 2 for a in dl.arrays[:-1]):
        return bs  # a layer takes such a batch for one row
    widths = [int(math.prod(a.shape[1:])) for a in dl.arrays]
    widths += [m.out_features for m in net.modules() if isinstance(m, nn.Linear)]
    return max(bs, min(EVAL_ROWS, EVAL_BYTES // (4 * max(1, *widths))))


def stepper_forward(stepper: Any) -> Any:
    """The function that is a stepper's `forward`."""
    stepper = getattr(stepper, "inner", stepper)
    return getattr(stepper.forward, "__func__", stepper.forward)  # it may be set on the object


def _keeps_rows_apart(net: nn.Module) -> bool:
    return all(_is_row_module(module) and not is_changed(module) for module in net.modules())


def _is_row_module(module: nn.Module) -> bool:
    if type(module) is nn.Sequential or type(module) in ROW_MODULES:
        return True
    if type(module) is nn.BatchNorm1d:
        return module.running_mean is not None  # without, it takes the batch's statistics
    if type(module) in (nn.Softmax, nn.LogSoftmax, nn.Softmin):
        return module.dim in (1, -1)
    return type(module) is nn.Flatten and module.start_dim == 1


def _is_known(function: Any) -> bool:
    """Whether a loss or metric is known to treat rows apart, and to write into nothing."""
    if declared_by(function, "whole_epoch"):
        return True  # it gets all rows, copied
    crit = original(function)
    if isinstance(crit, nn.Module) and is_changed(crit):
        return False
    return divides_by_rows(crit) or any(function is each for each in ROW_METRICS)
