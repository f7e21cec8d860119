"""A pickle of numpy arrays, read as data.

A pickle is a program: its instructions may import any name and call it. Here they are followed only
as far as they describe arrays of numbers. A name stands for one of three objects of our own that
keep what they are told; nothing is imported and nothing of numpy's is called until the whole
description was found sound.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import warnings
from typing import Any

import numpy as np

MOST_INSTRUCTIONS = 1000  # MNIST takes some 200; also bounds the memory a file can ask for
INSTRUCTIONS = frozenset(
    """PROTO FRAME STOP MARK POP POP_MARK NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG
    LONG1 STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8
    BINBYTES SHORT_BINBYTES BINBYTES8 TUPLE EMPTY_TUPLE TUPLE1 TUPLE2 TUPLE3 LIST EMPTY_LIST
    APPEND APPENDS PUT BINPUT LONG_BINPUT MEMOIZE GET BINGET LONG_BINGET
    GLOBAL STACK_GLOBAL REDUCE BUILD""".split()  # noqa: SIM905
)


class _StandIn:
    """What a name in a pickle stands for here: keeps what the file says, runs nothing.

    Each has a `__setstate__`, as without one pickle writes to the object's attributes.
    """

    def __setstate__(self, state: object) -> None:
        raise ValueError(f"a {type(self).__name__} with a state")


class _Array(_StandIn):
    """A numpy array."""

    def __init__(self, *how: object) -> None:
        self.state: Any = None

    def __setstate__(self, state: object) -> None:
        self.state = state

    def array(self) -> np.ndarray:
        """The array that was described, if the description is sound."""
        match self.state:
            case (1, tuple(shape), _Dtype() as dtype, bool(by_columns), bytes() | str() as data):
                raw = data.encode("latin-1") if isinstance(data, str) else data
            case _:
                raise ValueError(f"an array described as {_brief(self.state)}")
        if not all(isinstance(n, int) and n >= 0 for n in shape):
            raise ValueError(f"an array of shape {_brief(shape)}")
        stored = dtype.dtype()
        if len(raw) != stored.itemsize * math.prod(shape):
            raise ValueError(f"{len(raw)} bytes for a {stored} array of shape {shape}")
        found = np.frombuffer(raw, stored).reshape(shape, order="F" if by_columns else "C")
        return found.astype(stored.newbyteorder("="))  # a copy, so that it can be written to


class _Dtype(_StandIn):
    """A numpy dtype: a kind of number, and its byte order."""

    KINDS = ("f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8")

    def __init__(self, code: object = None, *flags: object) -> None:
        self.code = code
        self.order: object = "<"

    def __setstate__(self, state: object) -> None:
        if not isinstance(state, tuple) or len(state) < 2:
            raise ValueError(f"a dtype described as {_brief(state)}")
        self.order = state[1]

    def dtype(self) -> np.dtype[Any]:
        """The numpy dtype, if it is one of numbers."""
        if self.code not in self.KINDS or self.order not in ("<", ">", "|", "="):
            raise ValueError(f"an array of {_brief(self.code)}, which is no plain number")
        return np.dtype(f"{self.order}{self.code}")


class _Bytes(_StandIn):
    """Bytes as Python 3 writes them in an old pickle: text, and the name of its encoding."""

    def __new__(cls, text: object, codec: object) -> bytes:  # type: ignore[misc]
        if not isinstance(text, str) or codec not in ("latin1", "latin-1"):
            raise ValueError(f"bytes encoded as {_brief(codec)}")
        return text.encode("latin-1")


STANDS_FOR: dict[tuple[str, str], type[_StandIn]] = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("_codecs", "encode"): _Bytes,
}


class _Reader(pickle.Unpickler):
    """Looks a name up in `STANDS_FOR` and nowhere else: nothing is imported."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in STANDS_FOR:
            raise ValueError(f"the name {_brief(f'{module}.{name}')}")
        return STANDS_FOR[module, name]


def read_pairs(raw: bytes, n: int) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    """The numpy arrays of a pickle that holds `n` pairs of them, `((x, y), (x, y), ...)`.

    Raises:
        ValueError: if it holds anything else, in words that say what.

    Examples:
        >>> read_pairs(pickle.dumps([(np.arange(3), np.zeros(1))], protocol=2), 1)
        ((array([0, 1, 2]), array([0.])),)
        >>> read_pairs(pickle.dumps(print), 1)
        Traceback (most recent call last):
        ValueError: the name 'builtins.print'
    """
    try:
        _check_instructions(raw)
        found = _Reader(io.BytesIO(raw), encoding="latin-1").load()
    except (pickle.UnpicklingError, EOFError, IndexError, TypeError, AttributeError) as error:
        raise ValueError(f"a pickle that does not hold together: {error}") from error
    # No deeper than this: what refers to itself, or a million times to the same, is not followed.
    if not isinstance(found, tuple | list) or len(found) != n:
        raise ValueError(f"{_brief(found)}, not {n} pairs")
    return tuple(_pair(part) for part in found)


def _pair(part: object) -> tuple[np.ndarray, np.ndarray]:
    match part:
        case (_Array() as x, _Array() as y):
            return x.array(), y.array()
    raise ValueError(f"{_brief(part)} where a pair of arrays should be")


def _check_instructions(raw: bytes) -> None:
    """Refuses a pickle of other or more instructions than arrays take, before one is followed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of odd escapes in its text, which is no program of ours
        for count, (instruction, argument, _) in enumerate(pickletools.genops(raw)):
            if instruction.name not in INSTRUCTIONS:
                raise ValueError(f"the pickle instruction {instruction.name}")
            # A PUT makes pickle's table as long as its argument.
            slot = int(argument or 0) if instruction.name.endswith("PUT") else 0
            if max(count, slot) > MOST_INSTRUCTIONS:
                raise ValueError("more pickle instructions than arrays need")


def _brief(value: object) -> str:
    """A value as an error may show it: strings shortened and quoted, of others only the type."""
    return repr(value[:60]) if isinstance(value, str) else type(value).__name__
