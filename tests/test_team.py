"""Several processes that train one net: as one process would."""

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests import team_job

DEADLINE = 100  # seconds, after which a launch counts as hanging


def start(
    n: int, folder: Path, *arguments: Any, env: dict[str, str] | None = None
) -> list[subprocess.Popen[str]]:
    """n processes as torchrun would start them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    shared |= {"WORLD_SIZE": str(n), "OMP_NUM_THREADS": "1", **(env or {})}
    command = [sys.executable, "-m", "tests.team_job", *map(str, arguments)]
    return [
        subprocess.Popen(
            command, env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            cwd=Path(__file__).parents[1],
        )
        for rank in range(n)
    ]  # fmt: skip


def ended(processes: list[subprocess.Popen[str]]) -> list[tuple[int, str, str]]:
    """Status, output and errors of each; none may hang."""
    try:
        texts = [process.communicate(timeout=DEADLINE) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(p.returncode, *text) for p, text in zip(processes, texts, strict=True)]


def results(n: int, folder: Path, name: str, bs: int, *more: Any) -> tuple[list[Any], list[str]]:
    """What each process found, and printed."""
    done = ended(start(n, folder, name, folder, bs, *more))
    assert [status for status, *_ in done] == [0] * n, "\n".join(d[2][-2000:] for d in done)
    found = [torch.load(folder / f"result-{r}.pt", weights_only=False) for r in range(n)]
    return found, [out for _, out, _ in done]


def same(ours: Any, theirs: Any) -> None:
    torch.testing.assert_close(ours["weights"], theirs["weights"], rtol=0, atol=1e-6)
    np.testing.assert_allclose(ours["preds"], theirs["preds"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(ours["history"], theirs["history"], rtol=0, atol=1e-6)
    assert ours["stopped"] == theirs["stopped"]


def test_two_processes_at_half_the_batch_are_one_process(tmp_path: Path) -> None:
    (tmp_path / "alone").mkdir()
    alone = team_job.several(tmp_path / "alone", 16)
    found, printed = results(2, tmp_path, "several", 8)
    for name, one in alone.items():
        if name not in ("stop", "saved"):  # the one process's name is another
            for each in found:
                same(one, each[name])
    first, second = found
    for name in alone:
        a, b = first[name], second[name]
        assert torch.equal(a["weights"], b["weights"]), name
        assert a["history"] == b["history"] and np.array_equal(a["preds"], b["preds"])
        for ours, theirs, whole in zip(a["rows"], b["rows"], alone[name]["rows"], strict=True):
            assert sorted(ours + theirs) == sorted(whole), name  # each row once, by one of them
            assert 0 <= len(ours) - len(theirs) <= -(-len(whole) // 16)
        assert (a["forward"], a["hooks"]) == (
            alone[name]["forward"],
            0,
        )  # the net is the user's again
    assert len(alone["arrays"]["rows"][0]) == team_job.ROWS
    assert first["stop"]["stopped"] == second["stop"]["stopped"] == "process 1 has enough"
    assert "epoch  trn_loss" in printed[0] and printed[1] == ""
    assert (tmp_path / "log.csv").read_text().count("\n") == 1 + len(first["early"]["history"])
    again = team_job.resumed(tmp_path, 16)  # saved by two, resumed by one
    same(alone["arrays"], again)
