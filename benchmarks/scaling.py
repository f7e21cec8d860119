"""What a step costs several processes: its parts, measured on this machine.

    torchrun --nproc-per-node 2 -m benchmarks.scaling

prints the time of the sums that all processes take part in, by their size, of what `fit` agrees
upon at each step, and of whole steps. The page "Scaling" says what follows for more machines.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import torch
from torch import nn, optim

from minifast import ArrayLoader, ModelData, fit
from minifast.team import join

ROUNDS = 7


def each(what: Callable[[], object], times: int) -> float:
    """The median over rounds of the microseconds that one call takes."""
    found = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        for _ in range(times):
            what()
        found.append((time.perf_counter() - began) / times * 1e6)
    return median(found)


def step(net: nn.Module, rows: int, inputs: int) -> float:
    """Microseconds of a step of `fit`, `rows` in a batch of this process."""
    size = sum(p.numel() for p in net.parameters())
    steps = int(min(600, max(5, 2e9 // (size * rows))))  # a fit begins in milliseconds
    n = rows * steps * (1 if TEAM is None else TEAM.size)
    data = ModelData(".", ArrayLoader(torch.randn(n, inputs), torch.randint(10, (n,)), bs=rows))
    opt = optim.SGD(net.parameters(), 0.01)
    found = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        fit(net, data, 1, nn.CrossEntropyLoss(), opt, progress=False)
        found.append((time.perf_counter() - began) / steps * 1e6)
    return median(found)


def by_hand(net: nn.Module, rows: int, inputs: int) -> float:
    """The same by a loop written for torch's own wrapper, which agrees on nothing else."""
    size = sum(p.numel() for p in net.parameters())
    steps = int(min(600, max(5, 2e9 // (size * rows))))
    x, y = torch.randn(rows * steps, inputs), torch.randint(10, (rows * steps,))
    crit, opt = nn.CrossEntropyLoss(), optim.SGD(net.parameters(), 0.01)
    wrapped = net if TEAM is None else nn.parallel.DistributedDataParallel(net)
    found = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        for places in torch.arange(len(x)).split(rows):
            opt.zero_grad()
            crit(wrapped(x[places]), y[places]).backward()
            opt.step()
        found.append((time.perf_counter() - began) / steps * 1e6)
    return median(found)


def ddp(unused: bool) -> float:
    """Microseconds of a forward and backward pass of 784-10 in torch's own wrapper."""
    net = nn.Linear(784, 10)
    if unused:  # torch warns if there is none
        net.register_parameter("spare", nn.Parameter(torch.zeros(1)))
    wrapped = nn.parallel.DistributedDataParallel(net, find_unused_parameters=unused)
    return each(lambda: wrapped(DIGITS).sum().backward(), 100)


def nets() -> dict[str, tuple[nn.Module, int]]:
    """By name: a net, and its number of inputs."""
    return {
        "784-10": (nn.Linear(784, 10), 784),
        "784-100-100-10": (
            nn.Sequential(
                nn.Linear(784, 100), nn.ReLU(), nn.Linear(100, 100), nn.ReLU(), nn.Linear(100, 10)
            ),
            784,
        ),
        "784-2048-2048-10": (
            nn.Sequential(
                nn.Linear(784, 2048), nn.ReLU(), nn.Linear(2048, 2048), nn.ReLU(),
                nn.Linear(2048, 10),
            ),
            784,
        ),
    }  # fmt: skip


def main() -> None:
    """Measures and prints."""
    torch.set_num_threads(1)
    lines = []
    if TEAM is not None:
        for size in (1, 1000, 100_000, 1_000_000, 5_000_000):
            t = torch.zeros(size)
            cost = each(lambda t=t: TEAM.dist.all_reduce(t), 200 if size < 10**5 else 10)  # type: ignore[misc]
            lines.append(f"sum of {size:9,} floats {cost:10.0f} us")
        agreeing = each(lambda: (TEAM.total(1.0), TEAM.total(0.0)), 200)
        lines.append(f"agreed on at each step  {agreeing:10.0f} us")
        for unused in (False, True):
            what = "looking for unused parameters" if unused else "alone"
            lines.append(f"torch's DDP of 784-10, {what}: {ddp(unused):.0f} us")
    processes = 1 if TEAM is None else TEAM.size
    for name, (net, inputs) in nets().items():
        parameters = sum(p.numel() for p in net.parameters())
        for rows in (64, 1024):
            ours, hand = (way(net, rows // processes, inputs) for way in (step, by_hand))
            what = f"{name} ({parameters:,} parameters), {rows} rows by {processes}"
            lines.append(f"step of {what}: {ours:.0f} us; by hand {hand:.0f} us")
    if TEAM is None or TEAM.rank == 0:
        print("\n".join(lines))


TEAM = join()
DIGITS = torch.randn(32, 784)

if __name__ == "__main__":
    main()
