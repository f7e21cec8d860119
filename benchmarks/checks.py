"""What the look at the first batch costs a fit: python -m benchmarks.checks

A fit of one batch with the checks and without them, in turns; the figure is the difference.
"""

import statistics
import time

import torch
from torch import nn, optim

from minifast import ArrayLoader, ModelData, accuracy, fit

ROUNDS = 200


def deep() -> nn.Module:
    layers = [
        part for _ in range(50) for part in (nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU())
    ]
    return nn.Sequential(nn.Linear(784, 64), *layers, nn.Linear(64, 10), nn.LogSoftmax(dim=1))


NETS = {
    "logistic regression": lambda: nn.Sequential(nn.Linear(784, 10), nn.LogSoftmax(dim=1)),
    "fifty layers with BatchNorm": deep,
}


def main() -> None:
    for name, make in NETS.items():
        net = make()
        opt = optim.SGD(net.parameters(), lr=1e-6)
        md = ModelData(".", ArrayLoader(torch.randn(64, 784), torch.arange(64) % 10))
        taken: dict[str, list[float]] = {"on": [], "off": []}
        for _ in range(ROUNDS):
            for how, times in taken.items():
                start = time.perf_counter()
                fit(net, md, 1, nn.NLLLoss(), opt, [accuracy], progress=False, checks=how)
                times.append(time.perf_counter() - start)
        on, off = (statistics.median(times) * 1e3 for times in taken.values())
        print(f"{name:28} {on - off:.2f} ms a fit (of {on:.2f} ms for a fit of one batch)")


if __name__ == "__main__":
    main()
