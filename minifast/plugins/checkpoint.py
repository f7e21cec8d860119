"""Nothing lost: the whole run in a file, as it trains."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path

from ..callback import Callback, Run
from ..checkpoint import state_of
from ..core import whole_number
from ..storage import write_state
from .time_limit import seconds


class Checkpoint(Callback):
    """Writes the run to a file, so that `fit(..., resume=path)` goes on to the same end.

    After a kill, in a new process, weights, history and random generators end as those of the
    unbroken run, to the bit (on the CPU). The file is there whole or not at all, with its checksum
    in it; the one before stays beside it as `path.1`. With it in the list, Ctrl-C and SIGTERM wait
    until the batch (or the validation) under way is done, and the run is written once more; a
    second Ctrl-C does not wait. Nothing is written when a run breaks off with an error, or whose
    loss is no number any more.

    Args:
        path: The file. Its folder must be there.
        every: `"epoch"`, a number of batches, or a time such as `"10min"`.
        keep: How many generations stay, the newest included.
        clock: What tells the time, in seconds.

    Raises:
        FileNotFoundError: at the beginning, if the folder is not there.
        IsADirectoryError: at the beginning, if the path itself is a folder.
        CheckpointError: if the first file of the fit, which is read back, cannot be read.
        OSError: if the file cannot be written; the last one stands, and the run's state is whole.

    Examples:
        >>> import tempfile
        >>> from minifast.testing import example_fit
        >>> path = Path(tempfile.mkdtemp()) / "run.ckpt"
        >>> history = example_fit([Checkpoint(path)], epochs=2)
        >>> longer = example_fit([Checkpoint(path)], epochs=3, resume=path)
        >>> longer["val_loss"] == example_fit([], epochs=3)["val_loss"]
        True
    """

    def __init__(
        self,
        path: str | Path,
        every: str | int = "epoch",
        keep: int = 2,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.path, self.every, self.clock = Path(path), every, clock
        fix = "Checkpoint(path, every='epoch', keep=2)"
        self.keep = whole_number("keep", keep, 1, fix=fix, entry="checkpoints")
        self.batches, self.seconds = 0, math.inf
        if isinstance(every, str) and every != "epoch":
            self.seconds = seconds(every, "every", fix)
        elif every != "epoch":
            self.batches = whole_number("every", every, 1, fix=fix, entry="checkpoints")

    def __repr__(self) -> str:
        return f"Checkpoint({str(self.path)!r}, every={self.every!r}, keep={self.keep})"

    def on_train_begin(self, run: Run) -> None:
        """Sees that the folder is there, and asks for whole batches at an interrupt."""
        if not self.path.parent.is_dir():
            raise FileNotFoundError(2, "the checkpoint's folder is not there", str(self.path))
        if self.path.is_dir():
            raise IsADirectoryError(21, "the checkpoint's path is a folder", str(self.path))
        run.ends_whole = True
        run.at_end.append(self._write)
        self.written: object = None
        self.next_time = self.clock() + self.seconds

    def on_batch_end(self, run: Run) -> None:
        """Writes, if it is time."""
        if (self.batches and run.step % self.batches == 0) or self._late(run):
            run.after(self._write)

    def _late(self, run: Run) -> bool:
        if math.isinf(self.seconds):
            return False
        late = self.clock() >= self.next_time
        # Clocks differ, and a net that lies in parts is put together by all at the same batch.
        return late if run.team is None else run.team.total(late)[0] > 0

    def on_epoch_end(self, run: Run) -> None:
        """Writes, if it does so each epoch."""
        if self.every == "epoch":
            run.after(self._write)

    def _write(self, run: Run) -> None:
        place = run.step, run.values.get("epoch")
        # A loss that is nan is harmless where no label of the batch counted.
        whole = math.isfinite(run.running_loss.last) or not run.running_loss.is_bad()
        if whole and place != self.written:
            state = state_of(run)
            if run.rank == 0:
                # Once in a fit: to find at the end that no file can be read would be too late.
                write_state(self.path, state, self.keep, read_back=self.written is None)
            self.written = place
        self.next_time = self.clock() + self.seconds
