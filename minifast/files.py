"""Files that are there whole or not at all."""

from __future__ import annotations

import glob
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

try:
    import fcntl
except ImportError:  # Windows: what is being written cannot be deleted there anyway
    fcntl = None  # type: ignore[assignment]

__all__ = ["older", "whole_file"]


@contextmanager
def whole_file(path: Path | str, keep: int = 1) -> Iterator[BinaryIO]:
    """Opens a file for writing that appears under its name whole, or not at all.

    The bytes go to a temporary file in the same folder, which takes the name once it is on the
    disk (fsync) and nothing was raised. What stood under the name before stays until then, and
    `keep` - 1 generations of it after: `older(path, 1)` is the youngest. What a process left behind
    that was killed while it wrote is cleared away.

    A symbolic link stays one: the file that it names is written, and older ones are beside that.

    Raises:
        OSError: with errno and the name; what stood there before stands there still.

    Examples:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "note.txt"
        >>> with whole_file(path) as file:
        ...     n = file.write(b"all of it")
        >>> path.read_bytes()
        b'all of it'
    """
    path = Path(os.path.realpath(path))
    try:
        file, temporary = _temporary(path)
        try:
            with file:
                yield file
                file.flush()
                os.fsync(file.fileno())
                if fcntl is not None:  # while the lock keeps others from clearing it away
                    _take_the_name(temporary, path, keep)
            if fcntl is None:  # Windows renames no open file
                _take_the_name(temporary, path, keep)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)  # a full disk does not say whose write it refused
        raise


def older(path: Path, n: int) -> Path:
    """Where the n-th generation before the file at `path` stands.

    Examples:
        >>> older(Path("run.ckpt"), 1).name
        'run.ckpt.1'
    """
    path = Path(os.path.realpath(path)) if path.is_symlink() else path
    return path.with_name(f"{path.name}.{n}")


def _temporary(path: Path) -> tuple[BinaryIO, Path]:
    """A new file beside `path`, locked as long as its writer lives."""
    for stale in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        _clear_away(stale)
    while True:
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
        file = temporary.open("xb")
        if fcntl is not None:
            with suppress(OSError):  # a file system without locks: stale files stay there
                fcntl.flock(file, fcntl.LOCK_EX)
        if temporary.exists():  # or another process took it for stale before it was locked
            return file, temporary
        file.close()


def _clear_away(stale: Path) -> None:
    """Removes a temporary file, unless somebody is writing it."""
    with suppress(OSError), stale.open("rb") as file:  # locked, or gone meanwhile
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        stale.unlink()


def _take_the_name(temporary: Path, path: Path, keep: int) -> None:
    generations = [path, *(older(path, n) for n in range(1, keep))]
    for younger, elder in reversed([*pairwise(generations)]):
        with suppress(FileNotFoundError):
            younger.replace(elder)
    try:
        temporary.replace(path)
    except BaseException:
        if keep > 1:
            with suppress(FileNotFoundError):
                generations[1].replace(path)
        raise


def _sync_folder(folder: Path) -> None:
    """Puts the new name on the disk too."""
    if os.name != "posix":  # elsewhere a folder cannot be opened
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
