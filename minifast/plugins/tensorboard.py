"""Curves for TensorBoard."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..callback import Callback, Run


class TensorBoard(Callback):
    """Writes the table's columns for TensorBoard, after each epoch, and the smoothed loss between.

    Needs the extra: `pip install "minifast[tensorboard]"`.

    Args:
        path: The folder of the event files.
        every: Batches between two values of the smoothed loss.

    Raises:
        ModuleNotFoundError: when training begins, if tensorboard is not installed.

    Examples:
        >>> import tempfile
        >>> from minifast.testing import example_fit
        >>> folder = Path(tempfile.mkdtemp())
        >>> history = example_fit([TensorBoard(folder)])
        >>> [path.name.partition(".")[0] for path in folder.iterdir()]
        ['events']
    """

    first_process_only = True

    def __init__(self, path: str | Path, every: int = 50) -> None:
        self.path, self.every = path, every
        self._writer: Any = None

    def on_train_begin(self, run: Run) -> None:
        """Opens the event file."""
        self._writer = None
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ModuleNotFoundError as error:
            error.add_note('install it: pip install "minifast[tensorboard]"')
            raise
        self._writer = SummaryWriter(str(self.path))

    def on_batch_end(self, run: Run) -> None:
        """Writes the smoothed loss, now and then."""
        if run.step % self.every == 0:
            self._writer.add_scalar("batch/trn_loss", run.running_loss.value(), run.step)

    def on_epoch_end(self, run: Run) -> None:
        """Writes the epoch's row."""
        for name, value in run.values.items():
            if name != "epoch":
                self._writer.add_scalar(f"epoch/{name}", float(value), run.epoch)

    def on_train_end(self, run: Run) -> None:
        """Closes the file."""
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()
