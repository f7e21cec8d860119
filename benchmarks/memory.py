"""Rows in memory beside rows on a disk: speed, peak memory, and how both go with the rows.

    python -m benchmarks.memory --folder DIR

writes files of uint8 rows (784 bytes each, 20 GB at most; `--rows` for fewer) into DIR, trains
784-100-10 on each with 64 rows in a batch, a process for each figure, turn by turn, and prints
medians. Files that fit the system's cache are read once beforehand.

    python -m benchmarks.memory --folder DIR --beside

trains on 1 GB in memory, 1 GB in a file and the largest file turn by turn in one process, and
prints medians of what the files take beside the memory; for a noisy machine.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import nn, optim

from minifast import ImageClassifierData, fit, iter_predict

COLUMNS, ROUNDS, STEPS = 784, 3, 4000
CACHED = 5_000_000  # rows: some 4 GB
BESIDE, BESIDE_ROWS = 25, 1_300_000  # rounds; rows: 1 GB


def arguments() -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("build/memory"))
    parser.add_argument("--rows", type=int, default=26_000_000, help="of the largest file")
    parser.add_argument("--beside", action="store_true", help="turn by turn in one process")
    parser.add_argument("--one", nargs=2, metavar=("ROWS", "WHERE"), help=argparse.SUPPRESS)
    return parser.parse_args()


def written(folder: Path, n: int) -> None:
    """The files of n rows and their labels, made if they are not there."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"x{n}.npy"
    if not path.exists():
        np.save(folder / f"y{n}.npy", np.resize(np.arange(10, dtype=np.uint8), n))
        part = np.random.default_rng(0).integers(0, 256, (10_000, COLUMNS), dtype=np.uint8)
        x = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=(n, COLUMNS))
        for begin in range(0, n, len(part)):
            x[begin : begin + len(part)] = part[: n - begin]
        x.flush()


def scale(xb: torch.Tensor) -> torch.Tensor:
    """What every batch goes through."""
    return xb / 255 - 0.5


def training(pair: Any) -> tuple[Callable[[int], float], int]:
    """Gives the microseconds that so many steps on the rows take; and the steps of an epoch."""
    data = ImageClassifierData.from_arrays(".", pair, None, tfms=(scale, scale))
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(COLUMNS, 100), nn.ReLU(), nn.Linear(100, 10))
    opt = optim.SGD(net.parameters(), 0.01)

    def steps(count: int) -> float:
        began = time.perf_counter()
        fit(net, data, 1, nn.CrossEntropyLoss(), opt, steps=count, progress=False)
        return (time.perf_counter() - began) * 1e6

    steps(50)
    return steps, len(data.trn_dl)


def beside(folder: Path, sizes: list[int]) -> None:
    """The same steps on rows in memory and in files, turn by turn."""
    kinds = [(sizes[0], "memory"), *((n, "file") for n in sizes)]
    ways = [training(rows(folder, *kind))[0] for kind in kinds]
    found = [[(way(1500) - way(500)) / 1000 for way in ways] for _ in range(BESIDE)]
    for i, (n, where) in enumerate(kinds):
        step, ratio = median(f[i] for f in found), median(f[i] / f[0] for f in found)
        print(f"{n:10,}  {where:6}  {step:8.1f} us a step, {ratio:.2f} of the memory's")


def rows(folder: Path, n: int, where: str) -> Any:
    """n rows and their labels."""
    x, y = (np.load(folder / f"{name}{n}.npy", mmap_mode="r") for name in "xy")
    return (np.array(x), np.array(y)) if where == "memory" else (x, y)


def one(folder: Path, n: int, where: str) -> dict[str, float]:
    """A fit and some predictions on n rows in `memory` or in a `file`."""
    pair = rows(folder, n, where)
    began = time.perf_counter()
    md = ImageClassifierData.from_arrays(folder, pair, pair, tfms=(scale, scale))
    made = time.perf_counter() - began
    steps, epoch = training(pair)
    found = a_step(steps, epoch)
    net = nn.Sequential(nn.Linear(COLUMNS, 100), nn.ReLU(), nn.Linear(100, 10))
    began = time.perf_counter()
    predicted = sum(len(preds) for preds in islice(iter_predict(net, md.val_dl), 100))
    return {
        "made": made * 1e3,
        "step": found,
        "row": (time.perf_counter() - began) / predicted * 1e6,
        "peak": peak(),
    }


def a_step(steps: Callable[[int], float], epoch: int) -> float:
    """Microseconds of a step, with its part of what the epoch's beginning takes."""
    if epoch <= STEPS:
        return median(steps(epoch) for _ in range(STEPS // epoch)) / epoch
    some, twice = steps(STEPS), steps(2 * STEPS)
    each = (twice - some) / STEPS
    return each + max(some - STEPS * each, 0) / epoch


def peak() -> float:
    """The most memory that this program had, in MB."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage counts the program from which this one was started, too
        (line,) = [each for each in status.read_text().splitlines() if each.startswith("VmHWM")]
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measured(folder: Path, n: int, where: str) -> dict[str, float]:
    """`one`, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.memory", "--folder", str(folder)]
    done = subprocess.run(
        [*command, "--one", str(n), where], check=True, capture_output=True, text=True
    )
    found: dict[str, float] = json.loads(done.stdout)
    return found


def main() -> None:
    """Measures and prints."""
    args = arguments()
    if args.one:
        print(json.dumps(one(args.folder, int(args.one[0]), args.one[1])))
        return
    if args.beside:
        for n in (BESIDE_ROWS, args.rows):
            written(args.folder, n)
        beside(args.folder, [BESIDE_ROWS, args.rows])
        return
    sizes = [n for n in (50_000, 500_000, 1_300_000, CACHED, args.rows) if n <= args.rows]
    kinds = [(n, where) for n in sizes for where in ("memory", "file")]
    kinds = [(n, where) for n, where in kinds if where == "file" or n <= CACHED]
    for n in sizes:
        written(args.folder, n)
    found: dict[tuple[int, str], list[dict[str, float]]] = {kind: [] for kind in kinds}
    for _ in range(ROUNDS):
        for kind in kinds:
            found[kind].append(measured(args.folder, *kind))
    print("      rows  where   a step, us  predicting a row, us  from_arrays, ms  peak, MB")
    for (n, where), rounds in found.items():
        step, row, made, peak = (
            median(each[name] for each in rounds) for name in ("step", "row", "made", "peak")
        )
        print(f"{n:10,}  {where:6}  {step:10.1f}  {row:20.2f}  {made:15.2f}  {peak:8.0f}")


if __name__ == "__main__":
    main()
