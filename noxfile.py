"""Other versions than the developer's own, and each extra alone: `python -m nox --list`.

Arguments after `--` go to pytest: `python -m nox -s oldest -- tests/test_fit.py`.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import tomllib
from pathlib import Path

import nox

sys.path.insert(0, str(Path(__file__).parent / "tests"))
from run_page import blocks, needs

nox.options.default_venv_backend = "uv|virtualenv"
nox.options.sessions = ["oldest", "python-3.12", "newest", "extras"]

PROJECT = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
OLDEST, NEWEST = "3.11", "3.13"  # releases of Python
NEWEST_TORCH = f"torch=={os.environ.get('NEWEST_TORCH', '2.14.1')}"  # that the tests have passed on
# A build for the CPU, where one lies at hand, saves gigabytes of libraries for GPUs.
TORCH = f"torch=={os.environ.get('TORCH', '2.13.0')}"
HOW_TO = sorted(Path("docs/how-to").glob("*.md"))


def interpreter(version: str) -> str | None:
    """A Python of that release: on the PATH, or among those of pyenv."""
    found = shutil.which(f"python{version}")
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"), "versions")
    others = sorted(pyenv.glob(f"{version}.*/bin/python"))
    if found and "shims" not in Path(found).parts:  # one of pyenv's may be for another release
        return found
    return str(others[-1]) if others else None


def environment(session: nox.Session, version: str) -> None:
    """Makes the session's environment with that Python, or skips the session."""
    python = interpreter(version)
    if python is None:
        session.skip(f"Python {version} is not on this machine: not tested with it")
    session.run("uv", "venv", "--quiet", "--clear", "--seed", "--python", python, folder(session))


def folder(session: nox.Session) -> str:
    """Where the session's environment lies."""
    return str(Path(session.create_tmp(), "venv"))


def python_of(session: nox.Session) -> str:
    """The environment's interpreter."""
    inner = Path("Scripts", "python.exe") if os.name == "nt" else Path("bin", "python")
    return str(Path(folder(session), inner))


def install(session: nox.Session, *what: str) -> None:
    """Installs into the session's environment."""
    links = [word for each in os.environ.get("PIP_FIND_LINKS", "").split() for word in ("-f", each)]
    session.run("uv", "pip", "install", "--quiet", "--python", python_of(session), *links, *what)


def suite(session: nox.Session) -> None:
    """The tests, or those that were asked for, where every warning is an error."""
    show = "import sys, torch, numpy; print(sys.version, torch.__version__, numpy.__version__)"
    session.run(python_of(session), "-c", show, external=True)
    arguments = session.posargs or ["tests", "minifast"]
    command = ["-m", "pytest", "-q", "-n", "auto", "--dist", "worksteal", *arguments]
    session.run(python_of(session), *command, external=True)


@nox.session(venv_backend="none")
def oldest(session: nox.Session) -> None:
    """The lowest versions that pyproject.toml admits, on the oldest Python."""
    environment(session, OLDEST)
    lowest = [re.sub(r"\s*>=\s*", "==", each) for each in PROJECT["dependencies"]]
    # pyarrow's newer releases refuse NumPy 1, and do not say so to an installer.
    install(session, *lowest, "pyarrow==16", "-e", ".[test]")
    suite(session)


@nox.session(name="python-3.12", venv_backend="none")
def middle(session: nox.Session) -> None:
    """The Python between the oldest and the newest."""
    environment(session, "3.12")
    install(session, "-e", ".[test]")
    suite(session)


@nox.session(venv_backend="none")
def newest(session: nox.Session) -> None:
    """The newest release of everything, on the newest Python."""
    environment(session, NEWEST)
    install(session, "--upgrade", NEWEST_TORCH, "-e", ".[test]")
    suite(session)


@nox.session(venv_backend="none")
def extras(session: nox.Session) -> None:
    """Each page of docs/how-to where only what it names is installed, and nothing else."""
    pages: dict[tuple[str, ...], list[str]] = {}
    for page in HOW_TO:
        if blocks(page):
            pages.setdefault(tuple(needs(page)), []).append(str(page))
    for wanted, together in pages.items():
        environment(session, OLDEST)
        install(session, TORCH, ".", *wanted)
        script = str(Path("tests", "run_page.py").resolve())
        session.run(python_of(session), "-W", "error", script, *together, external=True)
