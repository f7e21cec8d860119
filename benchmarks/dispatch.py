"""What a step of `fit` spends on events: python benchmarks/dispatch.py

Four events a step are fired, as a step does, and an empty loop is taken off. The rows take turns
within one run; the figure is the median of the rounds.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

from minifast.callback import Callback, Events, Run

STEPS, ROUNDS = 100_000, 9


class Deaf(Callback):
    """Hears nothing."""


class Hears(Callback):
    """Hears two events of a step."""

    def on_batch_begin(self, run: Run) -> None: ...
    def on_batch_end(self, run: Run) -> None: ...


def a_step(events: Events, run: Any) -> None:
    events.on_batch_begin(run)
    events.on_backward_begin(run)
    events.on_backward_end(run)
    events.on_batch_end(run)


def nothing(events: Events, run: Any) -> None:
    pass


def microseconds(call: Callable[[Events, Any], None], events: Events, run: Any) -> float:
    start = time.perf_counter()
    for _ in range(STEPS):
        call(events, run)
    return (time.perf_counter() - start) / STEPS * 1e6


def main() -> None:
    none: Any = None
    run = Run(none, none, none, none, (), 1, (), none)
    kinds: dict[str, list[Callback]] = {
        "no callback": [],
        "ten that hear nothing": [Deaf() for _ in range(10)],
        "one that hears two events": [Hears()],
        "ten that hear two events": [Hears() for _ in range(10)],
    }
    taken: dict[str, list[float]] = {name: [] for name in kinds}
    for _ in range(ROUNDS):
        for name, callbacks in kinds.items():
            events = Events(callbacks)
            spent = microseconds(a_step, events, run) - microseconds(nothing, events, run)
            taken[name].append(spent)
    for name, values in taken.items():
        spread = f"{min(values):.3f} to {max(values):.3f}"
        print(f"{name:26} {statistics.median(values):6.3f} µs a step  ({spread})")


if __name__ == "__main__":
    main()
