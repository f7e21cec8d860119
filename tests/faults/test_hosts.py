"""Several hosts, in network namespaces of this machine; a link that is cut."""

import os
import random
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from examples.cluster.namespaces import hosts, torchrun
from tests import team_job
from tests.test_team import same

DEADLINE = 150  # seconds, after which it counts as hanging


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """The unbroken run, by one process on one host."""
    return team_job.job(tmp_path_factory.mktemp("alone"), 16, progress=False)


@pytest.fixture
def two() -> Iterator[list[str]]:
    """The names of two hosts."""
    try:
        with hosts(2) as names:
            yield names
    except (FileNotFoundError, subprocess.CalledProcessError) as error:
        pytest.skip(f"this machine makes no network namespaces: {error}")


def cut(folder: Path, names: list[str], rank: int, step: int, alone: dict[str, object]) -> None:
    """A run whose link is cut once ends as the unbroken one."""
    folder.mkdir()
    script = ["-m", "tests.team_job", "hosts", str(folder), "8", str(rank), str(step)]
    processes = torchrun(names, script)
    try:
        said = [process.communicate(timeout=DEADLINE) for process in processes]
    finally:
        for process in processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    assert [p.returncode for p in processes] == [0, 0], "\n".join(e[-3000:] for _, e in said)
    assert (folder / "pulled").exists()
    for r in (0, 1):
        same(alone, torch.load(folder / f"result-{r}.pt", weights_only=False))


def test_a_link_that_is_cut(tmp_path: Path, two: list[str], alone: dict[str, object]) -> None:
    cut(tmp_path / "run", two, 1, 20, alone)


@pytest.mark.full
@pytest.mark.parametrize("seed", range(20))
def test_a_link_that_is_cut_at_any_batch(
    tmp_path: Path, two: list[str], seed: int, alone: dict[str, object]
) -> None:
    rng = random.Random(seed)
    cut(tmp_path / "run", two, rng.randrange(2), rng.randrange(1, 39), alone)
