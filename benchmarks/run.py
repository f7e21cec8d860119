"""Runs the measurements: each in a process of its own, on a terminal of its own, taking turns."""

from __future__ import annotations

import importlib.util
import json
import os
import pty
import resource
import subprocess
import sys
import tempfile
import termios
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from .jobs import JOBS
from .peers import PEERS
from .ways import OURS, Way

WAYS: dict[str, type[Way]] = OURS | PEERS
ROOT = Path(__file__).parents[1]
# Which ways do a job, where not all do: peers train, and what is not trained has no stepper.
ONLY = {
    **{job: list(OURS) for job in ("tiny", "uint8", "gru")},
    "predict": ["floor", "tutorial", "fit"],
    "script": list(OURS),
    "import": ["fit"],
}

Result = dict[str, Any]


def installed() -> list[str]:
    """The ways whose package is there."""
    return [name for name, way in WAYS.items() if importlib.util.find_spec(way.package)]


def plan(jobs: list[str], ways: list[str], rounds: int) -> Iterator[tuple[int, str, str]]:
    """Within a round each job goes through all ways, starting with another one each round."""
    for number in range(rounds):
        for job in jobs:
            able = [way for way in ways if way in ONLY.get(job, ways)]
            start = number % len(able)
            for way in able[start:] + able[:start]:
                yield number, job, way


def measure(jobs: list[str], ways: list[str], rounds: int) -> list[Result]:
    """All results; one that failed has the last line that its process printed."""
    todo = list(plan(jobs, ways, rounds))
    results = []
    for count, (number, job, way) in enumerate(todo, 1):
        result = one(job, way, number) | {"round": number, "job": job, "way": way}
        results.append(result)
        said = result.get("failed") or f"{result['seconds']:.3f} s"
        print(f"{count}/{len(todo)} {job}: {way}: {said}", file=sys.stderr, flush=True)
    return results


def one(job: str, way: str, seed: int) -> Result:
    """One process. A script is timed from its start to its end, the rest within."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "result.json"
        command = [sys.executable, "-m", "benchmarks.one", job, way, str(seed), str(file)]
        terminal, its_end = pty.openpty()
        termios.tcsetwinsize(its_end, (24, 100))
        shown = bytearray()
        start = time.perf_counter()
        process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=its_end, stderr=its_end
        )
        os.close(its_end)
        reader = threading.Thread(target=drain, args=(terminal, shown), daemon=True)
        reader.start()
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        reader.join(1)
        if process.returncode != 0:
            lines = shown.decode(errors="replace").strip().splitlines() or ["said nothing"]
            return {"failed": lines[-1][:200]}
        result: Result = {"seconds": seconds} | json.loads(file.read_text())
        return result | {"mib": usage.ru_maxrss / (1024 if sys.platform == "linux" else 2**20)}


def drain(terminal: int, shown: bytearray) -> None:
    with suppress(OSError):  # how Linux says that the other end is closed
        while chunk := os.read(terminal, 1 << 16):
            shown += chunk
    os.close(terminal)


def machine() -> str:
    """What it ran on, in a line."""
    import torch

    name = "an unknown processor"
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    bound = "" if limit == resource.RLIM_INFINITY else f", {limit >> 30} GiB of address space"
    python = ".".join(map(str, sys.version_info[:3]))
    return f"{name}, {cores} cores{bound}, no GPU used; Python {python}, torch {torch.__version__}"


__all__ = ["JOBS", "WAYS", "installed", "machine", "measure"]
