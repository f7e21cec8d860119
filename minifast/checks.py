"""Looks at what `fit` was given, before any training, and says in words what is wrong."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .callback import EVENTS, Callback, Run
from .core import explain, whole_number
from .declarations import check_declarations, check_pair
from .mistakes import MEANT
from .progress import Progress
from .trained import Trained


def checked_run(
    net: Any,
    data: Any,
    epochs: Any,
    crit: Any,
    opt: Any,
    metrics: Any,
    callbacks: Any,
    n_epochs: Any,
    stepper: Any,
    steps: Any,
    how: Any,
) -> Run:
    """The record of a fit whose arguments are what they should be."""
    check_net(net)
    check_data(data)
    how = check_checks(how)
    check_crit_and_opt(net, crit, opt, how)
    return Run(
        net=net,
        data=data,
        opt=opt,
        crit=crit,
        metrics=check_list("metrics", metrics, "functions (preds, targs) -> number"),
        epochs=check_epochs(epochs, n_epochs),
        callbacks=check_callbacks(callbacks),
        stepper=check_stepper(stepper),
        max_batches=check_steps(steps),
        checks=how,
    )


def check_net(net: Any) -> None:
    """A module, and an instance of it."""
    if not isinstance(net, nn.Module):
        raise TypeError(
            explain(
                "net is no nn.Module",
                got=_kind(net),
                wanted="a Sequential or any other nn.Module",
                fix=f"{net.__name__}()" if isinstance(net, type) else "nn.Sequential(...)",
                entry="net",
            )
        )


def check_epochs(epochs: Any, n_epochs: Any) -> int:
    """The number of epochs, from the one of the two spellings that was used."""
    if epochs is not None and n_epochs is not None:
        raise TypeError(
            explain(
                "epochs and n_epochs are two names of the same thing",
                got=f"epochs={epochs!r} and n_epochs={n_epochs!r}",
                wanted="one of them",
                fix=f"fit(..., epochs={epochs!r})",
                entry="epochs",
            )
        )
    wanted = n_epochs if epochs is None else epochs
    fix = "fit(net, md, epochs=1, crit=crit, opt=opt)"
    return whole_number("epochs", wanted, 0, fix=fix, entry="epochs")


def check_steps(steps: Any) -> int | None:
    """How many batches an epoch has at most."""
    if steps is None:
        return None
    return whole_number("steps", steps, 1, fix="fit(..., steps=1000)", entry="streams")


def check_crit_and_opt(net: nn.Module, crit: Any, opt: Any, how: str = "on") -> None:
    """A loss, and an optimizer over parameters of this net, each in its place."""
    if isinstance(crit, torch.optim.Optimizer) and not isinstance(opt, torch.optim.Optimizer):
        raise TypeError(
            explain(
                "crit and opt are in each other's place",
                got=f"crit={_kind(crit)}, opt={_kind(opt)}",
                wanted="the loss first: fit(net, data, epochs, crit, opt, metrics)",
                fix="name them: fit(net, md, epochs=1, crit=crit, opt=opt)",
                entry="crit-and-opt",
            )
        )
    if isinstance(crit, type) or not callable(crit):
        raise TypeError(
            explain(
                "crit is no loss",
                got=_kind(crit),
                wanted="a callable (preds, y) -> loss, such as nn.NLLLoss() or F.nll_loss",
                fix=f"crit={crit.__name__}()" if isinstance(crit, type) else "crit=nn.NLLLoss()",
                entry="crit-and-opt",
            )
        )
    if not isinstance(opt, torch.optim.Optimizer):
        name = opt.__name__ if isinstance(opt, type) else "Adam"
        raise TypeError(
            explain(
                "opt is no optimizer",
                got=_kind(opt),
                wanted="an optimizer of torch.optim over the net's parameters",
                fix=f"opt=optim.{name}(net.parameters())",
                entry="crit-and-opt",
            )
        )
    _check_parameters(net, crit, opt, how)


def _check_parameters(net: nn.Module, crit: Any, opt: torch.optim.Optimizer, how: str) -> None:
    """At least one of the optimizer's parameters is the net's, or the loss's beside a fixed net."""
    known = {id(p) for p in net.parameters()}
    trained = Trained(net, crit, opt)
    given = trained.optimized()
    if how == "off" or any(name not in trained.strays for name in given):
        return
    text = explain(
        "opt is an optimizer of another net: its steps would change nothing here",
        got=f"{type(opt).__name__} over {len(given)} parameters, none of them of this net's "
        f"{len(known)}",
        wanted="an optimizer over net.parameters()",
        fix=f"opt = optim.{type(opt).__name__}(net.parameters()), after the last net = ...; "
        f"{MEANT}",
        entry="optimizer-of-another-net",
    )
    if how == "on":
        raise ValueError(text)
    warnings.warn(text, stacklevel=5)


def check_list(name: str, values: Any, wanted: str, base: type | None = None) -> tuple[Any, ...]:
    """The callables, or instances of `base`, that came in a list; None is none of them."""
    if values is None:
        return ()
    if isinstance(values, str | type) or not isinstance(values, Iterable):
        raise TypeError(
            explain(
                f"{name} is no list",
                got=_kind(values),
                wanted=f"a list of {wanted}",
                fix=f"{name}=[{getattr(values, '__name__', '...')}]",
                entry="lists",
            )
        )
    found = tuple(values)
    for value in found:
        is_meter = hasattr(value, "update") and not _is_stepper(value)
        right = isinstance(value, base) if base else callable(value) or is_meter
        if isinstance(value, type) or not right:
            raise TypeError(
                explain(
                    f"{name} holds something else",
                    got=_kind(value),
                    wanted=wanted,
                    fix=f"{name}=[{value.__name__}()]"
                    if isinstance(value, type)
                    else _place_of(value) or f"take {value!r} out of {name}",
                    entry="lists",
                )
            )
    return found


def _place_of(value: Any) -> str:
    """The argument of `fit` that such an object belongs to; "" if it is not known."""
    cls = value if isinstance(value, type) else type(value)
    if _is_stepper(value):
        return f"stepper={cls.__name__}(...)"
    if issubclass(cls, Callback):
        return f"callbacks=[{cls.__name__}(...)]"
    if callable(value) and cls is not value and not isinstance(value, nn.Module):
        return f"metrics=[{getattr(value, '__name__', cls.__name__)}], if it is a metric"
    return ""


def _is_stepper(value: Any) -> bool:
    return hasattr(value, "step") and hasattr(value, "forward")


def check_callbacks(callbacks: Any) -> tuple[Callback, ...]:
    """Callbacks, each object once, in an order and a combination that make sense."""
    found = check_list("callbacks", callbacks, "callbacks, each an object", Callback)
    for i, callback in enumerate(found):
        check_declarations(callback, EVENTS)
        for before in found[:i]:
            check_pair(before, callback, found)
    return found


def displays(progress: Any, callbacks: Sequence[Callback]) -> list[Callback]:
    """The display of a fit, which receives each event last; none without `progress`."""
    if isinstance(progress, Callback):
        check_callbacks([*callbacks, progress])
        return [progress]
    if isinstance(progress, bool | np.bool_ | int) and progress in (0, 1):
        return [Progress()] if progress else []
    raise TypeError(
        explain(
            "progress must be a bool or a callback that shows it",
            got=_kind(progress),
            wanted="True, False, or a display of your own: an instance of a Callback",
            fix=f"progress={progress.__name__}()"
            if isinstance(progress, type) and issubclass(progress, Callback)
            else "progress=True",
            entry="progress",
        )
    )


def check_stepper(stepper: Any) -> Any:
    """Something with a `step` and a `forward`, and an instance of it."""
    if isinstance(stepper, type) or not _is_stepper(stepper):
        raise TypeError(
            explain(
                "stepper is no Stepper",
                got=_kind(stepper),
                wanted="a Stepper: how one batch is learned",
                fix=f"stepper={stepper.__name__}()"
                if isinstance(stepper, type) and _is_stepper(stepper)
                else _place_of(stepper) or "leave it out for the ordinary step",
                entry="steppers",
            )
        )
    return stepper


def check_data(data: Any) -> None:
    """Something with a `trn_dl` and a `val_dl`."""
    missing = [name for name in ("trn_dl", "val_dl") if not hasattr(data, name)]
    if missing:
        raise TypeError(
            explain(
                f"data has no {missing[0]}",
                got=_kind(data),
                wanted="a ModelData: loaders to train on and to validate with",
                fix="ModelData(path, trn_dl, val_dl), or ImageClassifierData.from_arrays(...)",
                entry="data",
            )
        )


def check_loader(dl: Any) -> None:
    """A loader to predict or validate with, not a bare array (whose rows are no batches)."""
    if isinstance(dl, Tensor | np.ndarray) or not isinstance(dl, Iterable):
        raise TypeError(
            explain(
                "dl is no loader",
                got=_kind(dl),
                wanted="an iterable of batches, such as md.val_dl",
                fix="predict(net, ArrayLoader(x, y))" if dl is not None else "give md a val_dl",
                entry="loaders",
            )
        )


def check_checks(how: Any) -> str:
    """One of the three ways to look at the first batch."""
    if isinstance(how, str) and how in ("on", "warn", "off"):
        return how
    raise ValueError(
        explain(
            "checks is none of its three",
            got=repr(how),
            wanted="'on', 'warn' or 'off'",
            fix="leave it out",
            entry="checks",
        )
    )


def _kind(value: Any) -> str:
    if isinstance(value, type):
        return f"the class {value.__name__}, not an instance of it"
    if isinstance(value, tuple | list):
        return f"{type(value).__name__} of {len(value)}"
    shape = getattr(value, "shape", None)
    return type(value).__name__ + (f" of shape {tuple(shape)}" if shape is not None else "")


def no_batch(name: str, epoch: int = 0) -> str:
    """A loader that has come to its end before it began."""
    return explain(
        f"{name} gives no batch",
        got="an end before the first batch" + (f" of epoch {epoch}" if epoch else ""),
        wanted="at least one batch in each epoch",
        fix="an iterator is used up after one pass: give a list, a DataLoader, an ArrayLoader, or "
        "an object whose __iter__ begins anew",
        entry="loaders",
    )
