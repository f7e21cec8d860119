"""More rows than memory holds."""

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

LIMIT = 2 * 2**30
CGROUPS = Path("/sys/fs/cgroup")

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="the limits, and files of holes, are Linux's"
)


def peak(folder: Path, rows: int, limit: Callable[[], None]) -> float:
    """Megabytes that training and predicting on so many rows takes, under a limit of 2 GB."""
    for name, shape in (("x", (rows, 784)), ("y", (rows,))):
        path = folder / f"{name}{rows}.npy"
        with path.open("wb") as file:  # of holes: as long as it should be, and no disk is filled
            header = {"descr": "|u1", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            file.truncate(file.tell() + int(np.prod(shape)))
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.memory", "--folder", str(folder),
         "--one", str(rows), "file"],
        cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False, timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"}, preexec_fn=limit,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: float = json.loads(done.stdout)["peak"]
    return found


def data_limited() -> None:
    """The program's own memory is limited; the system's cache of files is not."""
    resource.setrlimit(resource.RLIMIT_DATA, (LIMIT, LIMIT))


@contextmanager
def cgroup() -> Iterator[Path]:
    """A control group whose memory, with its part of the system's cache of files, is limited."""
    v1 = (CGROUPS / "memory").is_dir()
    group = (CGROUPS / "memory" if v1 else CGROUPS) / f"minifast-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"this machine makes no control groups: {error}")
    try:
        try:
            name = "memory.limit_in_bytes" if v1 else "memory.max"
            (group / name).write_text(str(LIMIT))
        except OSError as error:
            pytest.skip(f"this machine's control groups do not limit memory: {error}")
        yield group
    finally:
        group.rmdir()


def test_twenty_gigabytes_take_the_memory_of_one(tmp_path: Path) -> None:
    assert peak(tmp_path, 26_000_000, data_limited) <= 1.1 * peak(tmp_path, 1_300_000, data_limited)


def test_twenty_gigabytes_go_through_a_machine_of_two(tmp_path: Path) -> None:
    with cgroup() as group:

        def enter() -> None:
            (group / "cgroup.procs").write_text(str(os.getpid()))

        greedy = [sys.executable, "-c", f"b'x' * {LIMIT}"]
        assert subprocess.run(greedy, preexec_fn=enter, check=False).returncode == -9  # it is one
        large, small = peak(tmp_path, 26_000_000, enter), peak(tmp_path, 1_300_000, enter)
    assert large <= 1.1 * small
