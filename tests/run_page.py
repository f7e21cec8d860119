"""python tests/run_page.py PAGE...: runs what a reader sees of a page, in an empty folder.

Needs nothing that the page does not name, not even pytest: `python -m nox -s extras` runs each
page where only that is installed.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import sys
import tempfile
from pathlib import Path

BLOCK = re.compile(r"^```(\w+)([^\n]*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(page: Path) -> list[tuple[int, str]]:
    """The Python that a reader sees, each block with its line; hidden blocks are the site's own."""
    text = page.read_text(encoding="utf-8")
    return [
        (text[: found.start(3)].count("\n"), found[3])
        for found in BLOCK.finditer(text)
        if found[1] == "python" and ("exec=" not in found[2] or "source=" in found[2])
    ]


def needs(page: Path) -> list[str]:
    """What the page says to install, as pip is told it, without `-e`."""
    shell = [found[3] for found in BLOCK.finditer(page.read_text("utf-8")) if found[1] == "sh"]
    lines = [line for text in shell for line in text.splitlines()]
    words = [shlex.split(line, comments=True) for line in lines if line.startswith("pip install ")]
    return [word for line in words for word in line[2:] if word != "-e"]


def run(page: Path) -> None:
    """Runs the blocks one after another, as if they were typed."""
    space = {"__name__": "__main__"}
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        for line, source in blocks(page):
            exec(compile("\n" * line + source, str(page), "exec"), space)


if __name__ == "__main__":
    os.environ.setdefault("MPLBACKEND", "agg")
    for name in sys.argv[1:]:
        print(f"== {name}", flush=True)
        run(Path(name).resolve())
