"""Processes that fail, are killed, or come back in another number."""

import os
import random
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tests import team_job
from tests.test_team import DEADLINE, ended, results, same, start

ROOT = Path(__file__).parents[2]
EVENTS = ("batch_begin", "backward_begin", "batch_end", "validate_begin", "epoch_end")


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """The unbroken run, by one process."""
    return team_job.job(tmp_path_factory.mktemp("alone"), 16, progress=False)


def test_a_run_of_two_goes_on_by_one_by_four_and_sharded(
    tmp_path: Path, alone: dict[str, object]
) -> None:
    results(2, tmp_path, "saved", 8)
    for name, n, bs, kind in (("four", 4, 4, "arrays"), ("sharded", 2, 8, "sharded")):
        folder = tmp_path / name
        folder.mkdir()
        shutil.copy(tmp_path / "run.ckpt", folder)
        for each in results(n, folder, "resumed", bs, kind)[0]:
            same(alone, each)


def test_a_sharded_run_goes_on_by_one(tmp_path: Path, alone: dict[str, object]) -> None:
    for each in results(2, tmp_path, "resumed", 8, "sharded")[0]:
        same(alone, each)
    (tmp_path / "run.ckpt").unlink()  # of the end; the one before is of a batch in the last epoch
    same(alone, team_job.resumed(tmp_path, 16))


def test_a_sharded_run_with_averages_and_waiting_gradients_goes_on(tmp_path: Path) -> None:
    (tmp_path / "alone").mkdir()
    alone = team_job.paused(tmp_path / "alone", 16, "0")
    for stops in (17, 0):  # in the midst of a window of accumulation
        found, _ = results(2, tmp_path, "paused", 8, stops)
    for each in found:
        same(alone, each)
    (tmp_path / "run.ckpt").unlink()  # the one before is of a batch
    same(alone, team_job.paused(tmp_path, 16, "0"))


WORDS = {
    "by hand": "did not call the net",
    "another net": "different nets",
    "dealt": "dealt out already",
    "unequal": "do not give the same batches",
    "rows": "different rows",
    "nan": "the loss is",
}


@pytest.mark.parametrize("what", WORDS)
def test_what_cannot_be_shared_is_told(tmp_path: Path, what: str) -> None:
    results(2, tmp_path, "refused", 8, what)
    for rank in (0, 1):
        assert WORDS[what] in (tmp_path / f"raised-{rank}").read_text()


def test_a_pools_processes_belong_to_no_team(tmp_path: Path) -> None:
    found, _ = results(2, tmp_path, "pool", 8)
    assert [alone for alone, _ in found[0]["found"]] == [True, True]


def test_a_group_that_the_program_made_itself(tmp_path: Path, alone: dict[str, object]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.team_job", "own_group", str(tmp_path), "8"]
    processes = [
        subprocess.Popen(
            [*command, str(rank), str(port)], env=env, cwd=ROOT, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for rank in (0, 1)
    ]  # fmt: skip
    for rank, (status, _, errors) in enumerate(ended(processes)):
        assert status == 0, errors
        same(alone, torch.load(tmp_path / f"own-{rank}.pt", weights_only=False))


def fails(folder: Path, event: str, rank: int, step: int, how: str) -> None:
    folder.mkdir()
    processes = start(2, folder, "failing", folder, 8, event, rank, step, how)
    other = processes[1 - rank]
    other.wait(DEADLINE) if how == "kill" else None
    if how == "stay":  # the one that failed lives on: the other must not wait for its end
        told = folder / f"raised-{1 - rank}"
        for _ in range(DEADLINE * 10):
            if told.exists() and told.read_text():
                break
            with pytest.raises(subprocess.TimeoutExpired):
                other.wait(0.1)
    done = ended(processes)
    raised = [(folder / f"raised-{r}") for r in (0, 1)]
    if how == "kill":
        assert done[rank][0] == -9 and raised[1 - rank].exists()
        return
    assert raised[rank].read_text() == f"ValueError: gone at {event}"
    told_text = raised[1 - rank].read_text()
    assert told_text == f"RuntimeError: process {rank} ended with ValueError: gone at {event}"


@pytest.mark.parametrize("event", [*EVENTS, "validate", "predict"])
def test_an_error_in_one_ends_all_with_it(tmp_path: Path, event: str) -> None:
    fails(tmp_path / "failing", event, 1, 5, "stay")


@pytest.mark.full
@pytest.mark.parametrize("seed", range(20))
def test_errors_and_kills_at_any_moment(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    for how in ("stay", "kill"):
        event, rank, step = rng.choice(EVENTS), rng.randrange(2), rng.randrange(24)
        fails(tmp_path / how, event, rank, step, how)


def restarted(folder: Path, rank: int, step: int, alone: dict[str, object]) -> None:
    folder.mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
         "--max-restarts", "1", "--monitor-interval", "0.1", "-m", "tests.team_job",
         "restarting", str(folder), "8", str(rank), str(step)],
        cwd=ROOT, timeout=DEADLINE, capture_output=True, text=True, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    for r in (0, 1):
        same(alone, torch.load(folder / f"result-{r}.pt", weights_only=False))


def test_a_killed_worker_is_started_again_and_the_run_ends_as_unbroken(
    tmp_path: Path, alone: dict[str, object]
) -> None:
    restarted(tmp_path / "run", 1, 20, alone)


@pytest.mark.full
@pytest.mark.parametrize("seed", range(20))
def test_workers_killed_at_any_batch(tmp_path: Path, seed: int, alone: dict[str, object]) -> None:
    rng = random.Random(seed)
    restarted(tmp_path / "run", rng.randrange(2), rng.randrange(1, 39), alone)


def test_predictions_of_fewer_rows_than_processes(tmp_path: Path) -> None:
    found, _ = results(4, tmp_path, "resumed", 4)  # of 203 and 57 rows; a last batch has 3 or 1
    assert all(np.array_equal(found[0]["preds"], f["preds"]) for f in found)
