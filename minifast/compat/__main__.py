"""python -m minifast.compat script.py [arguments], or --check notebook.ipynb."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

from . import install
from .rewrite import rewritten

USAGE = """python -m minifast.compat script.py [arguments]
python -m minifast.compat --check notebook.ipynb"""


def main(arguments: list[str]) -> int:
    """Runs a script, or checks a notebook; gives the exit status."""
    if arguments[:1] == ["--check"] and len(arguments) == 2:
        from .check import check

        return check(Path(arguments[1]))
    if not arguments or arguments[0].startswith("-"):
        print(USAGE)
        return 0 if arguments[:1] in (["-h"], ["--help"]) else 2
    path = Path(arguments[0])
    if not path.is_file():
        print(f"python -m minifast.compat: there is no file {path}", file=sys.stderr)
        return 2
    install()
    code = rewritten(path.read_bytes(), str(path))  # bytes: it may name its encoding
    module = ModuleType("__main__")
    module.__file__ = str(path)
    sys.modules["__main__"] = module
    sys.argv = arguments
    sys.path[0] = str(path.resolve().parent)
    exec(code, module.__dict__)  # the user's own script, as `python script.py` would
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
