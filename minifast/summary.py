"""What a net is made of: layers, shapes, parameters, multiply-adds, memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .core import modes_kept

__all__ = ["LayerSummary", "Summary", "model_summary"]


@dataclass(frozen=True)
class LayerSummary:
    """One call of a layer.

    Attributes:
        name: As in `net.named_modules()`.
        kind: The name of its class.
        shape: Of what it puts out; None if that is no tensor.
        parameters: How many numbers it learns, those of an earlier call or layer not again.
        frozen: How many of them have `requires_grad=False`.
        macs: Multiply-adds of matrix products, convolutions and attention for this batch.
        bytes: What its output takes.
    """

    name: str
    kind: str
    shape: tuple[int, ...] | None
    parameters: int
    frozen: int
    macs: int
    bytes: int


class Summary(Sequence[LayerSummary]):
    """The layers in the order in which they are called, and the sums over them.

    Attributes:
        parameters: How many numbers the net has to learn, layers that are not called included.
        frozen: How many of them stay as they are.
        macs: Multiply-adds for the batch, those outside of layers included.
        weight_bytes: What parameters and buffers take.
        output_bytes: What the layers' outputs take: about what training keeps of a batch.
    """

    def __init__(self, layers: Sequence[LayerSummary], net: nn.Module, x: Any, macs: int) -> None:
        self.layers = list(layers)
        self.input = _shape(x)
        self.parameters = sum(p.numel() for p in net.parameters())
        self.frozen = sum(p.numel() for p in net.parameters() if not p.requires_grad)
        self.macs = macs
        kept = [*net.parameters(), *net.buffers()]
        self.weight_bytes = sum(t.numel() * t.element_size() for t in kept)
        self.output_bytes = sum(layer.bytes for layer in self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    def __getitem__(self, i: Any) -> Any:  # a row, or a list of them for a slice
        return self.layers[i]

    def __repr__(self) -> str:
        return f"<Summary: {len(self)} layers, {self.parameters:,} parameters>"

    def __str__(self) -> str:
        head = ("layer", "", "output", "parameters", "multiply-adds", "output KiB")
        rows = [
            (
                layer.name,
                layer.kind,
                "" if layer.shape is None else " x ".join(map(str, layer.shape)),
                f"{layer.parameters:,}" + " frozen" * bool(layer.frozen),
                f"{layer.macs:,}",
                f"{layer.bytes / 1024:,.1f}",
            )
            for layer in self.layers
        ]
        widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
        pads = (str.ljust, str.ljust, str.ljust, str.rjust, str.rjust, str.rjust)

        def line(cells: Sequence[str]) -> str:
            fields = zip(pads, cells, widths, strict=True)
            return "  ".join(pad(cell, width) for pad, cell, width in fields).rstrip()

        frozen = f", {self.frozen:,} of them frozen" if self.frozen else ""
        return "\n".join(
            [
                line(head),
                *map(line, rows),
                f"input {' x '.join(map(str, self.input))}",
                f"{self.parameters:,} parameters{frozen}, {self.weight_bytes / 2**20:,.2f} MiB "
                "with buffers",
                f"{self.macs:,} multiply-adds; outputs of the layers "
                f"{self.output_bytes / 2**20:,.2f} MiB",
            ]
        )


def model_summary(net: nn.Module, x: Any) -> Summary:
    """Prints layers, shapes, parameters, multiply-adds and memory of a net; gives the same as data.

    The net is run once in eval mode, without gradients; weights, buffers, modes and random
    generators are left as they were.

    Args:
        net: Any module.
        x: A batch as the net takes it, on its device: a tensor, or a tuple for several inputs. Or
            the shape of one, such as `(64, 784)`, taken as float32.

    Returns:
        A row for each call of a layer without layers of its own, and the sums.

    Examples:
        >>> net = nn.Sequential(nn.Linear(784, 10), nn.LogSoftmax(dim=1))
        >>> summary = model_summary(net, (64, 784))
        layer              output   parameters  multiply-adds  output KiB
        0      Linear      64 x 10       7,850        501,760         2.5
        1      LogSoftmax  64 x 10           0              0         2.5
        input 64 x 784
        7,850 parameters, 0.03 MiB with buffers
        501,760 multiply-adds; outputs of the layers 0.00 MiB
    """
    if isinstance(x, tuple) and all(isinstance(size, int) for size in x):
        p = next(net.parameters(), torch.empty(0))
        x = torch.zeros(x, device=p.device, dtype=p.dtype)
    watch = _Watch()
    try:
        with modes_kept(net), torch.no_grad(), torch.random.fork_rng():
            net.eval()
            watch.follow(net)
            with watch.counter:
                net(*x) if isinstance(x, tuple) else net(x)
    finally:
        for handle in watch.handles:
            handle.remove()
    summary = Summary(watch.rows, net, x, watch.macs())
    print(summary)
    return summary


class _Watch:
    """Notes each call of a layer without layers of its own."""

    def __init__(self) -> None:
        from torch.utils.flop_counter import FlopCounterMode

        self.counter = FlopCounterMode(display=False)
        self.rows: list[LayerSummary] = []
        self.handles: list[Any] = []
        self.before: dict[str, int] = {}
        self.seen: set[Tensor] = set()
        self.uncounted = 0

    def follow(self, net: nn.Module) -> None:
        for name, module in net.named_modules():
            if not list(module.children()):
                begin, end = partial(self.begin, name), partial(self.end, name)
                self.handles.append(module.register_forward_pre_hook(begin))
                self.handles.append(module.register_forward_hook(end))

    def macs(self) -> int:
        return self.counter.get_total_flops() // 2 + self.uncounted

    def begin(self, name: str, module: nn.Module, args: Any) -> None:
        self.before[name] = self.counter.get_total_flops()

    def end(self, name: str, module: nn.Module, args: Any, out: Any) -> None:
        mine = [p for p in module.parameters() if p not in self.seen]
        self.seen.update(mine)
        first = out[0] if isinstance(out, tuple) else out
        tensor = first if isinstance(first, Tensor) else None
        macs = (self.counter.get_total_flops() - self.before[name]) // 2
        if not macs:
            macs = _recurrent(module, tensor)
            self.uncounted += macs
        self.rows.append(
            LayerSummary(
                name,
                type(module).__name__,
                None if tensor is None else tuple(tensor.shape),
                sum(p.numel() for p in mine),
                sum(p.numel() for p in mine if not p.requires_grad),
                macs,
                0 if tensor is None else tensor.numel() * tensor.element_size(),
            )
        )


def _recurrent(module: nn.Module, out: Tensor | None) -> int:
    """Multiply-adds of a recurrent layer, which torch may run as a kernel that it cannot count."""
    if not isinstance(module, nn.RNNBase) or out is None:
        return 0
    places = out.numel() // out.shape[-1]  # rows times steps
    weights = [p for name, p in module.named_parameters() if name.startswith("weight")]
    return places * sum(p.numel() for p in weights)


def _shape(x: Any) -> tuple[int, ...]:
    first = x[0] if isinstance(x, tuple) else x
    return tuple(first.shape) if isinstance(first, Tensor) else ()
