"""Random generators: where they are, what state they are in, and how they get it back."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch

from .reach import reachable

__all__: list[str] = []  # of use to the package alone

KINDS = (
    torch.Generator,
    np.random.Generator,
    np.random.RandomState,
    np.random.BitGenerator,
    random.Random,
)
POSITIONS = {"pos": 624, "buffer_pos": 4}  # of MT19937 and Philox in their numbers drawn ahead


def generators(loader: Any) -> dict[str, Any]:
    """Every generator that draws for a loader, by the path that leads to it.

    Those of PyTorch, NumPy and Python that are attributes of the loader, its samplers, its dataset,
    what these wrap, and the functions that they call.

    Examples:
        >>> data = torch.utils.data.DataLoader([1, 2], shuffle=True, generator=torch.Generator())
        >>> list(generators(data))
        ['.generator']
    """
    found = reachable(loader, KINDS)
    # The operating system's source of random numbers has no state.
    return {path: g for path, g in found.items() if not isinstance(g, random.SystemRandom)}


def random_state(loader: Any) -> dict[str, Any]:
    """The state of all generators, as tensors, numbers, strings, lists and dicts.

    Those are PyTorch's (and its GPUs'), NumPy's and Python's global ones, and the loader's.
    """
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
        "numpy": _plain(np.random.get_state(legacy=False)),
        "python": random.getstate(),
        "loader": {path: _state(each) for path, each in generators(loader).items()},
        "started": _has_workers(loader) and loader._iterator is not None,
    }


def set_random_state(state: dict[str, Any], loader: Any) -> None:
    """Puts the generators into the state that `random_state` found, or that a file holds."""
    torch.set_rng_state(state["torch"])
    here = torch.cuda.device_count() if state["cuda"] else 0
    for i, each in enumerate(state["cuda"][:here]):  # it may come from a machine with more of them
        torch.cuda.set_rng_state(each, i)
    np.random.set_state(_arrays(state["numpy"]))
    random.setstate(_tuples(state["python"]))
    for path, each in generators(loader).items():
        if path in state["loader"]:
            _set(each, state["loader"][path])


def start_alike(loader: Any, state: dict[str, Any]) -> None:
    """Starts a loader's lasting workers if they ran when the state was taken, or ends them.

    A DataLoader with `persistent_workers=True` draws a number when it starts them and none in later
    passes, so the orders that follow depend on it.
    """
    if not _has_workers(loader):
        return
    if state["started"] and loader._iterator is None:
        iter(loader)
    elif not state["started"]:
        loader._iterator = None


def _has_workers(loader: Any) -> bool:
    return bool(getattr(loader, "persistent_workers", False)) and hasattr(loader, "_iterator")


def _state(generator: Any) -> Any:
    if isinstance(generator, torch.Generator):
        return generator.get_state()
    if isinstance(generator, random.Random):
        return generator.getstate()
    if isinstance(generator, np.random.RandomState):
        return _plain(generator.get_state(legacy=False))
    return _plain(getattr(generator, "bit_generator", generator).state)


def _set(generator: Any, state: Any) -> None:
    if isinstance(generator, torch.Generator):
        generator.set_state(state)
    elif isinstance(generator, random.Random):
        generator.setstate(_tuples(state))
    elif isinstance(generator, np.random.RandomState):
        generator.set_state(_arrays(state))
    else:
        getattr(generator, "bit_generator", generator).state = _arrays(state)


def _tuples(state: Any) -> Any:
    """The state of one of Python's generators, which takes tuples, from a file that has lists."""
    version, internal, gauss = state
    return version, tuple(internal), gauss


def _plain(value: Any) -> Any:
    """NumPy's arrays as lists with their dtype, so that a file can hold them as data."""
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, np.ndarray):
        return {"dtype": str(value.dtype), "array": value.tolist()}
    return value.item() if isinstance(value, np.generic) else value


def _arrays(value: Any) -> Any:
    """What `_plain` was given.

    Raises:
        ValueError: for a position outside of the numbers there are, where NumPy itself would read.
    """
    if not isinstance(value, dict):
        return value
    if set(value) == {"dtype", "array"}:
        return np.array(value["array"], dtype=value["dtype"])
    for name, most in POSITIONS.items():
        if name in value and not 0 <= value[name] <= most:
            raise ValueError(f"{name} of NumPy's generator is {value[name]}, not in 0..{most}")
    return {key: _arrays(part) for key, part in value.items()}
