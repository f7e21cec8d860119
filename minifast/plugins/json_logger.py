"""The table as lines of JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import IO

from ..callback import Callback, Run
from ..history import History


class JSONLogger(Callback):
    """Appends a line of JSON after each epoch: the row, then one with the reason of a stop.

    A pause is not a stop: the resumed run appends its rows to the same file. Numbers that JSON
    does not know (nan, inf) are written as the strings `"nan"`, `"inf"`.

    Args:
        path: The file; lines are added to one that is there.

    Examples:
        >>> import tempfile
        >>> from minifast.testing import example_fit
        >>> path = Path(tempfile.mkdtemp()) / "log.jsonl"
        >>> history = example_fit([JSONLogger(path)], epochs=2)
        >>> [json.loads(line)["epoch"] for line in path.read_text().splitlines()]
        [0, 1]
    """

    first_process_only = True

    def __init__(self, path: str | Path) -> None:
        self.path = path
        self._file: IO[str] | None = None

    def on_train_begin(self, run: Run) -> None:
        """Opens the file."""
        self._file = None
        self._file = Path(self.path).open("a", encoding="utf-8")  # noqa: SIM115

    def on_epoch_end(self, run: Run) -> None:
        """Writes the epoch's line."""
        if self._file is not None:
            _write(self._file, History([run.values])[0])

    def on_train_end(self, run: Run) -> None:
        """Closes the file."""
        if self._file is None:
            return
        with self._file as file:
            self._file = None
            if run.stopped and not run.paused:
                _write(file, {"stopped": run.stopped})


def _write(file: IO[str], row: dict[str, object]) -> None:
    file.write(json.dumps({k: _json(v) for k, v in row.items()}) + "\n")
    file.flush()


def _json(value: object) -> object:
    finite = not isinstance(value, float) or abs(value) < float("inf")
    return value if finite else str(value)
