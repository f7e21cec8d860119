"""How cost grows with rows, batch, parameters and callbacks: the floor and `fit` take turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import nn

from minifast import ArrayLoader, Callback, ModelData, fit
from minifast.plugins import Fast

Way = Callable[[], object]
Curve = dict[str, list[tuple[float, float]]]
ROUNDS = 5


class Listens(Callback):
    """Hears two events of a step and does nothing."""

    def on_batch_begin(self, run: Any) -> None: ...
    def on_batch_end(self, run: Any) -> None: ...


def ways(rows: int, wide: int, bs: int, hidden: int, callbacks: int) -> dict[str, Way]:
    """An epoch by each way, without validation."""
    x, y = torch.randn(rows, wide), torch.randint(10, (rows,))
    crit = nn.CrossEntropyLoss()

    def made() -> tuple[nn.Module, torch.optim.Optimizer]:
        sizes = [wide, hidden, 10] if hidden else [wide, 10]
        layers = [m for a, b in pairwise(sizes) for m in (nn.Linear(a, b), nn.ReLU())]
        net = nn.Sequential(*layers[:-1])
        return net, torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)

    def floor() -> Way:
        net, opt = made()

        def epoch() -> None:
            for at in torch.randperm(rows).split(bs):
                crit(net(x.index_select(0, at)), y.index_select(0, at)).backward()
                opt.step()
                opt.zero_grad()

        return epoch

    def ours(stepper: Callable[[], Any]) -> Way:
        net, opt = made()
        md = ModelData(".", ArrayLoader(x, y, bs=bs, shuffle=True))
        listeners = [Listens() for _ in range(callbacks)]
        how = stepper()
        return lambda: fit(net, md, 1, crit, opt, callbacks=listeners, progress=False, stepper=how)

    return {"floor": floor(), "fit": ours(lambda: None), "fit, Fast": ours(Fast)}


def sweep(values: Sequence[int], unit: Callable[[int], float], **what: Any) -> Curve:
    """For each value the median microseconds of a unit (a row or a step), by way."""
    curve: Curve = {}
    (changes,) = [name for name, given in what.items() if given is None]
    for value in values:
        settings = what | {changes: value}
        epochs = ways(**settings)
        taken: dict[str, list[float]] = {name: [] for name in epochs}
        for number in range(ROUNDS + 1):
            for name, epoch in list(epochs.items())[:: 1 if number % 2 else -1]:
                start = time.perf_counter()
                epoch()
                taken[name].append(time.perf_counter() - start)
        for name, times in taken.items():
            microseconds = statistics.median(times[1:]) / unit(value) * 1e6  # the first warms up
            curve.setdefault(name, []).append((value, microseconds))
        print(changes, value, {n: round(p[-1][1], 2) for n, p in curve.items()}, flush=True)
    return curve


def parameters(hidden: int) -> int:
    return 65 * hidden + 11 * hidden + 10 if hidden else 650


def measure() -> dict[str, tuple[str, str, Curve]]:
    """By title: the x axis, the y axis, the curve."""
    steps = 300
    by_parameters = sweep(
        [0, 13, 130, 1_300, 13_000, 130_000],
        lambda _: steps,
        rows=steps * 64,
        wide=64,
        bs=64,
        hidden=None,
        callbacks=0,
    )
    for name, points in by_parameters.items():
        by_parameters[name] = [(parameters(int(value)), took) for value, took in points]
    return {
        "rows": (
            "rows",
            "µs a row",
            sweep(
                [10_000, 31_600, 100_000, 316_000, 1_000_000],
                float,
                rows=None,
                wide=64,
                bs=64,
                hidden=32,
                callbacks=0,
            ),
        ),
        "batch": (
            "rows in a batch",
            "µs a step",
            sweep(
                [16, 64, 256, 1024, 4096],
                lambda bs: -(-50_000 // bs),
                rows=50_000,
                wide=64,
                bs=None,
                hidden=32,
                callbacks=0,
            ),
        ),
        "parameters": ("parameters", "µs a step", by_parameters),
        "callbacks": (
            "callbacks that hear two events of a step",
            "µs a step",
            sweep(
                [0, 1, 5, 10, 20],
                lambda _: 50_000 / 64,
                rows=50_000,
                wide=64,
                bs=64,
                hidden=32,
                callbacks=None,
            ),
        ),
    }


def picture(curves: dict[str, tuple[str, str, Curve]], file: Path) -> None:
    """A panel for each of the four."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    from .report import STYLE

    figure, axes = plt.subplots(2, 2, figsize=(8, 6), layout="constrained")
    for panel, (across, up, curve) in zip(axes.flat, curves.values(), strict=True):
        for name, points in curve.items():
            colour, mark = STYLE[name]
            line = "--" if name == "floor" else "-"
            mark = "" if name == "floor" else mark
            panel.plot(*zip(*points, strict=True), line, marker=mark, color=colour, label=name)
        if across.startswith("callbacks"):
            panel.set_ylim(0, None)
        else:
            panel.set_xscale("log")
        if up == "µs a step" and not across.startswith("callbacks"):
            panel.set_yscale("log")
        else:
            panel.set_ylim(0, None)
        panel.set(xlabel=across, ylabel=up)
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(color="0.9")
    axes[0, 0].legend(frameon=False)
    figure.savefig(file, dpi=130)
    plt.close(figure)


def table(curves: dict[str, tuple[str, str, Curve]]) -> str:
    """`fit` over the floor at each point."""
    lines = ["| what grows | at | fit to the floor | Fast to the floor |", "|---|---:|---:|---:|"]
    for across, _, curve in curves.values():
        for (at, floor), (_, ours), (_, fast) in zip(*curve.values(), strict=True):
            lines.append(f"| {across} | {at:,.0f} | {ours / floor:.2f} | {fast / floor:.2f} |")
    return "\n".join(lines)
