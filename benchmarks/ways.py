"""The ways to do a job: the hand-written floor, the tutorial's loop, `fit`, `fit` with `Fast`.

A way is given a job, its arrays and a seed, and has `epoch()`, which trains and validates once
and gives the validation loss, and `predict(x)`. What stands outside `epoch` is not timed.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from .jobs import Arrays, Job

READ = 2000  # rows at once where no gradient is kept


class Way:
    """What all ways have in common."""

    package: ClassVar[str] = "torch"

    def __init__(self, job: Job, arrays: Arrays, seed: int) -> None:
        self.job = job
        self.net, self.crit, self.opt = job.build(seed)
        self.prepare(*arrays)

    def prepare(self, *arrays: NDArray[Any]) -> None:
        raise NotImplementedError

    def epoch(self) -> float:
        raise NotImplementedError

    def predict(self, x: NDArray[Any]) -> NDArray[Any]:
        self.net.eval()
        with torch.no_grad():
            parts = torch.from_numpy(x).split(READ)
            found: NDArray[Any] = torch.cat([self.net(as_input(xb)) for xb in parts]).numpy()
        return found


def as_input(x: Tensor) -> Tensor:
    return x if x.is_floating_point() else x.float()


@torch.no_grad()
def evaluate(
    net: nn.Module, crit: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]
) -> tuple[float, float]:
    net.eval()
    loss, right, rows = torch.zeros(()), torch.zeros(()), 0
    for xb, yb in batches:
        preds = net(as_input(xb))
        loss += crit(preds, yb) * len(yb)
        if not yb.is_floating_point():
            right += (preds.argmax(1) == yb).sum()
        rows += len(yb)
    return loss.item() / rows, right.item() / rows


class Floor(Way):
    """A hand-written loop without a `DataLoader`, which shows nothing."""

    def prepare(self, *arrays: NDArray[Any]) -> None:
        self.x, self.y, self.x_valid, self.y_valid = map(torch.from_numpy, arrays)

    def epoch(self) -> float:
        net, crit, opt, x, y = self.net, self.crit, self.opt, self.x, self.y
        net.train()
        for rows in torch.randperm(len(x)).split(self.job.bs):
            xb = x.index_select(0, rows)
            crit(
                net(xb if xb.is_floating_point() else xb.float()), y.index_select(0, rows)
            ).backward()
            opt.step()
            opt.zero_grad()
        pairs = zip(self.x_valid.split(READ), self.y_valid.split(READ), strict=True)
        return evaluate(net, crit, pairs)[0]


class Tutorial(Way):
    """The loop of PyTorch's tutorial: a `DataLoader` over a `TensorDataset`."""

    def prepare(self, *arrays: NDArray[Any]) -> None:
        x, y, x_valid, y_valid = map(torch.from_numpy, arrays)
        self.trn = DataLoader(TensorDataset(x, y), self.job.bs, shuffle=True)
        self.val = DataLoader(TensorDataset(x_valid, y_valid), self.job.bs)

    def epoch(self) -> float:
        self.net.train()
        for xb, yb in self.trn:
            loss = self.crit(self.net(as_input(xb)), yb)
            self.opt.zero_grad()
            loss.backward()
            self.opt.step()
        return evaluate(self.net, self.crit, self.val)[0]

    def predict(self, x: NDArray[Any]) -> NDArray[Any]:
        self.net.eval()
        rows = DataLoader(TensorDataset(torch.from_numpy(x)), self.job.bs)
        with torch.no_grad():
            found: NDArray[Any] = torch.cat([self.net(as_input(xb)) for (xb,) in rows]).numpy()
        return found


class Fit(Way):
    """`minifast.fit`, with table, bar, metrics and history."""

    package = "minifast"

    def prepare(self, *arrays: NDArray[Any]) -> None:
        from minifast import ImageClassifierData, accuracy

        x, y, x_valid, y_valid = arrays
        trn, val, bs = (x, y), (x_valid, y_valid), self.job.bs
        self.md = ImageClassifierData.from_arrays(
            ".", trn, val, bs, continuous=not self.job.classes
        )
        self.metrics = [accuracy] if self.job.classes else []
        self.stepper: Any = None

    def epoch(self) -> float:
        from minifast import fit

        shown = self.job.kind == "bar"
        what = self.net, self.md, 1, self.crit, self.opt, self.metrics
        return float(fit(*what, progress=shown, stepper=self.stepper)[-1]["val_loss"])

    def predict(self, x: NDArray[Any]) -> NDArray[Any]:
        from minifast import ArrayLoader, predict

        found: NDArray[Any] = predict(self.net, ArrayLoader(x, np.zeros(len(x)), bs=self.job.bs))
        return found


class FitFast(Fit):
    """The same with the stepper `Fast`."""

    def prepare(self, *arrays: NDArray[Any]) -> None:
        super().prepare(*arrays)
        from minifast.plugins import Fast

        self.stepper = Fast()


OURS: dict[str, type[Way]] = {
    "floor": Floor,
    "tutorial": Tutorial,
    "fit": Fit,
    "fit, Fast": FitFast,
}
