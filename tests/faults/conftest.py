"""Everything here is marked, and left out of the ordinary suite."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]


def pytest_collection_modifyitems(items):
    for item in items:
        if Path(item.path).parent == Path(__file__).parent and not item.get_closest_marker("full"):
            item.add_marker("faults")


def sizes(usual, full):
    """A test's size: the usual one, and the full one behind its marker."""
    return pytest.mark.parametrize("size", [usual, pytest.param(full, marks=pytest.mark.full)])


def drive(name, *arguments, timeout=570):
    """What a driver prints, as data. It is a process of its own: it forks, and torch has no
    threads in it."""
    done = subprocess.run(
        [sys.executable, "-m", f"tests.faults.{name}", *map(str, arguments)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])
