"""What the tests of several processes run in each of them: `python team_job.py NAME FOLDER BS`."""

import contextlib
import copy
import io
import itertools
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn, optim
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import minifast
import minifast.prediction
from minifast import ImageClassifierData, ModelData, Run, accuracy, fit, predict
from minifast.metrics import whole_epoch
from minifast.plugins import (
    EMA,
    SWA,
    Checkpoint,
    CSVLogger,
    EarlyStopping,
    Freeze,
    GradAccumulation,
    GradClip,
    GradientStats,
    MixUp,
    OneCycle,
    SaveBest,
)
from minifast.stepper import Stepper
from minifast.team import join

RANK, SIZE = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
ROWS, VALID = 203, 57  # no multiple of anything: last batches are short, some parts are empty


def arrays() -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(1)
    centres = rng.normal(size=(3, 6)) * 2
    y = rng.integers(0, 3, ROWS + VALID)
    x = (centres[y] + rng.normal(size=(len(y), 6))).astype(np.float32)
    return x[:ROWS], y[:ROWS], x[ROWS:], y[ROWS:]


def a_net(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


class WithSpare(nn.Module):
    """A net of which a part is never used, and one only by batches whose first row says so."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.spare, self.rare = inner, nn.Linear(2, 2), nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Whether `rare` is used differs from process to process."""
        preds: torch.Tensor = self.inner(x)
        odd = x[:, :1] > 2
        return torch.where(odd, self.rare(preds), preds) if odd.any() else preds


class Seen(minifast.Callback):
    """Which rows were learned from: their first number tells."""

    def __init__(self) -> None:
        self.rows: dict[int, list[float]] = {}

    def on_batch_begin(self, run: Run) -> None:
        mine = run.team.rows[0] if run.team is not None else len(run.y)
        x = run.x[0] if isinstance(run.x, tuple) else run.x
        self.rows.setdefault(run.epoch, []).extend(x.flatten(1)[:mine, 0].tolist())


class Tempered(nn.Module):
    """A loss with a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.t = nn.Parameter(torch.tensor(1.0 + RANK))

    def forward(self, preds: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(preds * self.t, y)


class Named(nn.Module):
    """A net whose batches have names beside the numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = a_net(7 + RANK)

    def forward(self, x: torch.Tensor, names: list[str]) -> torch.Tensor:
        assert [float(name) for name in names] == x[:, 0].tolist()
        preds: torch.Tensor = self.inner(x)
        return preds


class Pooled(nn.Module):
    """A net of rows that are as long as the longest of their batch."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = a_net(7 + RANK)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        preds: torch.Tensor = self.inner(x.sum(1))
        return preds


def named(rows: list[Any]) -> Any:
    x, y = torch.utils.data.default_collate(rows)
    return x, [str(float(row[0][0])) for row in rows], y


def padded(rows: list[Any]) -> Any:
    """Rows of lengths that differ, filled up to the longest."""
    y = torch.stack([label for _, label in rows])
    parts = [each.expand(1 + int(label), 6) for each, label in rows]
    return torch.nn.utils.rnn.pad_sequence(parts, batch_first=True), y


class Augmented(TensorDataset):
    """Rows that are drawn anew whenever they are read, from all generators."""

    def __getitem__(self, i: Any) -> Any:
        x, y = super().__getitem__(i)
        return x + 0.1 * torch.randn(6) + 0.1 * np.random.normal() + 0.1 * random.random(), y


def data(kind: str, folder: Path, bs: int) -> Any:
    x, y, x_valid, y_valid = arrays()
    if kind in ("ignored", "both"):
        y = np.where(np.arange(len(y)) % 4 == 1, -100, y)
    if kind == "half":  # of each batch, and so all that one of two processes has
        y = np.where(np.arange(len(y)) // 8 % 2 == 0, -100, y)
        trn, val = (minifast.ArrayLoader(*a, bs=bs) for a in ((x, y), (x_valid, y_valid)))
        return ModelData(folder, trn, val)
    if kind in ("loader", "named", "padded", "augmented"):
        trn, val = (
            TensorDataset(torch.from_numpy(a), torch.from_numpy(b))
            for a, b in ((x, y), (x_valid, y_valid))
        )
        if kind == "augmented":
            trn = Augmented(*trn.tensors)
        collate: Any = {"named": named, "padded": padded}.get(kind)
        return ModelData(
            folder,
            DataLoader(trn, bs, shuffle=True, collate_fn=collate),
            DataLoader(val, bs, shuffle=kind == "loader", collate_fn=collate),
        )
    if kind == "map":
        if RANK == 0:
            np.save(folder / "x.npy", x)
        team = join()
        if team is not None:
            team.total(0.0)
        x = np.load(folder / "x.npy", mmap_mode="r")
    return ImageClassifierData.from_arrays(folder, (x, y), (x_valid, y_valid), bs=bs)


def net_of(kind: str) -> Any:
    """Each process its own: the first one's are all's. Parts of a sharded net are put together."""
    net = a_net(7 if kind == "sharded" else 7 + RANK)
    if kind == "spare":
        return WithSpare(net)
    if kind == "sharded":
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        join()
        mesh = init_device_mesh("cpu", (SIZE,))
        for part in (net[0], net[2], net):
            fully_shard(part, mesh=mesh)
    return {"named": Named, "padded": Pooled}.get(kind, lambda: net)()


def unlike(preds: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """A mean over rows, of which minifast knows only for some batches that it is one."""
    if y[0] == 0:
        return nn.functional.cross_entropy(preds, y)
    return -preds.log_softmax(1)[torch.arange(len(y)), y].sum() / len(y)


class Unlike(nn.Module):
    """`unlike` as a module."""

    def forward(self, preds: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return unlike(preds, y)


class Partial(nn.Module):
    """A sum over rows, by a function."""

    def forward(self, preds: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(preds, y, reduction="sum")


LOSSES: dict[str, Callable[[], Any]] = {
    "partial": Partial,
    "both": lambda: nn.CrossEntropyLoss(weight=torch.tensor([0.2, 1.0, 3.0])),
    "summed": lambda: nn.CrossEntropyLoss(reduction="sum"),
    "unlike": Unlike,
    "weighted": lambda: nn.CrossEntropyLoss(weight=torch.tensor([0.2, 1.0, 3.0])),
    "tempered": Tempered,
}


def job(
    folder: Path,
    bs: int,
    kind: str = "arrays",
    callbacks: Any = (),
    epochs: int = 3,
    **options: Any,
) -> dict[str, Any]:
    """A fit and its predictions."""
    torch.manual_seed(3), np.random.seed(3), random.seed(3)
    md, net = data(kind, folder, bs), net_of(kind)
    crit = LOSSES.get(kind, nn.CrossEntropyLoss)()
    opt = optim.Adam([*net.parameters(), *crit.parameters()], 0.01)
    seen = Seen()
    history = fit(
        net, md, epochs, crit, opt, [accuracy, whole_epoch(macro_f1)],
        [seen, *callbacks], **options,
    )  # fmt: skip
    if RANK:  # the first process writes, and nobody else
        minifast.prediction.whole_file = nobody_writes
    valid = data("arrays" if kind == "loader" else kind, folder, bs).val_dl  # in their order
    out = predict(net, valid, out=folder / "preds.npy")
    whole = [t.full_tensor() if hasattr(t, "full_tensor") else t for t in net.parameters()]
    return {
        "weights": torch.cat([t.detach().flatten() for t in [*whole, *crit.parameters()]]),
        "preds": predict(net, valid),
        "out": np.array(out),
        "history": [list(row.values()) for row in history],
        "stopped": history.stopped,
        "rows": list(seen.rows.values()),
        "forward": type(net).__name__,
        "hooks": len(net._forward_hooks),
    }


class Growing(minifast.Callback):
    """Begins with few rows and adds some each epoch, as `docs/write-a-callback.md` does."""

    def on_train_begin(self, run: Run) -> None:
        self.whole = run.data

    def on_epoch_begin(self, run: Run) -> None:
        n = 50 * (run.epoch + 1)
        x, y = (a[:n] for a in self.whole.trn_dl.arrays)
        loader = minifast.ArrayLoader(x, y, bs=self.whole.trn_dl.bs, shuffle=True)
        run.data = ModelData(self.whole.path, loader, self.whole.val_dl)
        assert run.n_batches == -(-n // (loader.bs * SIZE))

    def on_batch_end(self, run: Run) -> None:
        """The loaders are the user's: they give all rows, in each process."""
        rows = [y for _, y in run.data.val_dl.in_order(10)]
        assert torch.equal(torch.cat(rows), self.whole.val_dl.arrays[1])
        assert len(run.data.val_dl) == -(-VALID // run.data.val_dl.bs)


class GrowingLoader(minifast.Callback):
    """`Growing` with a loader of PyTorch, of rows drawn at random."""

    def on_epoch_begin(self, run: Run) -> None:
        x, y, *_ = (torch.from_numpy(a) for a in arrays())
        rows = torch.randperm(ROWS)[: 40 * (run.epoch + 1)]
        whole = 16 // SIZE
        loader = DataLoader(TensorDataset(x[rows], y[rows]), whole, shuffle=True)
        run.data = ModelData(run.data.path, loader, run.data.val_dl)
        assert run.n_batches == -(-len(rows) // 16)


class Nested(minifast.Callback):
    """Trains another net within a step, on batches of another size."""

    def on_batch_begin(self, run: Run) -> None:
        if run.batch in (3, 12):  # the last one is short
            x, y, *_ = arrays()
            with torch.random.fork_rng():  # each process draws in on_batch_begin for itself
                net = nn.Linear(6, 3)
            md = ModelData(".", minifast.ArrayLoader(x[:8], y[:8], bs=8 // SIZE, shuffle=True))
            opt = optim.SGD(net.parameters(), 0.1)
            fit(net, md, 1, nn.CrossEntropyLoss(), opt, progress=False)


class Noise(minifast.Callback):
    """Draws what changes gradients and weights: it must be the same in all processes."""

    def on_backward_end(self, run: Run) -> None:
        for p in run.net.parameters():
            p.grad += 0.01 * torch.randn(p.shape) + 0.01 * random.random()

    def on_batch_end(self, run: Run) -> None:
        with torch.no_grad():
            for p in run.net.parameters():
                p += 0.01 * np.random.rand()


class Evals(minifast.Callback):
    """A net that learns in eval mode, as one whose BatchNorm is frozen."""

    def on_epoch_begin(self, run: Run) -> None:
        run.net.eval()


class Looks(minifast.Callback):
    """Looks at the net where nobody does."""

    def on_batch_begin(self, run: Run) -> None:
        if run.step % 3 == 0:
            minifast.validate(run.net, run.data.val_dl, run.crit)
            next(minifast.iter_predict(run.net, run.data.val_dl))


class Copies(minifast.Callback):
    """Copies the net, and pulls it to where it was in the beginning."""

    def on_train_begin(self, run: Run) -> None:
        self.start = [p.detach().clone() for p in run.net.parameters()]

    def on_backward_begin(self, run: Run) -> None:
        pairs = zip(run.net.parameters(), self.start, strict=True)
        run.loss = run.loss + 0.1 * sum(((p - s) ** 2).sum() for p, s in pairs)

    def on_epoch_end(self, run: Run) -> None:
        torch.save(run.net, io.BytesIO())
        copied = copy.deepcopy(run.net)
        assert np.array_equal(predict(copied, run.data.val_dl), predict(run.net, run.data.val_dl))
        self.copied = copied


class Counts(minifast.Callback):
    """Lives in the first process alone, and has something to go on with."""

    first_process_only = True

    def on_train_begin(self, run: Run) -> None:
        assert RANK == 0
        self.batches = 0

    def on_batch_end(self, run: Run) -> None:
        self.batches += 1

    def state_dict(self) -> dict[str, Any]:
        return {"batches": self.batches}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.batches = state["batches"]


class Drawing(nn.Module):
    """A net with dropout and BatchNorm that notes what each batch draws."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.BatchNorm1d(6), nn.Dropout(0.3), a_net(7 + RANK))
        self.drawn: list[tuple[float, ...]] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            mask = nn.functional.dropout(torch.ones(64), 0.5)
            self.drawn.append((hash(tuple(mask.tolist())), np.random.rand(), random.random()))
        preds: torch.Tensor = self.inner(x)
        return preds


class Changes:
    """An augmentation by the loader."""

    def __init__(self) -> None:
        self.drawn: list[float] = []

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        noise = torch.randn(x.shape)
        self.drawn.append(float(noise[0, 0]))
        return x + 0.1 * noise


def draws(folder: Path, bs: int) -> dict[str, Any]:
    """What is drawn in two fits after each other; and by runs that are broken off and resumed."""
    x, y, x_valid, y_valid = arrays()

    def fitted(kind: str, fits: int = 1, stop: int = 0, **options: Any) -> dict[str, Any]:
        seed = 99 if "resume" in options else 3 + RANK
        torch.manual_seed(seed), np.random.seed(seed), random.seed(seed)
        join().fits = 0  # type: ignore[union-attr]  # as in a new process
        net, seen, tfm = Drawing(), Seen(), Changes()
        rows = TensorDataset(torch.from_numpy(x), torch.from_numpy(y))
        trn: Any = {
            "arrays": lambda: minifast.ArrayLoader(x, y, bs=bs, shuffle=True, tfm=tfm),
            "loader": lambda: DataLoader(Augmented(*rows.tensors), bs, shuffle=True),
            "list": lambda: list(DataLoader(rows, bs)),  # draws nothing
        }[kind]()
        opt = optim.Adam(net.parameters(), 0.01)
        md = ModelData(folder, trn, minifast.ArrayLoader(x_valid, y_valid, bs=bs))
        stops = [StopsInOne(stop, True)] if stop else []
        # Accumulation asks for the next batch, which a loader that augments draws then.
        watches = [seen, MixUp(), *stops]
        if kind != "loader":
            watches.insert(2, GradAccumulation(2))
        if stop or options:
            watches.append(Checkpoint(folder / f"{kind}.ckpt"))
        drawn = []
        for _ in range(fits):
            net.drawn = []
            fit(
                net, md, 2, nn.CrossEntropyLoss(), opt, callbacks=watches, progress=False, **options
            )
            drawn.append(net.drawn)
        state = torch.cat([t.double().flatten() for t in net.state_dict().values()])
        after = torch.rand(1), np.random.rand(), random.random()
        return {"drawn": drawn, "state": state, "rows": seen.rows, "tfm": tfm.drawn, "after": after}

    found = {kind: fitted(kind, fits=2) for kind in ("arrays", "loader", "list")}
    for kind in ("arrays", "loader", "list"):
        whole = fitted(kind)
        for stop in (5, 13):  # within the first epoch, and at its end
            fitted(kind, stop=stop)
            rest = fitted(kind, resume=folder / f"{kind}.ckpt")
            assert torch.equal(rest["state"], whole["state"]), (kind, stop)
            assert rest["drawn"][0] == whole["drawn"][0][stop:]
            if RANK == 0:
                (folder / f"{kind}.ckpt").unlink()
    return found


def structures(folder: Path, bs: int) -> dict[str, Any]:
    """Targets that are no tensor: a loss over all rows, and weights."""
    x, y, *_ = (torch.from_numpy(a) for a in arrays())

    def dicts(rows: list[Any]) -> Any:
        x, y = torch.utils.data.default_collate(rows)
        return {"x": x}, {"label": y, "twice": 2 * y}

    def lists(rows: list[Any]) -> Any:  # as of boxes: a tensor of another length for each row
        x, y = torch.utils.data.default_collate(rows)
        return x, [torch.full((1 + int(label), 2), float(label)) for label in y]

    def of_dicts(preds: Any, y: Any) -> Any:
        return nn.functional.cross_entropy(preds, y["label"]) + 0.1 * preds.square().mean()

    def of_lists(preds: Any, y: Any) -> Any:
        return torch.stack(
            [(p[:2] - t).square().mean() for p, t in zip(preds, y, strict=True)]
        ).mean()

    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = a_net(7)

        def forward(self, x: torch.Tensor) -> Any:
            return self.inner(x)

    found = {}
    for name, collate, crit in (("dicts", dicts, of_dicts), ("lists", lists, of_lists)):
        torch.manual_seed(3)
        net = Named()
        loader = DataLoader(TensorDataset(x, y), bs, shuffle=True, collate_fn=collate)
        opt = optim.Adam(net.parameters(), 0.01)
        fit(net, ModelData(folder, loader), 2, crit, opt, progress=False)
        loss = minifast.validate(net, loader, crit)["val_loss"]
        weights = torch.cat([p.detach().flatten() for p in net.parameters()])
        found[name] = {"weights": weights, "loss": loss}
    return found


def raised(call: Callable[[], Any]) -> str:
    """The error that a call ends with."""
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def one_fails(folder: Path, bs: int, how: str) -> dict[str, Any]:
    """A program that makes its group itself, and what it can do after errors in one process."""
    dist = torch.distributed
    if how == "own":
        dist.init_process_group("gloo")
    x, y, *_ = arrays()
    net, crit = a_net(7), nn.CrossEntropyLoss()
    loader = minifast.ArrayLoader(x, y, bs=bs)
    md, opt = ModelData(".", loader), optim.SGD(net.parameters(), 0.1)
    small = minifast.ArrayLoader(x, y, bs=bs, tfm=lambda x: x)  # taken batch by batch

    def takes(n: int, error: bool) -> int:
        taken = 0
        for _ in minifast.iter_predict(net, small):
            taken += 1
            if taken == n and error:
                raise ValueError("enough")
            if taken == n:
                break
        return taken

    found: dict[str, Any] = {"together": takes(2, error=False)}
    found["alone"] = raised(lambda: takes(2 if RANK else 100, error=RANK == 1))
    epochs: Any = "three" if RANK else 1
    found["fit"] = raised(lambda: fit(net, md, epochs, crit, opt, progress=False))
    found["both"] = raised(lambda: fit(net, md, 1, "no loss", opt))  # type: ignore[arg-type]
    metrics: Any = 3 if RANK else ()
    found["validate"] = raised(lambda: minifast.validate(net, loader, crit, metrics))
    found["predict"] = raised(lambda: predict(net, loader, out=None if RANK else torch.zeros(3)))
    found["after"] = job(folder, bs)  # all are still connected
    with contextlib.suppress(AttributeError):
        del dist.distributed_c10d._get_default_store  # as if torch had another name for it
    fails = FailsInOne("batch_end", 1, 3, kill=False)
    found["error"] = raised(lambda: fit(net, md, 1, crit, opt, callbacks=[fails], progress=False))
    found["later"] = raised(lambda: predict(net, loader))
    if how == "own":
        t = torch.ones(1)
        dist.all_reduce(t)
        found["sum"] = float(t)
        dist.destroy_process_group()
    return found


def nobody_writes(path: Path) -> Any:
    raise AssertionError(f"another process than the first writes {path}")


def macro_f1(preds: torch.Tensor, targs: torch.Tensor) -> float:
    """No mean over rows: it needs them all."""
    found = preds.argmax(1)
    scores = []
    for c in range(3):
        right = ((found == c) & (targs == c)).sum()
        scores.append(float(2 * right / ((found == c).sum() + (targs == c).sum())))
    return sum(scores) / 3


class StopsInOne(minifast.Callback):
    """Asks for a stop in the last process alone."""

    def __init__(self, step: int, pause: bool = False) -> None:
        self.step, self.pause = step, pause

    def on_batch_end(self, run: Run) -> None:
        if RANK == SIZE - 1 and run.step == self.step:
            (run.pause if self.pause else run.stop)(f"process {RANK} has enough")


class FailsInOne(minifast.Callback):
    """Fails, or is killed, in one process at one event."""

    def __init__(self, event: str, rank: int, step: int, kill: bool) -> None:
        self.event, self.rank, self.step, self.kill = event, rank, step, kill

    def maybe(self, event: str, run: Run) -> None:
        if (event, RANK) == (self.event, self.rank) and run.step >= self.step:
            if self.kill:
                os.kill(os.getpid(), 9)
            raise ValueError(f"gone at {event}")

    def on_batch_begin(self, run: Run) -> None:
        self.maybe("batch_begin", run)

    def on_backward_begin(self, run: Run) -> None:
        self.maybe("backward_begin", run)

    def on_batch_end(self, run: Run) -> None:
        self.maybe("batch_end", run)

    def on_validate_begin(self, run: Run) -> None:
        self.maybe("validate_begin", run)

    def on_epoch_end(self, run: Run) -> None:
        self.maybe("epoch_end", run)


def several(folder: Path, bs: int) -> dict[str, Any]:
    """Much in one start, since that is what takes time."""
    kinds = (
        "arrays",
        "map",
        "loader",
        "spare",
        "weighted",
        "ignored",
        "tempered",
        "named",
        "padded",
        "augmented",
        "half",
        "unlike",
    )
    found = {kind: job(folder, bs, kind) for kind in kinds}
    found["growing"] = job(folder, bs, callbacks=[Growing()])
    found["summed"] = job(folder, bs, "summed", checks="off")  # which would warn
    found["partial"] = job(folder, bs, "partial", [GradAccumulation(3)], checks="off")
    found["growing loader"] = job(folder, bs, callbacks=[GrowingLoader()])
    found["nested"] = job(folder, bs, "unlike", callbacks=[Nested()])
    found["noise"] = job(folder, bs, "augmented", callbacks=[Noise()])
    found["accumulated both"] = job(folder, bs, "both", callbacks=[GradAccumulation(3)])
    found["evals"] = job(folder, bs, callbacks=[Evals()])
    found["looks"] = job(folder, bs, callbacks=[Looks()])
    found["copies"] = job(folder, bs, callbacks=[Copies()])
    found["stop"] = job(folder, bs, callbacks=[StopsInOne(5)])
    found["accumulated"] = job(folder, bs, callbacks=[GradAccumulation(3), GradClip(0.3), EMA()])
    found["frozen"] = job(folder, bs, callbacks=[Freeze("0"), OneCycle(0.05), SWA(start=1)])
    found["steps"] = job(folder, bs, steps=4)
    stops = [EarlyStopping(patience=1), CSVLogger(folder / "log.csv")]
    found["early"] = job(folder, bs, callbacks=stops, epochs=40)
    found["saved"] = saved(folder, bs)
    return found


def saved(folder: Path, bs: int) -> dict[str, Any]:
    """A run that is broken off, to be gone on with."""
    path = folder / "run.ckpt"
    return job(folder, bs, callbacks=[Counts(), Checkpoint(path), StopsInOne(5, True)])


def resumed(folder: Path, bs: int, kind: str = "arrays") -> dict[str, Any]:
    path = folder / "run.ckpt"
    return job(folder, bs, kind, callbacks=[Counts(), Checkpoint(path, every=2)], resume=path)


def paused(folder: Path, bs: int, step: str) -> dict[str, Any]:
    """A sharded net with much to remember, written by the clock, which each has for itself."""
    tick = itertools.count(RANK * 40)
    every = Checkpoint(folder / "run.ckpt", every="10s", clock=lambda: float(next(tick)))
    stops = [StopsInOne(int(step), True)] if step != "0" else []
    callbacks = [GradAccumulation(3), GradClip(0.3), GradientStats(), EMA(), SaveBest(), every]
    resume = folder / "run.ckpt"
    found = job(
        folder, bs, "sharded" if SIZE > 1 else "arrays", [*callbacks, *stops], resume=resume
    )
    return found


def failing(folder: Path, bs: int, event: str, rank: str, step: str, how: str) -> dict[str, Any]:
    """Tells what was raised, and stays alive as a notebook would."""
    fails = FailsInOne(event, int(rank), int(step), how == "kill")
    try:
        if event in ("validate", "predict"):
            without_fit(event, bs, int(rank) == RANK)
        job(folder, bs, callbacks=[fails], progress=False)
    except (ValueError, RuntimeError) as error:
        (folder / f"raised-{RANK}").write_text(f"{type(error).__name__}: {error}")
    with contextlib.suppress(RuntimeError):  # it would work on a part of the rows
        job(folder, bs)
        (folder / f"raised-{RANK}").write_text("trains on alone")
    if how == "stay":
        sys.stdin.read()  # until the test, which looks at the others, closes it
    return {}


def without_fit(what: str, bs: int, fails: bool) -> None:
    """Looks at a net, with rows that cannot be read in one of the processes."""
    x, y, *_ = arrays()

    def maybe(xb: torch.Tensor) -> torch.Tensor:
        if fails:
            raise ValueError(f"gone at {what}")
        return xb

    net, loader = a_net(7), minifast.ArrayLoader(x, y, bs=bs, tfm=maybe)
    if what == "predict":
        predict(net, loader)
    minifast.validate(net, loader, nn.CrossEntropyLoss())


def restarting(folder: Path, bs: int, rank: str, step: str) -> dict[str, Any]:
    """Is killed the first time, at a batch; goes on from the checkpoint the second."""
    first = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"
    fails = [FailsInOne("batch_end", int(rank), int(step), True)] if first else []
    path = folder / "run.ckpt"
    return job(folder, bs, callbacks=[*fails, Checkpoint(path, every=3)], resume=path)


class PullsCable(minifast.Callback):
    """Takes this host off the network, once."""

    def __init__(self, folder: Path, rank: int, step: int) -> None:
        self.pulled, self.rank, self.step = folder / "pulled", rank, step

    def on_batch_end(self, run: Run) -> None:
        if (RANK, run.step) == (self.rank, self.step) and not self.pulled.exists():
            self.pulled.touch()
            subprocess.run(["ip", "link", "set", "eth0", "down"], check=True)


def hosts(folder: Path, bs: int, rank: str, step: str) -> dict[str, Any]:
    """One of several hosts, whose link is cut at a batch."""
    join(timeout=6)
    path = folder / "run.ckpt"
    callbacks = [PullsCable(folder, int(rank), int(step)), Checkpoint(path, every=3)]
    try:
        return job(folder, bs, callbacks=callbacks, resume=path)
    finally:  # torchrun itself waits for the link
        subprocess.run(["ip", "link", "set", "eth0", "up"], check=True)


class ByHand(Stepper):
    """Calls the net's layers one by one."""

    def forward(self, net: nn.Module, x: Any) -> Any:
        for layer in net.children():
            x = layer(x)
        return x


class Spoils(minifast.Callback):
    """Rows that are no numbers, in the last process only."""

    def on_batch_begin(self, run: Run) -> None:
        if RANK == SIZE - 1 and run.step == 3:
            run.x = run.x * float("nan")


def refused(folder: Path, bs: int, what: str) -> dict[str, Any]:
    """What several processes cannot share."""
    x, y, *_ = arrays()
    net, options, md = a_net(7), {}, ModelData(".", minifast.ArrayLoader(x, y, bs=bs))
    if what == "by hand":
        options["stepper"] = ByHand()
    if what == "another net" and RANK:
        net.append(nn.Linear(3, 3))
    if what == "dealt":
        join()
        rows = TensorDataset(torch.from_numpy(x), torch.from_numpy(y))
        md = ModelData(".", DataLoader(rows, bs, sampler=DistributedSampler(rows)))
    if what == "rows":
        md = ModelData(".", minifast.ArrayLoader(x[RANK::2][:100], y[RANK::2][:100], bs=bs))
    if what == "nan":
        options |= {"callbacks": [Spoils()], "checks": "on"}
    if what == "unequal":
        md = ModelData(".", [(torch.zeros(2, 6), torch.zeros(2, dtype=torch.int64))] * (5 + RANK))
    opt = optim.SGD(net.parameters(), 0.1)
    try:
        fit(net, md, 1, nn.CrossEntropyLoss(), opt, progress=False, **options)
    except (ValueError, RuntimeError, FloatingPointError) as error:
        (folder / f"raised-{RANK}").write_text(str(error))
    return {}


def helper(_: int) -> tuple[bool, float]:
    """Trains in a process of a pool."""
    x, y, *_ = arrays()
    net = nn.Linear(6, 3)
    opt = optim.SGD(net.parameters(), 0.1)
    md = ModelData(".", minifast.ArrayLoader(x, y))
    fit(net, md, 1, nn.CrossEntropyLoss(), opt, progress=False)
    return join() is None, float(net.weight.sum())


def pool(folder: Path, bs: int) -> dict[str, Any]:
    """One of the processes has others work for it, before and after it joins."""
    found = []
    for _ in range(2):
        if RANK == 0:
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as helpers:
                found += list(helpers.map(helper, [0]))
        join().total(0.0)  # type: ignore[union-attr]
    return {"found": found}


def own_group(folder: Path, bs: int, rank: str, port: str) -> dict[str, Any]:
    """A program that makes its process group itself, without torchrun's variables."""
    address = f"tcp://127.0.0.1:{port}"
    torch.distributed.init_process_group("gloo", init_method=address, rank=int(rank), world_size=2)
    found = job(folder, bs)
    torch.save(found, folder / f"own-{rank}.pt")
    torch.distributed.destroy_process_group()
    return found


JOBS: dict[str, Callable[..., dict[str, Any]]] = {
    "several": several, "resumed": resumed, "failing": failing, "restarting": restarting,
    "hosts": hosts, "saved": saved, "paused": paused, "refused": refused, "pool": pool,
    "own_group": own_group, "draws": draws, "structures": structures, "one_fails": one_fails,
}  # fmt: skip

if __name__ == "__main__":
    name, folder, bs, *more = sys.argv[1:]
    result = JOBS[name](Path(folder), int(bs), *more)
    torch.save(result, Path(folder) / f"result-{RANK}.pt")
    print(json.dumps({"rank": RANK, "done": name}), file=sys.stderr)
