"""More rows than memory holds."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

LIMIT = 2 * 2**30


def peak(folder: Path, rows: int) -> float:
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
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (LIMIT, LIMIT)),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: float = json.loads(done.stdout)["peak"]
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="holes, and the limit, are Linux's")
def test_twenty_gigabytes_take_the_memory_of_one(tmp_path: Path) -> None:
    assert peak(tmp_path, 26_000_000) <= 1.1 * peak(tmp_path, 1_300_000)
