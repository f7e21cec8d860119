"""What an object holds: its attributes, what a function closes over, the parts of a partial."""

from __future__ import annotations

import functools
import types
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from torch import Tensor, nn

DEPTH = 6  # a generator in a dataset in a Subset in a DataLoader is three deep
MOST = 100  # parts of a list or dict that are looked at: longer ones hold rows
LEAVES = (str, bytes, int, float, complex, type(None), type, types.ModuleType, Tensor, np.ndarray)


def reachable(root: Any, kind: type | tuple[type, ...]) -> dict[str, Any]:
    """The objects of a kind that `root` is or holds, each once, by the path that leads to it.

    Examples:
        >>> import random
        >>> class Holder:
        ...     def __init__(self):
        ...         self.inner = [random.Random(1)]
        >>> list(reachable(Holder(), random.Random))
        ['.inner.0']
    """
    found: dict[str, Any] = {}
    seen: set[int] = set()
    waiting = deque([("", root, 0)])
    while waiting:
        path, value, depth = waiting.popleft()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, kind):
            found[path] = value
        elif depth < DEPTH:
            waiting += [(f"{path}.{name}", part, depth + 1) for name, part in _parts(value, kind)]
    return found


def _parts(value: Any, kind: Any) -> Iterable[tuple[Any, Any]]:
    if isinstance(value, (*LEAVES, nn.Module)) or _is_running(value):
        return ()
    if isinstance(value, functools.partial):
        return ("func", value.func), ("args", value.args), ("keywords", value.keywords)
    if isinstance(value, types.MethodType):
        return ("self", value.__self__), ("func", value.__func__)
    if isinstance(value, types.FunctionType):
        return _closed_over(value, kind)
    if isinstance(value, dict):
        return value.items() if len(value) <= MOST else ()
    if isinstance(value, list | tuple):
        return enumerate(value) if len(value) <= MOST else ()
    return vars(value).items() if hasattr(value, "__dict__") else ()


def _is_running(value: Any) -> bool:
    """Whether it is a loader's iterator, which holds the processes and queues of its workers."""
    return isinstance(value, Iterator) and type(value).__module__.startswith(ITERATORS)


ITERATORS = "torch.utils.data.", "torchdata."  # modules: the classes have private names


def _closed_over(function: types.FunctionType, kind: Any) -> Iterator[tuple[str, Any]]:
    """Its nonlocal variables, and those of its global ones that are of the kind themselves."""
    code = function.__code__
    for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield f"({name})", cell.cell_contents
        except ValueError:  # not assigned yet
            continue
    for name in code.co_names:
        value = function.__globals__.get(name)
        if isinstance(value, kind):
            yield f"({name})", value
