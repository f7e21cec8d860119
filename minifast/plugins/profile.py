"""Where the time goes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ..callback import Callback, Run
from ..core import explain


class Profile(Callback):
    """Records some batches with `torch.profiler`: a table, and a trace for Perfetto or Chrome.

    PyTorch has one profiler at a time, so there is one `Profile` in a list.

    Args:
        path: The trace, a `.json` file; None for the table alone.
        skip: Batches before it begins: the first ones are slower.
        batches: How many it records.

    Raises:
        RuntimeError: when training begins, if a profiler is running already.

    Attributes:
        table: Where the time went, as text; empty until the batches are recorded.

    Examples:
        >>> from minifast.testing import example_fit
        >>> profile = Profile(skip=1, batches=2)
        >>> history = example_fit([profile])
        >>> "aten::addmm" in profile.table
        True
    """

    first_process_only = True
    conflicts_with = ("Profile",)

    def __init__(self, path: str | Path | None = None, skip: int = 3, batches: int = 5) -> None:
        self.path, self.skip, self.batches = path, skip, batches
        self.table = ""
        self._profiler: Any = None

    def on_train_begin(self, run: Run) -> None:
        """Forgets an earlier fit."""
        self.table, self._profiler = "", None
        # A private name of torch: two profilers at a time crash the process.
        if getattr(torch.autograd, "_profiler_enabled", bool)():
            raise RuntimeError(
                explain(
                    "Profile cannot record: a PyTorch profiler is running already",
                    got="a profiler around fit",
                    wanted="one profiler at a time",
                    fix="leave Profile out, or call fit outside of the other profiler",
                    entry="conflicting-callbacks",
                )
            )

    def on_batch_begin(self, run: Run) -> None:
        """Begins to record, if it is time."""
        if run.step == self.skip:
            self._profiler = torch.profiler.profile(acc_events=True)  # one cycle, whole
            self._profiler.start()

    def on_batch_end(self, run: Run) -> None:
        """Ends the recording, if it is time."""
        if run.step == self.skip + self.batches:
            self._finish()

    def on_train_end(self, run: Run) -> None:
        """Ends the recording, if training was shorter."""
        self._finish()

    def _finish(self) -> None:
        if self._profiler is None:
            return
        profiler, self._profiler = self._profiler, None
        profiler.stop()
        self.table = profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=25)
        if self.path is not None:
            profiler.export_chrome_trace(str(self.path))
