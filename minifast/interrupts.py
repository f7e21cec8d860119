"""Ctrl-C and SIGTERM end a fit as an error does, or after the batch under way."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from .callback import Run

NOTICE = b"\nminifast: ends after this batch, or this validation; once more ends at once\n"


@contextmanager
def interrupts(run: Run) -> Iterator[None]:
    """Turns SIGTERM into `SystemExit(143)`, and lets a batch be finished where `run` asks for it.

    Asked for by `run.ends_whole`, the first signal is a request to pause, and is raised at the end
    of the fit; a second one is raised at once. So `on_train_end` runs in either case, and to its
    own end unless a second signal comes. Handlers that the program has set are left alone, and so
    is a fit outside the main thread, where Python allows none.
    """
    asked: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        if asked or not run.ends_whole:
            raise _ending(number)
        asked.append(number)
        run.pause(signal.Signals(number).name)
        if sys.stderr is not None and sys.stderr.isatty():
            os.write(sys.stderr.fileno(), NOTICE)  # print is not allowed to be called by a signal

    defaults = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    ours = {}
    if threading.current_thread() is threading.main_thread():
        ours = {n: d for n, d in defaults.items() if signal.getsignal(n) is d}
    try:
        for number in ours:
            signal.signal(number, handle)
        yield
    finally:
        for number, default in ours.items():
            signal.signal(number, default)
    if asked:
        raise _ending(asked[0])


def _ending(number: int) -> BaseException:
    return KeyboardInterrupt() if number == signal.SIGINT else SystemExit(128 + number)
