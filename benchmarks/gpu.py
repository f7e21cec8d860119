"""Steps on a GPU: `fit` beside hand-written loops, with the rows there and with rows sent there.

    python -m benchmarks.gpu

trains nets on uniform random rows, the ways turn by turn in one process, and prints the median
microseconds of a step and the ratio to the first way, a plain loop over rows on the GPU.
`--device cpu` tries the program where there is none.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor, nn, optim
from torch.utils.data import DataLoader, TensorDataset

from minifast import ImageClassifierData, devices, fit
from minifast.plugins import CudaGraph

ROWS, ROUNDS = 60_000, 7
Way = Callable[[nn.Module, optim.Optimizer], None]


def nets() -> dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]]:
    """Each net's maker, the shape of a row and the rows of a batch."""
    convolutions = lambda: nn.Sequential(  # noqa: E731 - beside the others
        *(nn.Conv2d(1, 16, 3, 2), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 32, 3, 2)),
        *(nn.BatchNorm2d(32), nn.ReLU(), nn.Flatten(), nn.Linear(32 * 36, 10)),
    )
    return {
        "784-10": (lambda: nn.Linear(784, 10), (784,), 64),
        "784-100-10": (
            lambda: nn.Sequential(nn.Linear(784, 100), nn.ReLU(), nn.Linear(100, 10)),
            (784,),
            64,
        ),
        "two convolutions": (convolutions, (1, 28, 28), 256),
    }


def ways(x: Tensor, y: Tensor, bs: int, device: torch.device) -> dict[str, Way]:
    """One epoch over the rows, in each way."""
    md = ImageClassifierData.from_arrays(".", (x, y), None, bs=bs)
    crit = nn.CrossEntropyLoss()

    def plain(net: nn.Module, opt: optim.Optimizer) -> None:
        there, labels = x.to(device), y.to(device)
        for rows in torch.randperm(len(x)).to(device).split(bs):
            loss = crit(net(there[rows]), labels[rows])
            opt.zero_grad()
            loss.backward()
            opt.step()

    def loader(net: nn.Module, opt: optim.Optimizer) -> None:
        pinned = device.type == "cuda"
        for xb, yb in DataLoader(TensorDataset(x, y), bs, shuffle=True, pin_memory=pinned):
            loss = crit(net(xb.to(device, non_blocking=True)), yb.to(device, non_blocking=True))
            opt.zero_grad()
            loss.backward()
            opt.step()

    def kept(net: nn.Module, opt: optim.Optimizer) -> None:
        fit(net, md, 1, crit, opt, progress=False)

    def sent(net: nn.Module, opt: optim.Optimizer) -> None:
        share, devices.SHARE = devices.SHARE, 0.0
        fit(net, md, 1, crit, opt, progress=False)
        devices.SHARE = share

    def recorded(net: nn.Module, opt: optim.Optimizer) -> None:
        fit(net, md, 1, crit, opt, progress=False, stepper=CudaGraph())

    return {
        "plain loop, rows on the GPU": plain,
        "plain loop, DataLoader": loader,
        "fit, rows kept": kept,
        "fit, rows sent": sent,
        "fit, CudaGraph": recorded,
    }


def main() -> None:
    """Prints a table a net."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    asked = parser.parse_args()
    device = torch.device(asked.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        sys.exit("needs an NVIDIA GPU; --device cpu tries the program without one")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    print(f"{name}, torch {torch.__version__}, {asked.rounds} rounds of {asked.rows:,} rows")
    for title, (make, shape, bs) in nets().items():
        x, y = torch.rand(asked.rows, *shape), torch.randint(10, (asked.rows,))
        all_ways = ways(x, y, bs, device)
        times: dict[str, list[float]] = {way: [] for way in all_ways}
        for turn in range(asked.rounds + 1):
            for way, run in all_ways.items():
                net = make().to(device)
                opt = optim.Adam(net.parameters(), fused=True)
                start = time.perf_counter()
                run(net, opt)
                next(net.parameters()).sum().item()  # waits for the GPU
                if turn:  # the first warms up
                    steps = -(-asked.rows // bs)
                    times[way].append((time.perf_counter() - start) / steps * 1e6)
        print(f"\n{title}, {bs} rows in a batch")
        first = times["plain loop, rows on the GPU"]
        for way, found in times.items():
            ratio = median(a / b for a, b in zip(found, first, strict=True))
            print(f"  {way:30} {median(found):8.0f} µs a step  {ratio:5.2f}")


if __name__ == "__main__":
    main()
