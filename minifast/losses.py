"""What a loss or a metric divides by: the one table, and how it is read from a call.

The value of a batch is a mean over something: rows, pixels, the labels that are not ignored, class
weights. The mean over several batches is the value that one large batch has only if each of them
counts by what it divided by. Everything that averages over batches asks here: `val_loss` and
metrics, `GradAccumulation`, several processes.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from contextvars import ContextVar
from functools import cache, partial
from math import prod
from typing import Any, TypeVar

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .batches import batch_size, leaves

__all__ = ["weighted_by"]

Function = TypeVar("Function", bound=Callable[..., Any])
Count = float | Tensor


def weighted_by(count: Callable[[Any, Any], Count]) -> Callable[[Function], Function]:
    """Declares what a loss or metric divides by: its values are averaged with these weights.

    PyTorch's losses and means over rows or entries need no declaration. A mean over something else,
    such as the entries that a mask leaves, does: without it each batch counts by its rows.

    Args:
        count: `count(preds, targs)` returns the number, or the sum of weights, that the function
            divides by: a number or a 0-dim tensor.

    Examples:
        >>> @weighted_by(lambda preds, targs: targs.isfinite().sum())
        ... def masked_mse(preds, targs):
        ...     there = targs.isfinite()
        ...     return ((preds - targs)[there] ** 2).mean()
        >>> from minifast import ArrayLoader, validate
        >>> y = torch.tensor([1.0, 1.0, 1.0, torch.nan, torch.nan, 3.0])
        >>> validate(nn.Identity(), ArrayLoader(torch.zeros(6), y, bs=3), masked_mse)
        {'val_loss': 3.0}
    """

    def declare(function: Function) -> Function:
        function.divisor = count  # type: ignore[attr-defined]
        return function

    return declare


class WeightedLoss:
    """A loss or metric that also knows what its last value divided by.

    PyTorch's losses are recognized when they are called, wherever the call stands: in `nn` modules,
    their subclasses, `functools.partial`, user functions. What counts is the call whose result is
    returned, or that is part of a sum whose parts all divide by the same; a part that does not
    follow from the batch, such as a penalty on the weights, may stand in it. A final `.mean()`
    counts its entries if predictions or targets, or what a mask selects of them, have as many. A
    sum that is divided by a sum, such as `mask.sum()`, divides by that, unless it follows from the
    predictions.

    Attributes:
        function: The loss or metric itself.
        divisor: What the last value divided by; None if that is unknown.
        known: Whether it is known, in all processes where there are several.
        rows: The number of rows of the last batch, as its targets tell.
        sums: Whether the last value is the sum over the rows: `reduction="sum"`, of a PyTorch loss
            or as an attribute of the function.
        total: What the last batch counts in all processes together, where there are several.

    Examples:
        >>> loss = WeightedLoss(nn.CrossEntropyLoss(weight=torch.tensor([1.0, 3.0])))
        >>> value = loss(torch.zeros(4, 2), torch.tensor([0, 1, 1, -100]))
        >>> loss.divisor, loss.rows
        (tensor(7.), 4)
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.divisor: Count | None = None
        self.rows, self.sums = 0, False
        self.known: bool | Tensor = False
        self.total: Count = 0

    def __call__(self, preds: Any, targs: Any) -> Any:
        self.rows = batch_size(None, targs)
        self.sums = getattr(self.function, "reduction", "mean") == "sum"
        declared = declared_by(self.function, "divisor")
        own = OWN_LOSSES.get(type(self.function))
        if callable(declared):
            self.divisor, value = declared(preds, targs), self.function(preds, targs)
        elif own is not None and not is_changed(self.function):  # known without looking
            value = self.function(preds, targs)
            given = {name: getattr(self.function, name) for name in OPTIONS[own]}
            self.divisor = _divisor(own, (preds, targs), given)
        else:
            by_batch = _BY_BATCH.set(True)
            try:
                with _Calls(preds, targs) as calls:
                    value = self.function(preds, targs)
            finally:
                _BY_BATCH.reset(by_batch)
            self.divisor = calls.divisor_of(value)
            self.sums = self.sums or any(result is value for result in calls.sum_losses)
        self.known = self.divisor is not None
        return value


def declared_by(function: Any, name: str) -> Any:
    """An attribute that a function was given, by `weighted_by` or `whole_epoch`; None without.

    A `functools.partial` has those of its function: it binds options such as a threshold.
    """
    while isinstance(function, partial) and not hasattr(function, name):
        function = function.func
    return getattr(function, name, None)


def called_by_batch() -> bool:
    """Whether it is called by a function whose mean over batches is taken."""
    return _BY_BATCH.get()


_BY_BATCH: ContextVar[bool] = ContextVar("by batch", default=False)


def weighted(function: Callable[..., Any]) -> WeightedLoss:
    """The function as a `WeightedLoss`; one that is already is returned as it is."""
    return function if isinstance(function, WeightedLoss) else WeightedLoss(function)


def original(function: Any) -> Any:
    """The user's own loss or metric, without the `WeightedLoss` around it."""
    return function.function if isinstance(function, WeightedLoss) else function


# ---- reading it from a call --------------------------------------------------------------


class _Calls(TorchFunctionMode):
    """Notes what calls of PyTorch's losses, means over all entries, and sums over counts, divided
    by."""

    def __init__(self, preds: Any, targs: Any) -> None:
        super().__init__()
        self.found: list[tuple[Any, Count | None]] = []
        self.sums: list[tuple[Any, Any]] = []  # with the same before it was clamped
        # Any other `.sum()` may be one over columns, or of weights that add up to 1.
        self.sum_losses: list[Any] = []
        # What follows from the predictions, and from the batch; tensors by their id.
        self.of_preds = _tensors(preds)
        self.of_batch = self.of_preds | _tensors(targs)
        self.counts: set[int] = set()
        self._count_rows(preds, targs)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.l1_loss:
            kwargs = {**kwargs, "weight": _argument_of_caller(func, "weight")}
        result = func(*args, **kwargs)
        self._note_origin(args, kwargs, result)
        single = isinstance(result, Tensor) and result.ndim == 0
        if func in DIVISORS:
            self.found.append((result, _divisor(func, args, kwargs)))
        elif func in MEANS and single:
            entries = args[0].numel() if args else kwargs["input"].numel()
            self.found.append((result, entries if entries in self.counts else None))
        elif func in SELECTIONS and any(map(_is_mask, args[1:])):
            self._count_rows(result)
        elif func in SAME_VALUE or func in SUMS or func in MULTIPLES:
            self.found.append((result, self._divisor_of_parts(func, args)))
        self._note_sum(func, args, kwargs, result)
        return result

    def _note_sum(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        """Notes a sum over all entries, and what is computed from such sums alone."""
        if func in DIVISORS and _arguments(func, args, kwargs)["reduction"] == "sum":
            self.sum_losses.append(result)
            self.sums.append((result, result))
        elif func in TOTALS and isinstance(result, Tensor) and result.ndim == 0:
            self.sums.append((result, result))
        elif func in SAME_VALUE or func in CLAMPS or func in MULTIPLES:
            total = self._total_of(args[0])
            if total is not None:
                self.sums.append((result, total if func in CLAMPS else result))
        elif func in SUMS and all(
            isinstance(part, int | float) or self._total_of(part) is not None for part in args
        ):
            self.sums.append((result, result))

    def _count_rows(self, *values: Any) -> None:
        self.counts |= {
            prod(t.shape[:axes])
            for t in values
            if isinstance(t, Tensor)
            for axes in range(1, t.ndim + 1)
        }

    def _note_origin(self, args: Any, kwargs: Any, result: Any) -> None:
        given = _tensors(args) | _tensors(kwargs) if kwargs else _tensors(args)
        if self.of_batch.keys().isdisjoint(given):
            return
        made = _tensors(result)
        self.of_batch |= made
        if not self.of_preds.keys().isdisjoint(given):
            self.of_preds |= made

    def _divisor_of_parts(self, func: Any, args: tuple[Any, ...]) -> Count | None:
        """What a sum of means, a multiple of one, or a sum over a count divides by.

        The means must all divide by the same; what does not follow from the batch, such as a
        penalty on the weights, is the same for every batch and divides by whatever they do.
        """
        if func in DIVISIONS and len(args) > 1 and id(args[1]) not in self.of_preds:
            count = self._total_of(args[1])
            if count is not None and self._total_of(args[0]) is not None:
                return count.detach() if isinstance(count, Tensor) else count
        parts = [each for each in args if isinstance(each, Tensor)]
        known = [n for n in map(self.divisor_of, parts) if n is not None]
        others = [each for each in parts if self.divisor_of(each) is None]
        if not known or any(each.ndim or id(each) in self.of_batch for each in others):
            return None
        if func in MULTIPLES and (len(known) > 1 or parts[0] is not args[0]):
            return None
        if func in DIVISIONS and self.divisor_of(args[0]) is None:
            return None
        return known[0] if all(bool(n == known[0]) for n in known) else None

    def divisor_of(self, value: Any) -> Count | None:
        """What the call divided by whose result this is; None if there was none."""
        return next((count for result, count in reversed(self.found) if result is value), None)

    def _total_of(self, value: Any) -> Any:
        """The sum over all entries that the value is, before it was clamped; None if it is none."""
        return next((total for result, total in reversed(self.sums) if result is value), None)


def _tensors(value: Any) -> dict[int, Tensor]:
    if isinstance(value, Tensor):
        return {id(value): value}
    return {id(t): t for t in leaves(value) if isinstance(t, Tensor)}


def _is_mask(index: Any) -> bool:
    return any(isinstance(t, Tensor) and t.dtype == torch.bool for t in leaves(index))


def _argument_of_caller(function: Any, name: str) -> Any:
    """An argument that PyTorch's dispatch to a `TorchFunctionMode` leaves out: a bug up to 2.13."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code is not function.__code__:
        frame = frame.f_back
    return frame.f_locals.get(name)


MEANS = {torch.mean, Tensor.mean}
# A metric often returns its mean as a number, or detached.
SAME_VALUE = {
    *(Tensor.item, Tensor.__float__, Tensor.detach, Tensor.cpu, Tensor.float, Tensor.double),
    *(Tensor.to, Tensor.neg, torch.neg),
}
TOTALS = {Tensor.sum, torch.sum}
SELECTIONS = {Tensor.__getitem__, Tensor.masked_select, torch.masked_select}
CLAMPS = {Tensor.clamp, torch.clamp, Tensor.clamp_min, torch.clamp_min}
SUMS = {Tensor.add, Tensor.sub, torch.add, torch.sub}
DIVISIONS = {Tensor.div, torch.div, Tensor.true_divide, torch.true_divide}
MULTIPLES = {Tensor.mul, torch.mul, *DIVISIONS}


def _divisor(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Count | None:
    """What a call of one of PyTorch's losses divides its sum by."""
    given = _arguments(function, args, kwargs)
    if given.get("size_average") is not None or given.get("reduce") is not None:
        return None  # deprecated spellings of reduction
    if given["reduction"] == "batchmean":
        return int(given["input"].shape[0])
    return DIVISORS[function](given) if given["reduction"] == "mean" else None


def _arguments(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call by name, which was made: so they fit."""
    names, defaults = _parameters(function)
    return {**defaults, **dict(zip(names, args, strict=False)), **kwargs}


@cache
def _parameters(function: Any) -> tuple[tuple[str, ...], dict[str, Any]]:
    parameters = inspect.signature(function).parameters
    defaults = {name: p.default for name, p in parameters.items() if p.default is not p.empty}
    return tuple(parameters), defaults


# ---- the table ---------------------------------------------------------------------------

Arguments = dict[str, Any]


def _entries(*names: str) -> Callable[[Arguments], Count]:
    """The entries of these arguments, broadcast."""

    def count(given: Arguments) -> Count:
        return int(prod(torch.broadcast_shapes(*(given[name].shape for name in names))))

    return count


def _weighted_entries(given: Arguments) -> Count:
    """The entries, or the sum of their weights."""
    weight = given["weight"]
    return _entries("input", "target")(given) if weight is None else Tensor.sum(weight)


def _classes(given: Arguments) -> Count:
    """The labels that are not ignored, or the sum of their class weights."""
    target, weight, ignored = given["target"], given["weight"], given["ignore_index"]
    if target.is_floating_point():  # probabilities: every row counts 1, weights or not
        return int(target.numel() // target.shape[1 if target.ndim > 1 else 0])
    counted = target != (-100 if ignored is None else ignored)
    return Tensor.sum(counted if weight is None else weight[target[counted]])


def _rows_of_vectors(name: str) -> Callable[[Arguments], Count]:
    """The vectors along the last axis."""
    return lambda given: int(given[name].numel() // given[name].shape[-1])


DIVISORS: dict[Any, Callable[[Arguments], Count]] = {
    F.cross_entropy: _classes,
    F.nll_loss: _classes,
    F.mse_loss: _weighted_entries,
    F.l1_loss: _weighted_entries,
    F.huber_loss: _entries("input", "target"),  # its weights are not divided by
    F.smooth_l1_loss: _entries("input", "target"),
    F.binary_cross_entropy: _entries("input", "target"),
    F.binary_cross_entropy_with_logits: _entries("input", "target"),
    F.kl_div: _entries("input", "target"),
    F.poisson_nll_loss: _entries("input", "target"),
    F.gaussian_nll_loss: _entries("input", "target"),
    F.soft_margin_loss: _entries("input", "target"),
    F.hinge_embedding_loss: _entries("input", "target"),
    F.margin_ranking_loss: _entries("input1", "input2", "target"),
    F.cosine_embedding_loss: lambda given: int(given["target"].numel()),
    F.multi_margin_loss: lambda given: int(given["target"].numel()),
    F.multilabel_margin_loss: _rows_of_vectors("input"),
    F.multilabel_soft_margin_loss: _rows_of_vectors("input"),
    F.triplet_margin_loss: _rows_of_vectors("anchor"),
    F.triplet_margin_with_distance_loss: _rows_of_vectors("anchor"),
    F.ctc_loss: lambda given: int(torch.as_tensor(given["target_lengths"]).numel()),
}
if hasattr(F, "linear_cross_entropy"):  # since PyTorch 2.13
    DIVISORS[F.linear_cross_entropy] = _classes


OWN_LOSSES = {
    nn.CrossEntropyLoss: F.cross_entropy,
    nn.NLLLoss: F.nll_loss,
    nn.MSELoss: F.mse_loss,
    nn.L1Loss: F.l1_loss,
    nn.SmoothL1Loss: F.smooth_l1_loss,
    nn.HuberLoss: F.huber_loss,
    nn.BCELoss: F.binary_cross_entropy,
    nn.BCEWithLogitsLoss: F.binary_cross_entropy_with_logits,
}
# What the divisor depends on.
OPTIONS = {
    function: ("weight", "ignore_index", "reduction")
    if DIVISORS[function] is _classes
    else ("reduction",)
    for function in OWN_LOSSES.values()
}


def is_changed(module: Any) -> bool:
    """Whether the user has changed what a module of a known class computes: by a hook, or by a
    method that is set on the object."""
    of_all = nn.modules.module
    hooks = (  # private names: a release of PyTorch without them shows none
        *(getattr(module, name, {}) for name in ("_forward_hooks", "_forward_pre_hooks")),
        getattr(of_all, "_global_forward_hooks", {}),
        getattr(of_all, "_global_forward_pre_hooks", {}),
    )
    return any(hooks) or not {"forward", "train", "eval"}.isdisjoint(vars(module))


def divides_by_rows(crit: Any) -> bool:
    """Whether it is one of PyTorch's own losses, whose value is a mean over independent rows.

    A subclass may compute anything, so only the classes and functions themselves are meant.
    """
    kind = type(crit)
    module = isinstance(crit, nn.Module) and kind.__module__ == "torch.nn.modules.loss"
    known = module or any(crit is function for function in DIVISORS)
    return known and getattr(crit, "reduction", "mean") == "mean"
