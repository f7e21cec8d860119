"""The table in a file."""

from __future__ import annotations

from pathlib import Path

from ..callback import Callback, Run
from ..history import History


class CSVLogger(Callback):
    """Writes the table to a CSV file after each epoch: the file is whole at any moment.

    Columns that a callback adds later are there too, so it stands behind those that add some.

    Args:
        path: The file; one that is there is replaced after the first epoch.

    Examples:
        >>> import tempfile
        >>> from minifast.testing import example_fit
        >>> path = Path(tempfile.mkdtemp()) / "log.csv"
        >>> history = example_fit([CSVLogger(path)], epochs=2)
        >>> print(path.read_text().splitlines()[0])
        epoch,trn_loss,val_loss,accuracy
    """

    first_process_only = True

    def __init__(self, path: str | Path) -> None:
        self.path = path

    def on_train_begin(self, run: Run) -> None:
        """Sees that the folder is there, before there is something to lose."""
        if not Path(self.path).parent.is_dir():
            raise FileNotFoundError(2, "the log's folder is not there", str(self.path))

    def on_epoch_end(self, run: Run) -> None:
        """Writes all rows so far."""
        History([*run.history, run.values]).to_csv(self.path)
