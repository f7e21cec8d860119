"""The text of an error, and the notes that say where it was raised."""

from __future__ import annotations

from contextlib import suppress


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
