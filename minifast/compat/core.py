"""0.7's small helpers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn, optim

from .. import core as ours
from ..core import T as T
from ..core import to_gpu as to_gpu
from ..core import to_np as to_np
from ..storage import load_weights, save_weights
from . import cuda

__all__ = [
    "USE_GPU",
    "VV",
    "A",
    "AdaptiveConcatPool2d",
    "BasicModel",
    "Flatten",
    "Lambda",
    "SGD_Momentum",
    "SimpleNet",
    "SingleModel",
    "T",
    "V",
    "apply_leaf",
    "chain_params",
    "children",
    "chunk_iter",
    "delistify",
    "is_iter",
    "is_listy",
    "listify",
    "load_model",
    "map_none",
    "map_over",
    "noop",
    "one_hot",
    "partition",
    "save_model",
    "set_trainable",
    "set_trainable_attr",
    "split_by_idxs",
    "sum_geom",
    "to_gpu",
    "to_np",
    "trainable_params_",
]

USE_GPU = torch.cuda.is_available()
"""Whether there is a GPU of CUDA's make."""


def V(x: Any, requires_grad: bool = False, volatile: bool = False) -> Any:  # noqa: N802
    """minifast's `V`, and where `.cuda()` went if that is no GPU of CUDA's make."""
    if isinstance(x, list | tuple):
        return [V(o, requires_grad, volatile) for o in x]
    return ours.V(cuda.followed(x), requires_grad, volatile)


class Singles(torch.Tensor):
    """A vector whose parts, taken one by one, are vectors of one number: as torch had it then."""

    def __iter__(self) -> Iterator[torch.Tensor]:
        plain = self.as_subclass(torch.Tensor)
        return iter(plain.split(1) if plain.ndim == 1 else plain.unbind())


def VV(x: Any) -> Any:  # noqa: N802
    """`V`, of which `m(*VV(rows))` hands over parts of shape (1,).

    Examples:
        >>> [part.shape for part in VV(np.array([3, 5]))]
        [torch.Size([1]), torch.Size([1])]
    """
    if isinstance(x, list | tuple):
        return [VV(o) for o in x]
    v = V(x)
    return v.as_subclass(Singles) if v.ndim == 1 else v


def A(*a: Any) -> Any:  # noqa: N802
    """A numpy array, or a list of them for several."""
    return np.array(a[0]) if len(a) == 1 else [np.array(o) for o in a]


def SGD_Momentum(momentum: float) -> Callable[..., Any]:  # noqa: N802
    """SGD with this momentum, to be given parameters."""
    return partial(optim.SGD, lr=0.01, momentum=momentum)


def sum_geom(a: float, r: float, n: int) -> float:
    """`a + a r + a r² + ...`, n of them."""
    return a * n if r == 1 else round(a * (1 - r**n) / (1 - r))


def is_listy(x: Any) -> bool:
    """Whether it is a list or a tuple."""
    return isinstance(x, list | tuple)


def is_iter(x: Any) -> bool:
    """Whether one can go through it."""
    return isinstance(x, Iterable)


def map_over(x: Any, f: Callable[[Any], Any]) -> Any:
    """`f` of it, or of each of a list."""
    return [f(o) for o in x] if is_listy(x) else f(x)


def map_none(x: Any, f: Callable[[Any], Any]) -> Any:
    """`f` of it, unless it is None."""
    return None if x is None else f(x)


def listify(x: Any, y: Any) -> list[Any]:
    """`x` as a list as long as `y` (a list, or a number)."""
    listed = list(x) if is_listy(x) or (isinstance(x, np.ndarray) and x.ndim) else [x]
    n = y if isinstance(y, int) else len(y)
    return listed * n if len(listed) == 1 else listed


def delistify(x: Any) -> Any:
    """The first of a list."""
    return x[0] if is_listy(x) else x


def one_hot(a: Any, c: int) -> Any:
    """Rows of an identity matrix."""
    return np.eye(c)[a]


def partition(a: Any, sz: int) -> list[Any]:
    """Pieces of this size."""
    return [a[i : i + sz] for i in range(0, len(a), sz)]


def split_by_idxs(seq: Any, idxs: Iterable[int]) -> Iterator[Any]:
    """The pieces between the places `idxs`."""
    last = 0
    for idx in idxs:
        if not -len(seq) <= idx < len(seq):
            raise KeyError(f"idx {idx} is out of range for {len(seq)}")
        yield seq[last:idx]
        last = idx
    yield seq[last:]


def chunk_iter(iterable: Iterable[Any], chunk_size: int) -> Iterator[list[Any]]:
    """Lists of so many at a time."""
    chunk: list[Any] = []
    for each in iterable:
        chunk.append(each)
        if len(chunk) == chunk_size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def noop(*args: Any, **kwargs: Any) -> None:
    """Does nothing."""


def children(m: Any) -> list[Any]:
    """The parts of a module."""
    return list(m) if is_listy(m) else list(m.children())


def chain_params(p: Any) -> list[nn.Parameter]:
    """The parameters of modules."""
    modules = p if is_listy(p) else [p]
    return [each for m in modules for each in m.parameters()]


def trainable_params_(m: Any) -> list[nn.Parameter]:
    """Those that learn."""
    return [p for p in chain_params(m) if p.requires_grad]


def set_trainable_attr(m: nn.Module, b: bool) -> None:
    """Lets a module's parameters learn, or not."""
    m.trainable = b  # type: ignore[assignment]
    for p in m.parameters():
        p.requires_grad_(b)


def apply_leaf(m: nn.Module, f: Callable[[nn.Module], Any]) -> None:
    """`f` of a module and of all in it, from the root down."""
    f(m)
    for part in m.children():
        apply_leaf(part, f)


def set_trainable(part: Any, b: bool) -> None:
    """Lets a module, or a list of them, learn, or not."""
    for m in part if is_listy(part) else [part]:
        apply_leaf(m, lambda each: set_trainable_attr(each, b))


def save_model(m: nn.Module, p: Any) -> None:
    """Writes weights."""
    save_weights(m, p)


def load_model(m: nn.Module, p: Any) -> None:
    """Reads weights, as data."""
    load_weights(m, p)


class BasicModel:
    """A model and what it is called."""

    def __init__(self, model: nn.Module, name: str = "unnamed") -> None:
        self.model, self.name = model, name

    def get_layer_groups(self, do_fc: bool = False) -> list[Any]:
        """Its parts."""
        return children(self.model)


class SingleModel(BasicModel):
    """A model whose parts have one rate."""

    def get_layer_groups(self, do_fc: bool = False) -> list[Any]:
        """The whole."""
        return [self.model]


class SimpleNet(nn.Module):
    """Linear layers with ReLU between, and log-probabilities at the end."""

    def __init__(self, layers: list[int]) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(a, b) for a, b in pairwise(layers)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Log-probabilities of the classes."""
        x = x.flatten(1)
        for layer in self.layers:
            scores = layer(x)
            x = F.relu(scores)
        return F.log_softmax(scores, dim=-1)


class Lambda(nn.Module):
    """A function as a layer."""

    def __init__(self, f: Callable[..., Any]) -> None:
        super().__init__()
        self.f = f

    def forward(self, x: torch.Tensor) -> Any:
        """What the function makes of it."""
        return self.f(x)


class Flatten(nn.Module):
    """Rows of numbers."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`(n, ...)` as `(n, k)`."""
        return x.flatten(1)


class AdaptiveConcatPool2d(nn.Module):
    """Maximum and mean of each channel, one after the other."""

    def __init__(self, sz: Any = None) -> None:
        super().__init__()
        self.sz = sz or (1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`(n, c, h, w)` as `(n, 2 c, *sz)`."""
        pools = [F.adaptive_max_pool2d(x, self.sz), F.adaptive_avg_pool2d(x, self.sz)]
        return torch.cat(pools, 1)
