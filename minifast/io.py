"""The lesson's digits: downloads that are verified, files that are read as data.

The star import hands over `gzip` too, as the lesson's next cell uses it.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import math
import pickle
import struct
import urllib.error
import urllib.request
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast
from urllib.parse import urlsplit

import numpy as np

from .core import explain
from .files import whole_file
from .pickle_as_data import read_pairs

__all__ = ["get_data", "gzip", "load_mnist", "load_mnist_sample"]

Pair = tuple[np.ndarray, np.ndarray]
Digits = tuple[Pair, Pair, Pair]

LESSON_FILE = "mnist.pkl.gz"
MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)


class Part(NamedTuple):
    """One of the four files of which MNIST consists."""

    name: str
    sha256: str
    shape: tuple[int, ...]


PARTS = (
    Part(
        "train-images-idx3-ubyte.gz",
        "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
        (60000, 28, 28),
    ),
    Part(
        "train-labels-idx1-ubyte.gz",
        "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
        (60000,),
    ),
    Part(
        "t10k-images-idx3-ubyte.gz",
        "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
        (10000, 28, 28),
    ),
    Part(
        "t10k-labels-idx1-ubyte.gz",
        "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        (10000,),
    ),
)
MOST_UNPACKED = 250_000_000  # bytes: above the 222,134,543 of MNIST with 64-bit labels
LARGEST_PART = 10_000_000  # bytes, packed: above the 9,912,422 of the training images
TRAINING_ROWS = 50_000  # the lesson keeps the last 10,000 of the 60,000 to validate with


class DownloadError(OSError):
    """A file could not be had from any of its addresses, or was not what it should be."""


# ---- downloads ---------------------------------------------------------------------------


def get_data(url: str, filename: str | Path, *, sha256: str | None = None) -> Path:
    """Downloads `url` to `filename`, unless the file is there already.

    The file appears under its name whole and verified, or not at all; its folder is made. Any
    address of the lesson's `mnist.pkl.gz`, the dead one included, is answered from the live
    mirrors of MNIST: the four original files are checked by their hashes and put together to the
    arrays that the lesson's file has.

    Args:
        url: Where it is, https only.
        filename: Where it shall be.
        sha256: The hash of the file, 64 hexadecimal digits. Needed for everything but MNIST.

    Returns:
        The file's path.

    Raises:
        ValueError: if there is no hash to check the file by, or the address is not https.
        DownloadError: if no address gave the right file; the message has each one's reason.

    Examples:
        >>> import tempfile
        >>> there = Path(tempfile.mkdtemp()) / "mnist.pkl.gz"
        >>> there.touch()
        >>> get_data("http://deeplearning.net/data/mnist/mnist.pkl.gz", there) == there
        True
    """
    path = Path(filename)
    if path.exists():
        return path
    lesson = urlsplit(url).path.endswith("/" + LESSON_FILE) and sha256 is None
    if lesson:
        digits = _lesson_digits([_download_part(part) for part in PARTS])
    else:
        _check_address(url, sha256)
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as file:
        if lesson:
            _write_digits(digits, file)
        else:
            _download([url], file, str(sha256), most=None, fix=f"download it to {path} by hand")
    return path


def _check_address(url: str, sha256: str | None) -> None:
    if urlsplit(url).scheme != "https":
        problem, got, fix = "url is not https", url, f"try https://{url.partition('://')[2]}"
    elif sha256 is None or len(sha256) != 64:
        problem, got = "sha256 is missing: nothing to verify the download by", f"sha256={sha256!r}"
        fix = "get_data(url, filename, sha256='...'), as its publisher gives it or as "
        fix += "`sha256sum` prints it of a copy you trust"
    else:
        return
    raise ValueError(
        explain(
            problem,
            got=got,
            wanted="an https address, and the 64 hexadecimal digits of the file's sha256",
            fix=fix,
            entry="downloads",
        )
    )


def _download_part(part: Part) -> np.ndarray:
    buffer = io.BytesIO()
    urls = [mirror + part.name for mirror in MIRRORS]
    _download(
        urls,
        buffer,
        part.sha256,
        most=LARGEST_PART,
        fix="go on with the package's own 6,000 digits, minifast.io.load_mnist_sample(), or put "
        f"{LESSON_FILE} in place by hand",
    )
    return _read_idx(buffer.getvalue(), part)


def _download(
    urls: Sequence[str], file: BinaryIO, sha256: str, *, most: int | None, fix: str
) -> None:
    """Writes what the first good address gives to `file`; bad attempts leave nothing in it."""
    reasons = []
    for url in urls:
        try:
            found = _copy(url, file, most)
        except (OSError, ValueError) as error:  # ValueError: an address that is none
            reasons.append(f"{url}: {error}")
        else:
            if found == sha256.lower():
                return
            reasons.append(f"{url}: not the right file, its sha256 is {found}")
        file.seek(0)
        file.truncate()
    raise DownloadError(
        explain(
            "the download failed",
            got="\n          ".join(reasons),
            wanted=f"the file with sha256 {sha256}",
            fix=f"try again with a network, or {fix}",
            entry="downloads",
        )
    )


class _SameHostOnly(urllib.request.HTTPRedirectHandler):
    """Follows a redirect within one host, and only over https."""

    def redirect_request(
        self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> Any:
        old, new = urlsplit(req.full_url), urlsplit(newurl)
        if (new.scheme, new.netloc) != ("https", old.netloc):
            raise urllib.error.URLError(f"sends on to another place, {newurl}")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _copy(url: str, file: BinaryIO, most: int | None) -> str:
    """Copies what is at the address to the file, up to `most` bytes; gives its sha256."""
    from .progress import progress_bar

    digest = hashlib.sha256()
    opener = urllib.request.build_opener(_SameHostOnly)
    with opener.open(url, timeout=30) as answer:
        size = int(answer.headers.get("Content-Length") or 0)
        bar = progress_bar(
            total=size or None, unit="B", unit_scale=True, desc=url.rpartition("/")[2]
        )
        try:
            while chunk := answer.read(2**16):
                file.write(chunk)
                digest.update(chunk)
                if bar is not None:
                    bar.update(len(chunk))
                if most is not None and file.tell() > most:
                    raise OSError(f"larger than the {most:,} bytes that it may have")
        finally:
            if bar is not None:
                bar.close()
    return digest.hexdigest()


# ---- the original files, and the lesson's ------------------------------------------------


def _read_idx(packed: bytes, part: Part) -> np.ndarray:
    """The uint8 array of a gzipped IDX file, which must have the part's shape."""
    header = struct.pack(f">HBB{len(part.shape)}I", 0, 8, len(part.shape), *part.shape)
    size = len(header) + math.prod(part.shape)
    raw = _unpack(io.BytesIO(packed), size, part.name)
    if len(raw) != size or raw[: len(header)] != header:
        raise ValueError(f"{part.name} is no IDX file of {part.shape} bytes")
    return np.frombuffer(raw, np.uint8, offset=len(header)).reshape(part.shape)


def _unpack(file: BinaryIO, most: int, name: str) -> bytes:
    """What gzip unpacks, refused above `most` bytes: a small file may unpack to any size."""
    try:
        with gzip.open(file) as unpacked:
            raw: bytes = unpacked.read(most + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{name} is no whole gzip file: {error}") from error
    if len(raw) > most:
        raise ValueError(f"{name} unpacks to more than the {most:,} bytes that it may have")
    return raw


def _lesson_digits(parts: Sequence[np.ndarray]) -> Digits:
    x, y, x_test, y_test = parts
    n = TRAINING_ROWS
    pairs = (x[:n], y[:n]), (x[n:], y[n:]), (x_test, y_test)
    return tuple(_as_lesson(*pair) for pair in pairs)  # type: ignore[return-value]


def _as_lesson(x: np.ndarray, y: np.ndarray) -> Pair:
    """Bytes as the lesson's file has them: flat float32 rows of byte / 256, int64 labels."""
    return x.reshape(len(x), -1).astype(np.float32) / 256, y.astype(np.int64)


def _write_digits(digits: Digits, file: BinaryIO) -> None:
    # No name and no time in the header: the same digits give the same bytes.
    with gzip.GzipFile("", "wb", compresslevel=4, fileobj=file, mtime=0) as packed:
        pickle.dump(digits, packed, protocol=4)


def load_mnist_sample() -> Digits:
    """The package's own digits, in the shape of `load_mnist`: needs neither network nor file.

    The first 500 of each digit from MNIST's training rows and the first 100 of each from its
    validation rows, in their order. There are no test rows. `minifast/data/README.md` says where
    they come from and under which terms.

    Returns:
        `((x, y), (x_valid, y_valid), (x_test, y_test))` of 5,000, 1,000 and 0 rows: float32
        `(n, 784)` in 0..1 (byte / 256), int64 `(n,)`.

    Examples:
        >>> (x, y), (x_valid, y_valid), _ = load_mnist_sample()
        >>> x.shape, x_valid.shape, np.bincount(y_valid)
        ((5000, 784), (1000, 784), array([100, 100, 100, 100, 100, 100, 100, 100, 100, 100]))
    """
    with np.load(Path(__file__).with_name("data") / "mnist_sample.npz") as file:
        trn = _as_lesson(file["x"], file["y"])
        val = _as_lesson(file["x_valid"], file["y_valid"])
    return trn, val, (trn[0][:0], trn[1][:0])


def load_mnist(filename: str | Path) -> Digits:
    """The digits of the lesson's `mnist.pkl.gz`, read as data.

    The pickle in the file is no program here: of its instructions those that build arrays of
    numbers are followed, anything else is an error.

    Args:
        filename: The file; `get_data` gets it.

    Returns:
        `((x, y), (x_valid, y_valid), (x_test, y_test))`: float32 `(n, 784)` in 0..1, int64 `(n,)`;
        50,000, 10,000 and 10,000 rows in the lesson's file.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not a whole gzip file, unpacks to more than MNIST has, or its pickle
            holds anything but three pairs of arrays of numbers.

    Examples:
        >>> load_mnist("mnist.pkl")
        Traceback (most recent call last):
        FileNotFoundError: there is no file mnist.pkl
          got:    mnist.pkl
          wanted: the lesson's mnist.pkl.gz
          fix:    get_data('http://deeplearning.net/data/mnist/mnist.pkl.gz', 'mnist.pkl') \
downloads it; load_mnist_sample() needs no file
          more:   errors-and-fixes#downloads
    """
    path = Path(filename)
    try:
        with path.open("rb") as file:
            raw = _unpack(file, MOST_UNPACKED, path.name)
    except FileNotFoundError:
        raise FileNotFoundError(
            explain(
                f"there is no file {path}",
                got=str(path),
                wanted=f"the lesson's {LESSON_FILE}",
                fix=f"get_data('http://deeplearning.net/data/mnist/{LESSON_FILE}', {str(path)!r}) "
                "downloads it; load_mnist_sample() needs no file",
                entry="downloads",
            )
        ) from None
    try:
        return cast(Digits, read_pairs(raw, 3))
    except ValueError as error:
        raise ValueError(
            explain(
                f"{path} is not the lesson's file",
                got=str(error),
                wanted="a pickle of three pairs of numpy arrays (x, y), and of nothing else",
                fix="delete it and let get_data fetch it again; if it is yours, save the arrays "
                "with np.savez",
                entry="downloads",
            )
        ) from error
