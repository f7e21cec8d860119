"""Which tests run which lines: recorded with `coverage`, and kept by test file.

Lines are kept by their text and their function, so that a record stays good for the lines that a
change of the package leaves alone. A test file is recorded again when it changes, or with --record.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import defaultdict
from contextlib import suppress
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[2]
KEPT = Path(tempfile.gettempdir()) / "minifast-mutants"
PYTEST = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
PYTEST += ["-p", "tests.mutants.pytest_plugin", "-m", "not full and not site and not gpu"]

Lines = dict[str, dict[str, set[str]]]  # module -> line, as `named` names it -> its tests


def copied(folder: Path) -> Path:
    """Copies the working tree into a folder."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True, text=True)
    for name in filter(None, listed.stdout.split("\0")):
        if (REPOSITORY / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(REPOSITORY / name, folder / name)
    return folder


def run_pytest(folder: Path, arguments: list[str], limit: float, env: dict[str, str]) -> int | None:
    """Runs pytest in a copy; returns its exit status, None after `limit` seconds."""
    settings = {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    with (folder / "output.txt").open("w") as output:
        process = subprocess.Popen(
            [*PYTEST, *arguments],
            cwd=folder,
            env={**os.environ, **settings, **env},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            return process.wait(limit)
        except subprocess.TimeoutExpired:
            return None
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # and what it has started
            process.wait()


def named(source: str) -> list[str]:
    """A name of each line of a module: its text and the function that it is in."""
    lines = source.splitlines()
    functions = [""] * len(lines)

    def walk(node: ast.AST, outer: str) -> None:
        for child in ast.iter_child_nodes(node):
            name = outer
            if isinstance(child, ast.FunctionDef | ast.ClassDef):
                name = f"{outer}.{child.name}"
                size = (child.end_lineno or 0) - child.lineno + 1
                functions[child.lineno - 1 : child.end_lineno] = [name] * size
            walk(child, name)

    walk(ast.parse(source), "")
    return [f"{name}: {line.strip()}" for name, line in zip(functions, lines, strict=True)]


def record(folder: Path, afresh: bool) -> tuple[dict[str, float], Lines]:
    """The seconds of each test that passes, and the tests that run each line."""
    KEPT.mkdir(exist_ok=True)
    tests = [path for path in folder.glob("tests/**/test_*.py") if path.parent.name != "site"]
    seconds: dict[str, float] = {}
    lines: Lines = defaultdict(lambda: defaultdict(set))
    for path in [folder / "minifast", *sorted(tests)]:  # the package's own are doctests
        found = recorded(path, folder, afresh)
        for test in found["failed"]:
            print(f"left out: {test} does not pass without a mutant")
        passed = {test: s for test, s in found["seconds"].items() if test not in found["failed"]}
        seconds |= passed
        for module, by_line in found["lines"].items():
            for line, who in by_line.items():
                lines[module][line] |= passed.keys() & set(who)
    return seconds, lines


def recorded(path: Path, folder: Path, afresh: bool) -> dict[str, Any]:
    """The seconds, outcomes and lines of the tests of one file."""
    name = str(path.relative_to(folder))
    files = [path] if path.is_file() else [*path.glob("**/*.py")]
    if path.name == "test_docs.py":
        files += [folder / "README.md", *folder.glob("docs/**/*.md")]
    contents = hashlib.sha256(b"".join(file.read_bytes() for file in sorted(files)))
    kept = KEPT / f"{name.replace('/', '-')}-{contents.hexdigest()[:12]}.json"
    if kept.exists() and not afresh:
        return json.loads(kept.read_text())  # type: ignore[no-any-return]
    print(f"recording {name}", flush=True)
    with tempfile.TemporaryDirectory() as data:
        settings, summary = Path(data, "coveragerc"), Path(data, "summary")
        settings.write_text(
            f"[run]\nsource = {folder}/minifast\ndata_file = {data}/lines\nparallel = true\n"
            "context = ${PYTEST_CURRENT_TEST-}\n"  # of the processes that a test starts
            "disable_warnings = no-data-collected, module-not-measured, module-not-imported\n"
        )
        env = {"COVERAGE_PROCESS_START": str(settings), "MUTANTS_RECORD": str(summary)}
        run_pytest(folder, [name], 3600, env)
        if not summary.exists():
            sys.exit((folder / "output.txt").read_text())
        found = json.loads(summary.read_text())
        found["lines"] = lines_in(Path(data), folder / "minifast")
    if 'scope="module"' in files[0].read_text():  # what its first test runs, all need
        for by_line in found["lines"].values():
            by_line.update({line: list(found["seconds"]) for line in by_line})
    kept.write_text(json.dumps(found))
    return found  # type: ignore[no-any-return]


def lines_in(data: Path, package: Path) -> dict[str, dict[str, list[str]]]:
    """The tests that run each line, from the records of all processes."""
    from coverage import CoverageData

    lines: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for path in data.glob("lines.*"):
        part = CoverageData(str(path))
        part.read()
        for file in map(Path, part.measured_files()):
            module, names = str(file.relative_to(package).with_suffix("")), named(file.read_text())
            for line, contexts in part.contexts_by_lineno(str(file)).items():
                tests = {re.sub(r" \(\w+\)$", "", context) for context in contexts} - {""}
                lines[module][names[line - 1]] += tests
    return lines
