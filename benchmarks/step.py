"""What `fit` costs over hand-written loops: python benchmarks/step.py [--rounds 15]

Three jobs on the package's own digits, each by four ways that take turns in random order within one
process: the hand-written floor (no DataLoader, nothing shown), the loop of PyTorch's tutorial (a
DataLoader), `fit` as it comes, and `fit` with `Fast`. A way's ratio is to the floor of the same
round; the table has the median and the middle half. Nothing else should run meanwhile.
"""

import argparse
import random
import statistics
import time
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn, optim
from torch.utils.data import DataLoader, TensorDataset

from minifast import ImageClassifierData, accuracy, fit
from minifast.io import load_mnist_sample
from minifast.plugins import Fast

Way = Callable[[], object]
READ = 2000  # rows at once where no gradient is kept


def logreg() -> tuple[nn.Module, optim.Optimizer, int, tuple[int, ...]]:
    net = nn.Sequential(nn.Linear(784, 10), nn.LogSoftmax(dim=1))
    return net, optim.Adam(net.parameters()), 64, (784,)


def mlp() -> tuple[nn.Module, optim.Optimizer, int, tuple[int, ...]]:
    layers = nn.Linear(784, 100), nn.ReLU(), nn.Linear(100, 100), nn.ReLU(), nn.Linear(100, 10)
    net = nn.Sequential(*layers, nn.LogSoftmax(dim=1))
    return net, optim.SGD(net.parameters(), lr=0.1, momentum=0.9), 64, (784,)


def cnn() -> tuple[nn.Module, optim.Optimizer, int, tuple[int, ...]]:
    parts: list[nn.Module] = []
    for a, b in (1, 8), (8, 16), (16, 32):
        parts += [nn.Conv2d(a, b, 3, stride=2, padding=1), nn.BatchNorm2d(b), nn.ReLU()]
    head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10), nn.LogSoftmax(dim=1)
    net = nn.Sequential(*parts, *head)
    return net, optim.Adam(net.parameters()), 256, (1, 28, 28)


JOBS = {"logistic regression": logreg, "three layers": mlp, "convolutions": cnn}


CRIT = nn.NLLLoss()
Data = tuple[Tensor, Tensor, Tensor, Tensor]
Made = tuple[nn.Module, optim.Optimizer, int, tuple[int, ...]]


@torch.no_grad()
def evaluate(net: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> tuple[float, float]:
    net.eval()
    loss, right, rows = torch.zeros(()), torch.zeros(()), 0
    for xb, yb in batches:
        preds = net(xb)
        loss += CRIT(preds, yb) * len(yb)
        right += (preds.argmax(1) == yb).sum()
        rows += len(yb)
    return loss.item() / rows, right.item() / rows


def floor(made: Made, data: Data) -> Way:
    (net, opt, bs, _), (x, y, x_valid, y_valid) = made, data

    def epoch() -> None:
        net.train()
        for rows in torch.randperm(len(x)).split(bs):
            CRIT(net(x.index_select(0, rows)), y.index_select(0, rows)).backward()
            opt.step()
            opt.zero_grad()
        evaluate(net, zip(x_valid.split(READ), y_valid.split(READ), strict=True))

    return epoch


def tutorial(made: Made, data: Data) -> Way:
    (net, opt, bs, _), (x, y, x_valid, y_valid) = made, data
    trn = DataLoader(TensorDataset(x, y), bs, shuffle=True)
    val = DataLoader(TensorDataset(x_valid, y_valid), bs)

    def epoch() -> None:
        net.train()
        for xb, yb in trn:
            loss = CRIT(net(xb), yb)
            opt.zero_grad()
            loss.backward()
            opt.step()
        evaluate(net, val)

    return epoch


def by_fit(made: Made, data: Data, stepper: Fast | None = None) -> Way:
    (net, opt, bs, _), (x, y, x_valid, y_valid) = made, data
    md = ImageClassifierData.from_arrays(".", (x, y), (x_valid, y_valid), bs=bs)
    return lambda: fit(net, md, 1, CRIT, opt, [accuracy], progress=False, stepper=stepper)


def by_fast(made: Made, data: Data) -> Way:
    return by_fit(made, data, Fast())


WAYS = {"floor": floor, "tutorial": tutorial, "fit": by_fit, "fit, Fast": by_fast}


def ways(job: Callable[[], Made], data: Data) -> dict[str, Way]:
    found = {}
    for name, way in WAYS.items():
        torch.manual_seed(0)
        found[name] = way(job(), data)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    (x, y), (x_valid, y_valid), _ = load_mnist_sample()
    mean, std = x.mean(), x.std()
    arrays = (x - mean) / std, y, (x_valid - mean) / std, y_valid
    print("| job | way | µs a step | to the floor | middle half |\n|---|---|---:|---:|---|")
    for job, make in JOBS.items():
        _, _, bs, shape = make()
        xt, yt, xv, yv = (torch.from_numpy(a) for a in arrays)
        epochs = ways(make, (xt.reshape(-1, *shape), yt, xv.reshape(-1, *shape), yv))
        taken: dict[str, list[float]] = {name: [] for name in epochs}
        for _ in range(rounds + 1):
            for name in random.sample(list(epochs), len(epochs)):
                start = time.perf_counter()
                epochs[name]()
                taken[name].append(time.perf_counter() - start)
        for name, times in taken.items():
            pairs = zip(times[1:], taken["floor"][1:], strict=True)  # the first round warms up
            ratios = [ours / of_floor for ours, of_floor in pairs]
            low, middle, high = statistics.quantiles(ratios, n=4)
            step = statistics.median(times[1:]) / -(-len(x) // bs) * 1e6
            spread = f"{low:.2f} to {high:.2f}"
            print(f"| {job} | {name} | {step:.0f} | {middle:.2f} | {spread} |")


if __name__ == "__main__":
    main()
