"""Ctrl-C and SIGTERM end a fit as an error does, or after the batch in progress."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from .callback import Run

NOTICE = b"\nminifast: ends after this batch, or this validation; once more ends at once\n"


class _Fit:
    """A fit that is running in the main thread, and the signal that waits for its end."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.signal: int | None = None


_fits: list[_Fit] = []  # a callback may fit another net: the innermost is the last


@contextmanager
def interrupts(run: Run) -> Iterator[None]:
    """Turns SIGTERM into `SystemExit(143)`, and lets a batch be finished if `run` asks for it.

    If it does, by `run.ends_whole`, the first signal pauses the run, and the fits inside it, and is
    raised at its end; a second one is raised at once. So `on_train_end` always runs, and is not
    interrupted unless a second signal comes. Handlers that the program has set are left alone, and
    so is a fit outside the main thread, where Python allows none. asyncio's handler is not the
    program's: it waits for the event loop, which a fit does not return to.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    fit = _Fit(run)
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    ours = {number: handler for number, handler in before.items() if _is_replaced(handler)}
    for outer in _fits:
        if outer.signal is not None:
            run.pause(signal.Signals(outer.signal).name)
    _fits.append(fit)
    try:
        for number in ours:
            signal.signal(number, _handle)
        yield
    finally:
        _fits.remove(fit)
        for number, handler in ours.items():
            signal.signal(number, handler)
    if fit.signal is not None:
        raise _error(fit.signal)


def _handle(number: int, frame: FrameType | None) -> None:
    inner = _fits
    while inner and not inner[0].run.ends_whole:
        inner = inner[1:]
    if not inner or inner[0].signal is not None:
        raise _error(number)
    inner[0].signal = number
    for fit in inner:
        fit.run.pause(signal.Signals(number).name)
    if sys.stderr is not None and sys.stderr.isatty():
        os.write(sys.stderr.fileno(), NOTICE)  # a signal handler must not call print


def _is_replaced(handler: Any) -> bool:
    of_asyncio = isinstance(
        getattr(getattr(handler, "func", None), "__self__", None), asyncio.Runner
    )
    return handler in (signal.default_int_handler, signal.SIG_DFL) or of_asyncio


def _error(number: int) -> BaseException:
    return KeyboardInterrupt() if number == signal.SIGINT else SystemExit(128 + number)
