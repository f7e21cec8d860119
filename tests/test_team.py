"""Several processes that train one net: as one process would."""

import os
import random
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from minifast.batches import rows_of, scatter
from minifast.draws import Draws
from minifast.team import join
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
    return found, [_without_gloo(out) for _, out, _ in done]


def _without_gloo(printed: str) -> str:
    """PyTorch 2.10 prints there who is connected."""
    return "".join(line for line in printed.splitlines(True) if not line.startswith("[Gloo] "))


def same(ours: Any, theirs: Any, what: str = "") -> None:
    torch.testing.assert_close(
        ours["weights"], theirs["weights"], rtol=0, atol=1e-6, msg=lambda m: what + m
    )
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
                same(one, each[name], name)
    first, second = found
    for name in alone:
        a, b = first[name], second[name]
        assert torch.equal(a["weights"], b["weights"]), name
        assert a["history"] == b["history"] and np.array_equal(a["preds"], b["preds"])
        for each in (a, b):
            assert np.array_equal(each["out"], each["preds"]), name
        for ours, theirs, whole in zip(a["rows"], b["rows"], alone[name]["rows"], strict=True):
            assert sorted(ours + theirs) == sorted(whole), name  # each row once, by one of them
            assert 0 <= len(ours) - len(theirs) <= -(-len(whole) // 16)
        assert (a["forward"], a["hooks"]) == (
            alone[name]["forward"],
            0,
        )  # the net is the user's again
    assert len(alone["arrays"]["rows"][0]) == team_job.ROWS
    assert [len(rows) for rows in alone["growing"]["rows"]] == [50, 100, 150]
    assert first["stop"]["stopped"] == second["stop"]["stopped"] == "process 1 has enough"
    assert "epoch  trn_loss" in printed[0] and printed[1] == ""
    assert (tmp_path / "log.csv").read_text().count("\n") == 1 + len(first["early"]["history"])
    again = team_job.resumed(tmp_path, 16)  # saved by two, resumed by one
    same(alone["arrays"], again)


@pytest.mark.parametrize(
    "said",
    [
        {"RANK": "0", "WORLD_SIZE": "two", "MASTER_ADDR": "here", "MASTER_PORT": "29500"},
        {"RANK": "0", "WORLD_SIZE": "2"},
        {"RANK": "2", "WORLD_SIZE": "2", "MASTER_ADDR": "here", "MASTER_PORT": "29500"},
        {"RANK": "-1", "WORLD_SIZE": "2", "MASTER_ADDR": "here", "MASTER_PORT": "29500"},
        {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "here", "MASTER_PORT": ""},
    ],
)
def test_an_environment_that_no_launcher_makes(
    said: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match="which of several processes this is"):
        join()
    monkeypatch.setenv("WORLD_SIZE", "1")  # alone, whatever else it says
    assert join() is None


def test_a_batch_of_anything_is_dealt_out_whole() -> None:
    groups: list[list[Any]] = [
        [(torch.arange(5), ["a", "b", "c", "d", "e"])],
        [{"x": torch.arange(4), "y": np.arange(4)}, {"x": torch.arange(3), "y": np.arange(3)}],
        [torch.zeros(3, 2), torch.zeros(3, 5), torch.zeros(2, 4)],
        [torch.arange(2)],
        [({"x": torch.zeros(3, 2)}, {"y": torch.arange(3)})] * 2,
        [(torch.zeros(2, 3), ["a", "b"])],
    ]
    for group in groups:
        dealt_out = [scatter(group, rank, 3) for rank in range(3)]
        assert sum(mine for mine, _, _ in dealt_out) == sum(map(rows_of, group))
        assert {n for _, n, _ in dealt_out} == {sum(map(rows_of, group))}
        for mine, _, part in dealt_out:
            assert rows_of(part) == max(mine, 1) or mine == 0
    even, odd = scatter(groups[0], 0, 2), scatter(groups[0], 1, 2)
    assert even[2][1] + odd[2][1] == ["a", "b", "c", "d", "e"]
    both = [scatter(groups[1], rank, 2)[2] for rank in (0, 1)]
    assert [len(part["x"]) for part in both] == [4, 3]
    assert torch.cat([part["x"] for part in both]).tolist() == [0, 1, 2, 3, 0, 1, 2]


def test_a_stream_of_its_own_leaves_the_common_one_where_it_was() -> None:
    def drawn() -> tuple[float, ...]:
        return float(torch.rand(())), np.random.rand(), random.random()

    def seeded(rank: int = 0) -> Draws:
        torch.manual_seed(1), np.random.seed(1), random.seed(1)
        return Draws(rank)

    seeded()
    common = [drawn() for _ in range(3)]
    draws = seeded()
    first = drawn()
    draws.begin(7)
    own = [drawn()]
    with draws.common():
        second = drawn()
    with draws.of_batch(3):
        of_batch = drawn()
    own.append(drawn())
    draws.end()
    assert [first, second, drawn()] == common
    other = seeded(1)
    other.begin(7)
    its = [drawn(), drawn()]
    other.end()
    draws = seeded()
    draws.begin(7)
    assert [drawn(), drawn()] == own
    draws.begin(8)
    streams = [*common, *own, of_batch, *its, drawn()]
    assert all(len(set(numbers)) == len(streams) for numbers in zip(*streams, strict=True))
    draws.end()


def test_processes_draw_apart_what_is_theirs_and_together_what_is_all_of_them(
    tmp_path: Path,
) -> None:
    """In each process, too: a run that is broken off goes on to the bit."""
    (a, b), _ = results(2, tmp_path, "draws", 8)
    for kind in ("arrays", "loader", "list"):
        first, second = a[kind], b[kind]
        assert torch.equal(first["state"], second["state"]), kind  # buffers of BatchNorm, too
        assert first["after"] == second["after"]
        drawn = [each for found in (first, second) for fits in found["drawn"] for each in fits]
        assert len(drawn) == 2 * 2 * 2 * 13
        for generator in zip(*drawn, strict=True):  # of two processes, two fits, two epochs
            assert len(set(generator)) == len(drawn), kind
        for epoch, rows in first["rows"].items():
            if kind != "loader":  # whose rows are changed
                taken = sorted(rows + second["rows"][epoch])
                assert len(set(taken)) == team_job.ROWS or kind == "arrays"
    changed = a["arrays"]["tfm"] + b["arrays"]["tfm"]
    assert len(set(changed)) == len(changed) == 2 * 2 * 2 * 13


def test_targets_of_any_structure_give_the_loss_of_one_process(tmp_path: Path) -> None:
    alone = team_job.structures(tmp_path, 16)
    for each in results(2, tmp_path, "structures", 8)[0]:
        for name, one in alone.items():
            torch.testing.assert_close(each[name]["weights"], one["weights"], rtol=0, atol=1e-6)
            assert each[name]["loss"] == pytest.approx(one["loss"], abs=1e-6)


@pytest.mark.parametrize("how", [pytest.param("own", marks=pytest.mark.full), "torchrun"])
def test_what_one_process_refuses_the_others_are_told_and_nothing_is_lost(
    tmp_path: Path, how: str
) -> None:
    (first, second), _ = results(2, tmp_path, "one_fails", 8, how)
    assert first["together"] == second["together"] == 2
    assert second["alone"] == "ValueError: enough"
    assert "process 1 stopped after batch 1" in first["alone"]
    for what in ("fit", "validate"):
        assert second[what].startswith("TypeError: ")
        assert first[what] == f"RuntimeError: process 1 ended with {second[what]}"
    assert first["predict"].startswith("ValueError: out cannot take the predictions")
    assert second["predict"] == f"RuntimeError: process 0 ended with {first['predict']}"
    assert first["both"] == second["both"] != ""
    assert torch.equal(first["after"]["weights"], second["after"]["weights"])
    assert second["error"] == "ValueError: gone at batch_end"
    assert first["error"].startswith("RuntimeError: ")
    assert "processes have parted" in first["later"] and "have parted" in second["later"]
    if how == "own":
        assert first["sum"] == second["sum"] == 2
    else:  # our own store needs no private name
        assert first["error"] == "RuntimeError: process 1 ended with ValueError: gone at batch_end"
