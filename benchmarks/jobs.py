"""The jobs: data, net, loss and optimizer of each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

Arrays = tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]


@dataclass(frozen=True)
class Job:
    """Something to be timed; `kind` is train, bar (train with the bar), predict, script, import."""

    title: str
    net: Callable[[], nn.Module]
    rows: int
    shape: tuple[int, ...]
    bs: int = 64
    crit: Callable[[], nn.Module] = nn.NLLLoss
    optimizer: type[torch.optim.Optimizer] = torch.optim.Adam
    options: dict[str, float] = field(default_factory=dict)
    classes: int = 10
    uint8: bool = False
    kind: str = "train"

    @property
    def steps(self) -> int:
        return -(-self.rows // self.bs)

    def build(self, seed: int) -> tuple[nn.Module, nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(seed)
        net = self.net()
        make: Any = self.optimizer
        return net, self.crit(), make(net.parameters(), **self.options)

    def data(self) -> Arrays:
        """Rows to train on and a fifth as many to validate with, labelled by one layer.

        A net learns them, so that one that was fed wrongly shows; what is in them costs no time.
        """
        rng = np.random.default_rng(0)
        total = self.rows + max(self.rows // 5, 1)
        wide = int(np.prod(self.shape))
        x = rng.standard_normal((total, wide), dtype=np.float32)
        scores = x @ rng.standard_normal((wide, max(self.classes, 1)), dtype=np.float32)
        y = scores.argmax(1) if self.classes else (scores / wide**0.5).astype(np.float32)
        if self.uint8:
            x = (x * 40 + 128).clip(0, 255).astype(np.uint8)
        x = x.reshape(total, *self.shape)
        return x[: self.rows], y[: self.rows], x[self.rows :], y[self.rows :]


# ---- nets --------------------------------------------------------------------------------


def logreg() -> nn.Module:
    return nn.Sequential(nn.Linear(784, 10), nn.LogSoftmax(dim=1))


def mlp() -> nn.Module:
    layers = nn.Linear(784, 100), nn.ReLU(), nn.Linear(100, 100), nn.ReLU(), nn.Linear(100, 10)
    return nn.Sequential(*layers, nn.LogSoftmax(dim=1))


def convolutions(*sizes: int) -> Callable[[], nn.Module]:
    def net() -> nn.Module:
        parts: list[nn.Module] = []
        for a, b in pairwise(sizes):
            parts += [nn.Conv2d(a, b, 3, stride=2, padding=1), nn.BatchNorm2d(b), nn.ReLU()]
        head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(sizes[-1], 10)
        return nn.Sequential(*parts, *head, nn.LogSoftmax(dim=1))

    return net


class Recurrent(nn.Module):
    """Reads an image row by row."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(28, 64, batch_first=True)
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.gru(x)[0][:, -1]).log_softmax(1)
        return found


def narrow(outputs: int) -> Callable[[], nn.Module]:
    def net() -> nn.Module:
        layers = nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, outputs)
        return nn.Sequential(*layers, *([nn.LogSoftmax(dim=1)] if outputs > 1 else []))

    return net


# ---- jobs --------------------------------------------------------------------------------

MOMENTUM = {"lr": 0.01, "momentum": 0.9}
LOGREG: dict[str, Any] = {"net": logreg, "rows": 50_000, "shape": (784,)}
JOBS = {
    "logreg": Job("logistic regression, Adam, batches of 64", **LOGREG),
    "bar": Job("the same with the bar on a terminal", **LOGREG, kind="bar"),
    "mlp": Job(
        "three layers, SGD with momentum, batches of 64",
        mlp,
        50_000,
        (784,),
        optimizer=torch.optim.SGD,
        options=MOMENTUM,
    ),
    "cnn": Job(
        "three convolutions with BatchNorm, Adam, batches of 256",
        convolutions(1, 8, 16, 32),
        50_000,
        (1, 28, 28),
        bs=256,
    ),
    "tiny": Job("tiny batches: 16 numbers a row, batches of 4", narrow(10), 20_000, (16,), bs=4),
    "uint8": Job(
        "colour images of 64 by 64 in uint8, batches of 32",
        convolutions(3, 8, 16),
        3_000,
        (3, 64, 64),
        bs=32,
        uint8=True,
    ),
    "gru": Job("a GRU over 28 steps, batches of 64", Recurrent, 5_000, (28, 28)),
    "regression": Job(
        "regression, two layers, AdamW, batches of 32",
        narrow(1),
        50_000,
        (16,),
        bs=32,
        crit=nn.MSELoss,
        optimizer=torch.optim.AdamW,
        classes=0,
    ),
    "predict": Job(
        "predict 50,000 rows with the three layers", mlp, 250_000, (784,), kind="predict"
    ),
    "script": Job("a whole script: import, fit an epoch, predict", **LOGREG, kind="script"),
    "import": Job("the import, over that of torch", **LOGREG, kind="import"),
}
