"""The text of an error."""

from __future__ import annotations


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
