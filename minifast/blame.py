"""Notes on errors that say which plugin raised them, and when."""

from __future__ import annotations

import inspect
from pathlib import Path
from types import CodeType, TracebackType
from typing import Any

import torch

from .errors import add_note
from .losses import original

__all__: list[str] = []  # of use to the package alone

OURS = __name__.partition(".")[0]
TORCH = Path(torch.__file__).parent
# An error that came through these is one of the net, the loss, the gradients or the optimizer.
TRAINING = tuple(str(TORCH / part) for part in ("nn/modules", "optim", "autograd", "_tensor.py"))


def note_plugin(error: BaseException, plugin: str, run: Any) -> None:
    """Adds the note that `plugin`, a method's name with its class, raised the error."""
    add_note(error, f"raised by {plugin}, epoch {run.epoch}, step {run.step}")


def note_stepper(error: BaseException, run: Any) -> None:
    """Adds that note if the error is one of a user's stepper, and does not say so yet.

    One that a net, a loss or an optimizer raised which a stepper called is not the stepper's.
    """
    if any(note.startswith("raised by") for note in getattr(error, "__notes__", ())):
        return
    method = _raising_method(error.__traceback__, _methods(type(run.stepper)), _codes_of(run.crit))
    if method:
        note_plugin(error, f"{type(run.stepper).__name__}.{method}", run)


def _raising_method(
    trace: TracebackType | None, methods: dict[CodeType, str], loss: list[Any]
) -> str:
    """The innermost of the methods that the error came through; "" if training lies within it."""
    found = ""
    while trace is not None:
        code = trace.tb_frame.f_code
        if code in methods:
            found = methods[code]
        elif found and (code in loss or code.co_filename.startswith(TRAINING)):
            found = ""
        trace = trace.tb_next
    return found


def _methods(cls: type) -> dict[CodeType, str]:
    """The code of the methods that a class and its bases outside of this package define."""
    return {
        code: name
        for base in cls.__mro__
        if base.__module__.partition(".")[0] != OURS
        for name, value in vars(base).items()
        if (code := getattr(inspect.unwrap(value), "__code__", None)) is not None
    }


def _codes_of(crit: Any) -> list[Any]:
    """The code of a loss that is a function, or made of one by `functools.partial`."""
    crit = original(crit)
    return [c for f in (crit, getattr(crit, "func", None)) if (c := getattr(f, "__code__", None))]
