"""What the tests of several processes run in each of them: `python team_job.py NAME FOLDER BS`."""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn, optim
from torch.utils.data import DataLoader, TensorDataset

import minifast
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
    OneCycle,
)
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
        self.rows.setdefault(run.epoch, []).extend(run.x[:mine, 0].tolist())


def job(
    folder: Path,
    bs: int,
    kind: str = "arrays",
    callbacks: Any = (),
    epochs: int = 3,
    **options: Any,
) -> dict[str, Any]:
    """A fit and its predictions."""
    x, y, x_valid, y_valid = arrays()
    torch.manual_seed(3)
    md: Any = ImageClassifierData.from_arrays(folder, (x, y), (x_valid, y_valid), bs=bs)
    if kind == "map":
        if RANK == 0:
            np.save(folder / "x.npy", x)
        team = join()
        if team is not None:
            team.total(0.0)
        away = np.load(folder / "x.npy", mmap_mode="r")
        md = ImageClassifierData.from_arrays(folder, (away, y), (x_valid, y_valid), bs=bs)
    if kind == "loader":
        trn, val = (
            TensorDataset(torch.from_numpy(a), torch.from_numpy(b))
            for a, b in ((x, y), (x_valid, y_valid))
        )
        md = ModelData(folder, DataLoader(trn, bs, shuffle=True), DataLoader(val, bs))
    # Each process its own: the first one's are all's. Parts of a sharded net are put together.
    net: Any = a_net(7 if kind == "sharded" else 7 + RANK)
    if kind == "spare":
        net = WithSpare(net)
    if kind == "sharded":
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        join()
        mesh = init_device_mesh("cpu", (SIZE,))
        for part in (net[0], net[2], net):
            fully_shard(part, mesh=mesh)
    opt = optim.Adam(net.parameters(), 0.01)
    seen = Seen()
    history = fit(
        net, md, epochs, nn.CrossEntropyLoss(), opt, [accuracy, whole_epoch(macro_f1)],
        [seen, *callbacks], **options,
    )  # fmt: skip
    whole = [t.full_tensor() if hasattr(t, "full_tensor") else t for t in net.parameters()]
    return {
        "weights": torch.cat([t.detach().flatten() for t in whole]),
        "preds": predict(net, md.val_dl),
        "history": [list(row.values()) for row in history],
        "stopped": history.stopped,
        "rows": list(seen.rows.values()),
        "forward": type(net).__name__,
        "hooks": len(net._forward_hooks),
    }


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
    found = {kind: job(folder, bs, kind) for kind in ("arrays", "map", "loader")}
    found["stop"] = job(folder, bs, callbacks=[StopsInOne(5)])
    found["spare"] = job(folder, bs, "spare")
    found["accumulated"] = job(folder, bs, callbacks=[GradAccumulation(3), GradClip(0.3), EMA()])
    found["frozen"] = job(folder, bs, callbacks=[Freeze("0"), OneCycle(0.05), SWA(start=1)])
    found["steps"] = job(folder, bs, steps=4)
    stops = [EarlyStopping(patience=1), CSVLogger(folder / "log.csv")]
    found["early"] = job(folder, bs, callbacks=stops, epochs=40)
    found["saved"] = job(
        folder, bs, callbacks=[Checkpoint(folder / "run.ckpt"), StopsInOne(5, True)]
    )
    return found


def resumed(folder: Path, bs: int, kind: str = "arrays") -> dict[str, Any]:
    path = folder / "run.ckpt"
    return job(folder, bs, kind, callbacks=[Checkpoint(path, every=2)], resume=path)


def failing(folder: Path, bs: int, event: str, rank: str, step: str, how: str) -> dict[str, Any]:
    """Tells what was raised, and stays alive as a notebook would."""
    fails = FailsInOne(event, int(rank), int(step), how == "kill")
    try:
        job(folder, bs, callbacks=[fails], progress=False)
    except (ValueError, RuntimeError) as error:
        (folder / f"raised-{RANK}").write_text(f"{type(error).__name__}: {error}")
    with contextlib.suppress(RuntimeError):  # it would work on a part of the rows
        job(folder, bs)
        (folder / f"raised-{RANK}").write_text("trains on alone")
    if how == "stay":
        sys.stdin.read()  # until the test, which looks at the others, closes it
    return {}


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


JOBS: dict[str, Callable[..., dict[str, Any]]] = {
    "several": several, "resumed": resumed, "failing": failing, "restarting": restarting,
    "hosts": hosts,
}  # fmt: skip

if __name__ == "__main__":
    name, folder, bs, *more = sys.argv[1:]
    result = JOBS[name](Path(folder), int(bs), *more)
    torch.save(result, Path(folder) / f"result-{RANK}.pt")
    print(json.dumps({"rank": RANK, "done": name}), file=sys.stderr)
