"""What goes on inside a net while it learns."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..callback import Callback, Run
from ..core import explain

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class ActivationStats(Callback):
    """Follows mean, standard deviation and share of dead units of what layers put out.

    A unit is dead in a batch if it is 0 for every row of it.

    Args:
        layers: Which modules to follow; every one without modules of its own, if not given.

    Attributes:
        stats: By the layer's name `{"mean": [...], "std": [...], "dead": [...]}`, a number for each
            training batch; filled when an epoch ends.

    Examples:
        >>> from minifast.testing import example_fit
        >>> watch = ActivationStats()
        >>> history = example_fit([watch])
        >>> list(watch.stats), len(watch.stats["2"]["dead"])
        (['0', '1', '2', '3', '4', '5'], 8)
    """

    def __init__(self, layers: list[nn.Module] | None = None) -> None:
        self.layers = layers
        self.stats: dict[str, dict[str, list[float]]] = {}
        self._unread: dict[str, list[Tensor]] = {}
        self._handles: list[Any] = []

    def __repr__(self) -> str:
        return "ActivationStats()" if self.layers is None else "ActivationStats(layers=...)"

    def on_train_begin(self, run: Run) -> None:
        """Puts a hook on each layer."""
        self.stats, self._unread, self._handles = {}, {}, []
        if not set(self.layers or ()) <= set(run.net.modules()):
            raise ValueError(
                explain(
                    "layers must be modules of the net that is trained",
                    got=", ".join(type(layer).__name__ for layer in self.layers or ()),
                    wanted="modules of net, such as net[0]",
                    fix="ActivationStats([net[0]]), after the last net = ...",
                    entry="freezing",
                )
            )
        for name, module in run.net.named_modules():
            followed = module in self.layers if self.layers else not list(module.children())
            if followed:
                self._handles.append(module.register_forward_hook(self._hook(name)))

    def _hook(self, name: str) -> Callable[..., None]:
        def listen(module: nn.Module, x: Any, out: Any) -> None:
            if module.training and isinstance(out, Tensor) and out.is_floating_point():
                self._unread.setdefault(name, []).append(_describe(out.detach()))

        return listen

    def on_epoch_end(self, run: Run) -> None:
        """Reads what was noted."""
        for name, rows in self._unread.items():
            columns = torch.stack(rows).T.tolist()
            kept = self.stats.setdefault(name, {"mean": [], "std": [], "dead": []})
            for key, values in zip(kept, columns, strict=True):
                kept[key] += values
        self._unread = {}

    def on_train_end(self, run: Run) -> None:
        """Removes the hooks."""
        handles, self._handles = self._handles, []
        for handle in handles:
            handle.remove()

    def plot(self) -> Figure:
        """Draws the three numbers of every layer over the batches."""
        from ..plots import plot_lines

        return plot_lines(
            {key: {n: s[key] for n, s in self.stats.items()} for key in KEYS}, "batch"
        )


KEYS = ("mean", "std", "dead")


def _describe(out: Tensor) -> Tensor:
    units = (out == 0).flatten(1).all(dim=0) if out.ndim > 1 else out == 0
    return torch.stack([out.mean(), out.std(correction=0), units.to(out.dtype).mean()])
