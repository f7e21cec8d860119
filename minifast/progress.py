"""What `fit` shows while it runs: a table with a row an epoch, and one bar."""

from __future__ import annotations

import importlib.util
import sys
import time
from typing import Any

from .callback import Callback, Run
from .core import in_notebook
from .history import Table

__all__ = ["Progress"]


class Progress(Callback):
    """Prints the table of `fit` on stdout and shows one bar for the whole fit.

    The bar is a terminal's or a notebook's; where the output is a file or a pipe there are only
    the rows, one whole line each. It is redrawn ten times a second, and only then is the running
    loss read.
    """

    first_process_only = True
    INTERVAL = 0.1  # seconds between two drawings
    bar: Any = None

    def on_train_begin(self, run: Run) -> None:
        """Shows the bar."""
        self.names: list[str] = []
        total = None if run.n_batches is None else run.n_batches * run.epochs
        self.bar = progress_bar(total=total, unit="batch")
        self.next_time = 0.0
        if run.kept:
            self._print(run.kept)

    def on_batch_end(self, run: Run) -> None:
        """Redraws the bar, if it is time."""
        now = time.monotonic()
        if self.bar is not None and now >= self.next_time:
            self.next_time = now + self.INTERVAL
            self._draw(run, f"loss {run.running_loss.value():.4f}")

    def on_validate_begin(self, run: Run) -> None:
        """Says that the epoch's batches are done."""
        if self.bar is not None:
            self._draw(run, "validating")

    def on_epoch_end(self, run: Run) -> None:
        """Prints the epoch's row."""
        if list(run.values) != self.names:  # the first row, or a callback has added a column
            self.names = list(run.values)
            self._print(Table(self.names).header())
        self._print(Table(self.names).line(run.values))

    def on_train_end(self, run: Run) -> None:
        """Takes the bar away."""
        if self.bar is not None:
            self.bar.close()

    def _draw(self, run: Run, state: str) -> None:
        self.bar.n = run.step
        self.bar.set_description(f"epoch {run.epoch + 1}/{run.epochs}", refresh=False)
        self.bar.set_postfix_str(state)

    def _print(self, line: str) -> None:
        encoding = getattr(sys.stdout, "encoding", None) or "utf-8"  # a console may lack a letter
        line = line.encode(encoding, "replace").decode(encoding)
        if self.bar is None:
            print(line, flush=True)
        else:
            type(self.bar).write(line, file=sys.stdout)  # above the bar


def progress_bar(**options: Any) -> Any:
    """A tqdm bar that leaves nothing behind; None where nobody looks (a log file, a pipe).

    Examples:
        >>> bar = progress_bar(total=10)
        >>> if bar is not None:
        ...     bar.close()
    """
    notebook = in_notebook()
    if not notebook and not (sys.stderr is not None and sys.stderr.isatty()):
        return None
    base: Any = importlib.import_module("tqdm.notebook" if notebook and has_widgets() else "tqdm")

    class Bar(base.tqdm):  # type: ignore[misc]
        monitor_interval = 0  # no thread of tqdm's that outlives us

    # In a notebook stderr is a red box.
    return Bar(leave=False, file=sys.stdout if notebook else sys.stderr, **options)


def has_widgets() -> bool:
    """Whether a notebook can show a bar that is more than text."""
    return importlib.util.find_spec("ipywidgets") is not None
