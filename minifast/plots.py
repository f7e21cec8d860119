"""Pictures of predictions, nets and runs: each function draws one and returns its figure.

As those of `minifast.pictures`, on which they are made, none calls `plt.show`, writes a file or
changes the backend.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from .arrays import by_position
from .core import explain, modes_kept, to_np
from .metric_inputs import class_labels
from .metrics import probabilities
from .pictures import COLOURS, INK, MISTAKE, MUTED, dress, new_figure
from .pictures import plot_lines as plot_lines
from .pictures import plot_points as plot_points
from .pictures import plots as plots
from .pictures import show as show
from .pictures import to_html as to_html

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .history import History

__all__ = [
    "plot_activations",
    "plot_calibration",
    "plot_confusion_matrix",
    "plot_history",
    "plot_lr_find",
    "plot_predictions",
    "plot_schedule",
    "plot_top_losses",
    "plot_weights",
    "plots",
    "show",
]

SIGNED = "cividis"  # rises in brightness from end to end: a sign is seen in gray as well


def plot_predictions(
    ims: Any,
    preds: Any,
    targs: Any = None,
    n: int = 16,
    *,
    classes: Sequence[object] | None = None,
    rows: int = 2,
) -> Figure:
    """Draws images with what the net says of them and how sure it is; mistakes are framed.

    Args:
        ims: The images, as for `plots`.
        preds: The net's output for them, `(n, c)`, as `predict` gives it; see
            `minifast.metrics.probabilities`.
        targs: Their classes, `(n,)`, if known.
        n: How many to draw, from the first.
        classes: Names of the classes; their numbers, if not given.
        rows: Rows of the grid.

    Examples:
        >>> figure = plot_predictions(np.random.rand(2, 8, 8), [[0.9, 0.1], [0.2, 0.8]], [0, 0])
        >>> [ax.get_title() for ax in figure.axes]
        ['0 (90 %)', 'says 1 (80 %)\\nis 0']
    """
    chance = probabilities(preds)[:n]
    true = None if targs is None else class_labels(targs, c=chance.shape[1])[:n]
    return _said(by_position(ims)[: len(chance)], chance, true, classes, rows)


def plot_top_losses(
    ims: Any,
    preds: Any,
    targs: Any,
    n: int = 9,
    *,
    classes: Sequence[object] | None = None,
    rows: int = 3,
) -> Figure:
    """Draws the rows whose truth the net thought the least probable: its worst mistakes first.

    Arguments as for `plot_predictions`; `targs` must be there. What looks wrong here is often a
    wrong label.

    Examples:
        >>> figure = plot_top_losses(np.random.rand(2, 8, 8), [[0.9, 0.1], [0.2, 0.8]], [0, 0], 1)
        >>> figure.axes[0].get_title()
        'says 1 (80 %)\\nis 0 (20 %)'
    """
    chance = probabilities(preds)
    true = class_labels(targs, *chance.shape)
    worst = np.argsort(chance[np.arange(len(true)), true], kind="stable")[:n]
    images = [by_position(ims)[int(i)] for i in worst]
    return _said(images, chance[worst], true[worst], classes, rows, both=True)


def _said(
    ims: Any,
    chance: np.ndarray,
    true: np.ndarray | None,
    classes: Sequence[object] | None,
    rows: int,
    both: bool = False,
) -> Figure:
    names = range(chance.shape[1]) if classes is None else list(classes)
    titles, marked = [], []
    for i, row in enumerate(chance):
        said = int(row.argmax())
        text = f"{names[said]} ({row[said]:.0%})".replace("%", " %")
        if true is not None and said != true[i]:
            of_truth = f" ({row[true[i]]:.0%})".replace("%", " %") if both else ""
            text = f"says {text}\nis {names[true[i]]}{of_truth}"
            marked.append(i)
        titles.append(text)
    across = -(-len(titles) // min(rows, len(titles) or 1))
    size = (max(1.5 * across, 4), 2.1 * min(rows, len(titles) or 1))
    figure = plots(ims, figsize=size, rows=rows, titles=titles, marked=marked)
    for ax in figure.axes:
        ax.title.set_fontsize(9)
    return figure


def plot_confusion_matrix(
    cm: Any,
    classes: Sequence[object] | None = None,
    normalize: bool = False,
    title: str = "",
    cmap: str = "Blues",
    figsize: tuple[float, float] | None = None,
) -> Figure:
    """Draws how often each class was taken for each.

    Args:
        cm: Counts, `(c, c)`: rows are the truth, columns what was said;
            `minifast.metrics.confusion_matrix` counts them.
        classes: Names of the classes; their numbers, if not given.
        normalize: Show each row's shares instead of counts.
        title: Drawn above it.
        cmap: matplotlib's colour map.
        figsize: Width and height in inches; by the number of classes, if not given.

    Examples:
        >>> figure = plot_confusion_matrix([[8, 2], [1, 9]], ["cat", "dog"])
    """
    cm = np.asarray(to_np(cm))
    if cm.ndim != 2 or cm.shape[0] != cm.shape[1]:
        raise ValueError(
            explain(
                "cm is no confusion matrix",
                got=f"shape {cm.shape}",
                wanted="(c, c): how often class i was taken for class j",
                fix="plot_confusion_matrix(confusion_matrix(preds, targs))",
                entry="images",
            )
        )
    shares = cm / np.maximum(cm.sum(axis=1, keepdims=True), 1)
    side = 2 + 0.42 * len(cm)
    figure = new_figure(figsize or (side, side))
    ax = figure.add_subplot()
    # Nearly all is on the diagonal: the rest would be white beside it, but for the root.
    ax.imshow(np.sqrt(shares), cmap, vmin=0, vmax=1)
    names = [str(name) for name in (range(len(cm)) if classes is None else classes)]
    ax.set_xticks(range(len(cm)), names, rotation=90 if max(map(len, names)) > 2 else 0)
    ax.set_yticks(range(len(cm)), names)
    for (i, j), count in np.ndenumerate(cm):
        if count:
            text = f"{shares[i, j]:.2f}".lstrip("0") if normalize else str(count)
            colour = "white" if shares[i, j] > 0.3 else INK
            ax.text(j, i, text, ha="center", va="center", color=colour, fontsize=8)
    ax.set(xlabel="what the net says", ylabel="what it is", title=title)
    ax.spines[:].set_visible(False)
    return figure


def plot_calibration(preds: Any, targs: Any, bins: int = 10) -> Figure:
    """Draws how often the net is right when it says it is so sure.

    On the diagonal, of the rows of which it is 80 % sure 80 % are right. Below: how many rows each
    bin has. The title has the expected calibration error, the mean distance from the diagonal, each
    bin weighed by its rows (Guo et al. 2017, [arXiv:1706.04599](https://arxiv.org/abs/1706.04599)).

    Args:
        preds: The net's output, `(n, c)`; see `minifast.metrics.probabilities`.
        targs: Classes, `(n,)`.
        bins: How many equal parts 0..1 has.

    Examples:
        >>> figure = plot_calibration([[0.9, 0.1], [0.2, 0.8]], [0, 0])
        >>> figure.axes[0].get_title()
        'calibration error 0.450'
    """
    chance = probabilities(preds)
    sure, right = chance.max(axis=1), chance.argmax(axis=1) == class_labels(targs, *chance.shape)
    place = np.minimum((sure * bins).astype(int), bins - 1)
    rows = np.bincount(place, minlength=bins)
    there = rows > 0
    said = np.bincount(place, sure, bins)[there] / rows[there]
    hits = np.bincount(place, right, bins)[there] / rows[there]
    error = float((abs(said - hits) * rows[there]).sum() / len(sure))
    figure = new_figure((5, 5))
    ax, below = figure.subplots(2, sharex=True, height_ratios=(3, 1))
    ax.plot([0, 1], [0, 1], color=MUTED, linestyle="--", label="as sure as right")
    ax.plot(said, hits, color=COLOURS[0], marker="o", label="the net")
    dress(ax, "", f"calibration error {error:.3f}", whole=False)
    ax.set(ylabel="how often it is right", ylim=(-0.02, 1.02))
    below.bar((np.arange(bins) + 0.5) / bins, rows, 0.9 / bins, color=COLOURS[0])
    below.set(ylabel="rows", xlabel="how sure it is", xlim=(-0.02, 1.02))
    below.spines[["top", "right"]].set_visible(False)
    return figure


def plot_weights(layer: Any, shape: tuple[int, ...] | None = None, n: int = 32) -> Figure:
    """Draws what each unit of a layer looks for: bright speaks for it, dark against it.

    Args:
        layer: A module with a `weight`, or a net, whose first such layer is taken; or the weights:
            `(units, inputs)`, or `(units, 1 or 3, h, w)` of a convolution.
        shape: What a row of weights is folded to; a square, if not given.
        n: How many units to draw, from the first.

    Raises:
        ValueError: if there are no weights that can be drawn; the message says what to give.

    Examples:
        >>> figure = plot_weights(nn.Sequential(nn.Linear(64, 10), nn.LogSoftmax(dim=1)))
        >>> len(figure.axes)
        10
    """
    weights = to_np(_weights(layer))[:n]
    if weights.ndim == 2:
        side = round(weights.shape[1] ** 0.5)
        weights = weights.reshape(len(weights), *(shape or (side, weights.shape[1] // side)))
    largest = float(abs(weights).max()) or 1.0
    if weights.ndim == 4 and weights.shape[1] == 3:
        weights = 0.5 + weights / largest / 2  # colours; gray is nothing
    rows = max(1, round((len(weights) / 2.5) ** 0.5))
    across = -(-len(weights) // rows)
    return plots(
        weights,
        figsize=(1.3 * across, 1.5 * rows),
        rows=rows,
        titles=range(len(weights)),
        cmap=SIGNED,
        limits=(-largest, largest),
    )


def _weights(layer: Any) -> Tensor:
    if isinstance(layer, nn.Module):
        found = [p for p in layer.parameters() if p.ndim in (2, 4)]
        layer = found[0] if found else torch.empty(0)
    weights = torch.as_tensor(layer).detach()
    if weights.ndim == 2 or (weights.ndim == 4 and weights.shape[1] in (1, 3)):
        return weights
    raise ValueError(
        explain(
            "layer has no weights that can be drawn",
            got=f"weights of shape {tuple(weights.shape)}" if len(weights) else "no weights",
            wanted="(units, inputs), or (units, 1 or 3, h, w) of a convolution",
            fix="plot_weights(net[0]), or of one input channel: plots(conv.weight[:, 0])",
            entry="images",
        )
    )


def plot_activations(
    net: nn.Module, x: Any, layer: str | nn.Module | None = None, n: int = 32
) -> Figure:
    """Draws what the layers make of a batch: histograms, or the pictures that one layer makes.

    The net is run in eval mode and left as it was found.

    Args:
        net: Any module.
        x: A batch as the net takes it, on its device.
        layer: None draws for each layer a histogram of its outputs, with the share that is 0. A
            module of the net, or its name as in `net.named_modules()`, draws its channels for the
            batch's first row.
        n: How many layers or channels to draw, from the first.

    Raises:
        ValueError: if the net has no such layer, or its output is no picture.

    Examples:
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
        >>> len(plot_activations(net, torch.rand(5, 1, 8, 8)).axes)
        4
        >>> len(plot_activations(net, torch.rand(5, 1, 8, 8), layer="1").axes)
        4
    """
    outputs = _outputs(net, x, layer)
    if layer is not None:
        (channels,) = (out[0] for out in outputs.values())
        if channels.ndim != 3:
            raise ValueError(
                explain(
                    "layer makes no pictures",
                    got=f"outputs of shape {tuple(channels.shape)} a row",
                    wanted="(channels, h, w)",
                    fix="plot_activations(net, x) draws histograms",
                    entry="images",
                )
            )
        return plots(channels[:n], rows=max(1, round((len(channels[:n]) / 2.5) ** 0.5)))
    shown = list(outputs.items())[:n]
    across = min(4, len(shown))
    down = -(-len(shown) // max(across, 1))
    figure = new_figure((2.8 * across, 2.3 * down))
    for i, (name, out) in enumerate(shown):
        ax = figure.add_subplot(down, across, i + 1)
        ax.hist(out.flatten().float().numpy(), bins=40, color=COLOURS[0])
        zero = f"{(out == 0).float().mean().item():.0%}".replace("%", " %")
        ax.set_title(f"{name}\n{zero} are 0", color=INK, fontsize=9)
        ax.set_yticks([])
        ax.spines[["top", "right", "left"]].set_visible(False)
    return figure


def _outputs(net: nn.Module, x: Any, layer: str | nn.Module | None) -> dict[str, Tensor]:
    """By its name, what each layer puts out, or the one that is asked for."""
    wanted = {
        f"{name} {type(m).__name__}".strip(): m
        for name, m in net.named_modules()
        if (not list(m.children()) if layer is None else layer in (name, m))
    }
    if not wanted:
        raise ValueError(
            explain(
                "the net has no such layer",
                got=f"layer={layer!r}",
                wanted="one of " + ", ".join(name for name, _ in net.named_modules() if name),
                fix="plot_activations(net, x, layer=net[0])",
                entry="images",
            )
        )
    outputs: dict[str, Tensor] = {}

    def keep(name: str, out: Any) -> None:
        if isinstance(out, Tensor):
            outputs.setdefault(name, out.detach().cpu())

    handles = [
        m.register_forward_hook(lambda m, x, out, name=name: keep(name, out))
        for name, m in wanted.items()
    ]
    try:
        with modes_kept(net), torch.no_grad(), torch.random.fork_rng():
            net.eval()
            net(*x) if isinstance(x, tuple) else net(x)
    finally:
        for handle in handles:
            handle.remove()
    return outputs


def plot_history(history: History, losses: Sequence[float] | None = None) -> Figure:
    """Draws the columns of a history over its epochs: losses on the left, the rest on the right.

    The epoch with the smallest validation loss is marked; without validation data, none.

    Args:
        history: What `fit` gives.
        losses: The losses of all its batches, as `LossRecorder` notes them: drawn thin behind.

    Examples:
        >>> from minifast.history import History
        >>> figure = plot_history(History([{"epoch": 0, "trn_loss": 0.5, "accuracy": 0.8}]))
    """
    columns = {name: history[name] for name in history.columns if name != "epoch"}
    of_losses = {name: values for name, values in columns.items() if name.endswith("loss")}
    others = {name: values for name, values in columns.items() if name not in of_losses}
    panels = {"loss": of_losses, "": others}
    epochs = history["epoch"] if len(history) else []
    figure = plot_lines({title: p for title, p in panels.items() if p}, "epoch", epochs)
    judged = columns.get("val_loss", columns.get("trn_loss", []))
    finite = [(loss, i) for i, loss in enumerate(judged) if loss is not None and loss == loss]
    if len(finite) > 1 and "val_loss" in columns:
        best = epochs[min(finite)[1]]
        for ax in figure.axes:
            ax.axvline(best, color=MISTAKE, linestyle=":", label=f"best: epoch {best}", zorder=0)
            ax.legend(frameon=False)
    if losses and epochs:
        at = epochs[0] - 1 + np.arange(1, len(losses) + 1) * len(epochs) / len(losses)
        figure.axes[0].plot(at, losses, color=MUTED, linewidth=0.5, alpha=0.6, zorder=-1)
        middle = np.quantile(losses, 0.98)  # a wild first batch must not flatten the rest
        figure.axes[0].set_ylim(top=1.1 * max([middle, *(loss for loss, _ in finite)]))
    return figure


def plot_lr_find(lrs: Sequence[float], losses: Sequence[float], suggestion: float) -> Figure:
    """Draws what `lr_find` found: the loss over the rate, and the rate it suggests.

    Examples:
        >>> figure = plot_lr_find([0.1, 1.0, 10.0], [2.0, 1.0, 3.0], 0.1)
    """
    figure = new_figure((6, 4))
    ax = figure.add_subplot()
    ax.plot(lrs, losses, color=COLOURS[0], label="smoothed loss")
    ax.axvline(suggestion, color=MISTAKE, linestyle="--", label=f"suggestion {suggestion:.2g}")
    ax.set_xscale("log")
    dress(ax, "learning rate", "")
    return figure


def plot_schedule(lrs: Any, momenta: Sequence[float] | None = None) -> Figure:
    """Draws rates, and momenta beside them, over the batches.

    Args:
        lrs: A rate for each batch, or a dict of such lists by name. `LossRecorder` notes them in a
            fit; `minifast.plugins.preview` tells them beforehand.
        momenta: Momentum, or Adam's first beta, for each batch.

    Examples:
        >>> figure = plot_schedule([0.1, 0.2, 0.1], [0.95, 0.85, 0.95])
        >>> len(figure.axes)
        2
    """
    panels = {"learning rate": lrs if isinstance(lrs, Mapping) else {"rate": lrs}}
    if momenta is not None and len(momenta):
        panels["momentum"] = {"momentum": momenta}
    return plot_lines(panels, "batch")
