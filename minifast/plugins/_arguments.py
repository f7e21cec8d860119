"""What callbacks check of the numbers that they are made with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..core import explain


def number(
    name: str, value: Any, holds: Callable[[float], bool], wanted: str, *, fix: str, entry: str
) -> Any:
    """The value as it is, if it is a number for which `holds` is true.

    Raises:
        TypeError: if it is not a number.
        ValueError: if `holds` is false, as it is for nan wherever it compares.

    Examples:
        >>> number("eps", 0.1, lambda v: 0 <= v < 1, "0 or more", fix="eps=0.1", entry="mixing")
        0.1
    """
    kind: type[Exception] = ValueError
    try:
        if isinstance(value, str | bool):
            raise TypeError
        if holds(float(value)):
            return value
    except (TypeError, ValueError, RuntimeError):  # RuntimeError: a tensor of several numbers
        kind = TypeError
    problem = f"{name} must be {wanted}, got {value!r:.60}"
    raise kind(explain(problem, got=f"{value!r:.60}", wanted=wanted, fix=fix, entry=entry))
