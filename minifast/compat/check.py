"""Runs a notebook's cells and says which ran, which did not, and whose fault it was."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PACKAGE = str(Path(__file__).parents[1])
US = "minifast"


def check(path: Path) -> int:
    """Prints a line for each code cell, and a sum; gives 1 if one failed by our fault, else 0.

    The cells run in order, in one IPython shell of this process and in the notebook's folder. One
    that fails does not stop the others. What they print is not shown.

    Raises:
        ModuleNotFoundError: without IPython.
        ValueError: if the file is no notebook.
    """
    sources = [source for source in _cells(path) if source.strip()]
    os.environ.setdefault("MPLBACKEND", "agg")
    shell, captured = _shell()
    before = Path.cwd()
    blames: list[str] = []
    shell.run_line_magic("load_ext", "minifast.compat")
    try:
        os.chdir(path.resolve().parent)
        for number, source in enumerate(sources, 1):
            _run(shell, captured, number, source, blames)
    finally:  # a cell may raise past IPython, as Ctrl-C between two cells does
        os.chdir(before)
        shell.run_line_magic("unload_ext", "minifast.compat")
        shell.clear_instance()
    ours = blames.count(US)
    print(f"{len(sources) - len(blames)} of {len(sources)} cells ran; {ours} failed in {US}")
    return 1 if ours else 0


def _run(shell: Any, captured: Any, number: int, source: str, blames: list[str]) -> None:
    """Runs a cell, prints its line, and adds whose fault it is if it fails."""
    began = time.perf_counter()
    with captured():
        result = shell.run_cell(source, store_history=False)
    _close_pictures()
    first = source.strip().splitlines()[0][:60]
    fault = result.error_before_exec or result.error_in_exec
    print(f"{number:4} {_word(fault)} {time.perf_counter() - began:6.1f} s  {first}", flush=True)
    if fault is not None:
        blames.append(blame(fault))
        text = " ".join(str(fault).split())[:200]
        print(f"       {type(fault).__name__}: {text}\n       fault: {blames[-1]}", flush=True)


def _cells(path: Path) -> Iterator[str]:
    """The sources of the code cells."""
    try:
        book = json.loads(path.read_text(encoding="utf-8"))
        cells = book["cells"] if "cells" in book else book["worksheets"][0]["cells"]  # format 3
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise ValueError(f"{path} is no Jupyter notebook: {error!r}") from error
    for cell in cells:
        if cell["cell_type"] == "code":
            yield "".join(cell.get("source", cell.get("input", "")))


def _shell() -> tuple[Any, Any]:
    """An IPython shell without a screen, and what catches its output."""
    try:
        from IPython.core.interactiveshell import InteractiveShell
        from IPython.utils.capture import capture_output
    except ModuleNotFoundError as error:
        error.add_note("running a notebook needs IPython: pip install 'minifast[ipython]'")
        raise

    class Shell(InteractiveShell):
        def enable_gui(self, gui: Any = None) -> None:
            """`%matplotlib inline` asks for it."""

        def showtraceback(self, *args: Any, **kwargs: Any) -> None:
            """Told in a line instead."""

        showsyntaxerror = showtraceback

    return Shell.instance(), capture_output


def _word(fault: BaseException | None) -> str:
    return "ran   " if fault is None else "FAILED"


def _close_pictures() -> None:
    plt = sys.modules.get("matplotlib.pyplot")
    if plt is not None:
        plt.close("all")


def blame(error: BaseException) -> str:
    """Whose fault an error of a cell is, in words."""
    if isinstance(error, NotImplementedError) and "minifast.compat leaves out" in str(error):
        return "outside what minifast.compat serves"
    if isinstance(error, ImportError):
        return f"a dependency that is not installed: {error.name}"
    if isinstance(error, OSError):  # a missing file, no network
        return "a file or an address that is not there"
    if isinstance(error, NameError):
        return f"a name that no earlier cell has made: {error.name}"
    last = cell = "the cell itself, or plain torch"
    trace = error.__traceback__
    while trace is not None:  # from the cell inwards: of cells and us, who acted last
        name = trace.tb_frame.f_code.co_filename
        if name.startswith(PACKAGE):
            last = US
        elif name.startswith("<"):
            last = cell
        trace = trace.tb_next
    return last
