"""The text of an error, and the notes that say where it was raised."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import FrozenInstanceError
from typing import Any


class MissingKeyError(KeyError):
    """A `KeyError` that prints its text as lines; a plain one prints its repr, with `\\n` in it."""

    def __str__(self) -> str:
        return str(self.args[0])


def add_note(error: BaseException, note: str) -> None:
    """Adds a note to an error; one that takes no notes, such as a frozen dataclass, stays as it is.

    Examples:
        >>> error = ValueError("wrong")
        >>> add_note(error, "raised by the metric f1")
        >>> error.__notes__
        ['raised by the metric f1']
    """
    with suppress(Exception):
        error.add_note(note)


class NotesBatch:
    """Adds a note to an error with the epoch and the batch of a fit at which it was raised."""

    def __init__(self, run: Any) -> None:
        self.run = run

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        _note_batch(error, self.run)


def _note_batch(error: BaseException | None, run: Any) -> None:
    if not isinstance(error, Exception):
        return  # Ctrl-C, exit
    notes = [str(note) for note in getattr(error, "__notes__", [])]
    if any(note.startswith("raised by validation") for note in notes):
        add_note(error, f"in epoch {run.epoch} (from 0)")
    elif run.batches is None or any(note.startswith("raised by") for note in notes):
        return
    elif run.x is None and run.values.get("epoch") == run.epoch:
        add_note(error, f"raised at the end of epoch {run.epoch} (from 0)")
    else:
        drawing = run.x is None
        batch = run.step - run.epoch_start if drawing else run.batch
        where = f"batch {batch} of epoch {run.epoch} (both from 0)"
        add_note(error, f"raised by {'trn_dl, for' if drawing else 'training:'} {where}")


class AsRaised:
    """Raises a callback's or loader's error as it was raised, also where Python replaces it.

    `contextlib` makes a RuntimeError of a StopIteration, and cannot pass on an error that takes no
    attributes, such as a frozen dataclass.

    Examples:
        >>> import contextlib
        >>> @contextlib.contextmanager
        ... def manager():
        ...     raise StopIteration("as it is")
        ...     yield
        >>> with AsRaised(), manager():
        ...     pass
        Traceback (most recent call last):
        StopIteration: as it is
    """

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        found = error
        while isinstance(found, FrozenInstanceError):
            found = found.__context__
        if isinstance(found, RuntimeError) and isinstance(found.__cause__, StopIteration):
            found = found.__cause__
        if found is not None and found is not error:
            raise found


def explain(problem: str, *, got: object, wanted: str, fix: str, entry: str) -> str:
    """The text of an error: what is wrong, what came, what was wanted, how to mend it.

    `entry` is the entry's anchor on the docs page "Errors and fixes".

    Examples:
        >>> print(explain("epochs is negative", got=-1, wanted="a whole number, 0 or more",
        ...               fix="fit(net, md, epochs=1, ...)", entry="epochs"))
        epochs is negative
          got:    -1
          wanted: a whole number, 0 or more
          fix:    fit(net, md, epochs=1, ...)
          more:   errors-and-fixes#epochs
    """
    return (
        f"{problem}\n  got:    {got}\n  wanted: {wanted}\n  fix:    {fix}\n"
        f"  more:   errors-and-fixes#{entry}"
    )
