"""Stop when the time is up."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from contextlib import suppress

from ..callback import Callback, Run
from ..core import explain

SECONDS = {"s": 1.0, "sec": 1.0, "min": 60.0, "h": 3600.0}


class TimeLimit(Callback):
    """Stops after the batch in which the time is up; resumed from a checkpoint, it goes on.

    Args:
        limit: Seconds, or a text such as `"90s"`, `"10min"`, `"1h30min"`.
        clock: What tells the time, in seconds.

    Raises:
        ValueError: if the limit is not a time above 0.

    Examples:
        >>> from minifast.testing import example_fit
        >>> ticks = iter(range(100))
        >>> example_fit([TimeLimit("3s", clock=lambda: next(ticks))]).stopped
        'the time limit of 3s is up'
    """

    def __init__(self, limit: float | str, clock: Callable[[], float] = time.monotonic) -> None:
        self.limit, self.clock = limit, clock
        self.seconds = seconds(limit)
        self.end = float("inf")

    def __repr__(self) -> str:
        return f"TimeLimit(limit={self.limit!r})"

    def on_train_begin(self, run: Run) -> None:
        """Starts the clock."""
        self.end = self.clock() + self.seconds

    def on_batch_end(self, run: Run) -> None:
        """Asks to stop, if it is time."""
        if self.clock() >= self.end:
            run.pause(f"the time limit of {self.limit} is up")


def seconds(limit: float | str, name: str = "limit", fix: str = "TimeLimit('10min')") -> float:
    """The seconds of a time; errors call it `name`.

    Examples:
        >>> seconds("1h30min"), seconds("90s"), seconds(2.5)
        (5400.0, 90.0, 2.5)
    """
    total = 0.0
    if isinstance(limit, str):
        part = r"(\d+(?:\.\d*)?|\.\d+)\s*(min|sec|s|h)\s*"
        if re.fullmatch(f"({part})+", limit.strip()):
            total = sum(float(n) * SECONDS[unit] for n, unit in re.findall(part, limit))
    else:
        with suppress(TypeError, ValueError):  # neither a number nor a text
            total = float(limit)
    if total > 0:
        return total
    raise ValueError(
        explain(
            f"{name} must be a time, got {limit!r}",
            got=repr(limit),
            wanted="seconds above 0, or a text such as '90s', '10min', '1h30min'",
            fix=fix,
            entry="times",
        )
    )
