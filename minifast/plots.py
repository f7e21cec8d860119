"""Pictures: each function draws one and returns its matplotlib figure.

None of them calls `plt.show`, writes a file or changes the backend. In a notebook the figure is
shown once, at the end of its cell; in a script `plt.show()` shows it and `figure.savefig` saves it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from .core import explain, in_notebook, to_np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from .history import History

__all__ = ["plots", "show"]

INK, MUTED, MISTAKE = "#1f2933", "#7b8794", "#b45309"
LINES, MARKS = ("-", "--", ":", "-."), ("o", "s", "^", "D", "v")


class Picture(Figure):
    """A figure that a notebook shows once, also where its cell ends with the figure itself.

    The inline backend shows the figures that are open when a cell ends. The one that the cell's
    last line gives would be shown twice; here it is closed once it is shown.
    """

    def _ipython_display_(self) -> None:
        import matplotlib.pyplot as plt
        from IPython.display import Image, display

        if in_notebook():
            display(Image(_png(self)))
        else:
            print(self)
        if "inline" in plt.get_backend():
            plt.close(self)


def show(img: Any, title: object = None, figsize: tuple[float, float] = (4, 4)) -> Figure:
    """Draws one image.

    Args:
        img: `(h, w)` gray, `(h, w, 3 or 4)` colour, or the same with the channel first; array or
            tensor. Bytes are taken as 0..255; gray values are spread from black to white.
        title: Drawn above it.
        figsize: Width and height in inches.

    Raises:
        ValueError: for any other shape; the message says how to reshape.

    Examples:
        >>> figure = show(np.eye(28), "a line")
    """
    return plots([img], figsize=figsize, titles=None if title is None else [title])


def plots(
    ims: Any,
    figsize: tuple[float, float] = (12, 6),
    rows: int = 2,
    titles: Sequence[object] | np.ndarray | None = None,
    *,
    maintitle: str | None = None,
    cmap: str = "gray",
    limits: tuple[float, float] | None = None,
    marked: Sequence[int] = (),
) -> Figure:
    """Draws images in a grid.

    Args:
        ims: The images, of shapes as for `show`: a list of them or an array `(n, ...)`.
        figsize: Width and height in inches.
        rows: Rows of the grid.
        titles: One for each image.
        maintitle: Drawn above all.
        cmap: matplotlib's colour map for images without colour.
        limits: The values at its two ends; each image's own extremes, if not given.
        marked: Numbers of the images to frame and to set in bold, such as mistakes.

    Raises:
        ValueError: if an image has another shape, or there are fewer titles than images.

    Examples:
        >>> figure = plots(np.random.rand(6, 28, 28), titles=range(6))
        >>> len(figure.axes)
        6
    """
    import matplotlib.pyplot as plt  # takes half a second: only who draws pays it

    images = [_image(img, i) for i, img in enumerate(ims)]
    texts = [] if titles is None else [str(title) for title in titles]
    if texts and len(texts) < len(images):
        raise ValueError(
            explain(
                "titles is shorter than ims",
                got=f"{len(texts)} titles for {len(images)} images",
                wanted="a title for each image",
                fix=f"plots(ims[:{len(texts)}], titles=titles)",
                entry="images",
            )
        )
    rows = min(rows, len(images)) or 1
    figure = plt.figure(figsize=figsize, FigureClass=Picture, layout="constrained")
    for i, image in enumerate(images):
        ax = figure.add_subplot(rows, -(-len(images) // rows), i + 1)
        ax.imshow(image, cmap, vmin=limits and limits[0], vmax=limits and limits[1])
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
        if texts:
            ax.set_title(texts[i], color=INK)
        if i in marked:
            _mark(ax)
    if maintitle is not None:
        figure.suptitle(maintitle, color=INK)
    return figure


def _mark(ax: Axes) -> None:
    ax.spines[:].set(visible=True, color=MISTAKE, linewidth=4)
    ax.title.set(color=MISTAKE, fontweight="bold")


def plot_history(history: History) -> Figure:
    """Draws the columns of a history over its epochs: losses on the left, the rest on the right.

    Examples:
        >>> from minifast.history import History
        >>> figure = plot_history(History([{"epoch": 0, "trn_loss": 0.5, "accuracy": 0.8}]))
    """
    columns = {name: history[name] for name in history.columns if name != "epoch"}
    losses = {name: values for name, values in columns.items() if name.endswith("loss")}
    others = {name: values for name, values in columns.items() if name not in losses}
    panels = {"loss": losses, "": others}
    epochs = history["epoch"] if len(history) else []
    return plot_lines({title: p for title, p in panels.items() if p}, "epoch", epochs)


def plot_lines(
    panels: Mapping[str, Mapping[str, Sequence[float]]],
    xlabel: str,
    x: Sequence[float] | None = None,
) -> Figure:
    """Draws panels side by side, each with a line for each name.

    Args:
        panels: By title, the values by name.
        xlabel: What they are drawn over.
        x: Where; 0, 1, 2, ... if not given.

    Examples:
        >>> figure = plot_lines({"mean": {"layer 0": [0.1, 0.2]}}, "batch")
    """
    import matplotlib.pyplot as plt

    size = (6 * max(len(panels), 1), 4)
    figure = plt.figure(figsize=size, FigureClass=Picture, layout="constrained")
    for i, (title, lines) in enumerate(panels.items()):
        ax = figure.add_subplot(1, len(panels), i + 1)
        for number, (name, values) in enumerate(lines.items()):
            # Line, dashes and marks differ too, for those who do not see the colours.
            style, mark = LINES[number % len(LINES)], MARKS[number % len(MARKS)]
            few = {"marker": mark, "markersize": 4} if len(values) <= 50 else {}
            at = range(len(values)) if x is None else x
            ax.plot(at, values, linestyle=style, label=name, **few)  # type: ignore[arg-type]
        _dress(ax, xlabel, title)
    return figure


def plot_lr_find(lrs: Sequence[float], losses: Sequence[float], suggestion: float) -> Figure:
    """Draws what `lr_find` found: the loss over the rate, and the rate it suggests.

    Examples:
        >>> figure = plot_lr_find([0.1, 1.0, 10.0], [2.0, 1.0, 3.0], 0.1)
    """
    import matplotlib.pyplot as plt

    figure = plt.figure(figsize=(6, 4), FigureClass=Picture, layout="constrained")
    ax = figure.add_subplot()
    ax.plot(lrs, losses, label="smoothed loss")
    ax.axvline(suggestion, color=MISTAKE, linestyle="--", label=f"suggestion {suggestion:.2g}")
    ax.set_xscale("log")
    _dress(ax, "learning rate", "")
    return figure


def _dress(ax: Axes, xlabel: str, title: str) -> None:
    if ax.get_xscale() != "log":
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel(xlabel, color=INK)
    ax.set_title(title, color=INK)
    ax.grid(color=MUTED, alpha=0.25)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False)


def _image(img: Any, i: int) -> np.ndarray:
    """The image as matplotlib draws it: `(h, w)`, or `(h, w, 3 or 4)`."""
    image = to_np(img)
    if image.ndim == 3 and image.shape[-1] not in (1, 3, 4) and image.shape[0] in (1, 3, 4):
        image = np.moveaxis(image, 0, -1)
    if image.ndim == 3 and image.shape[-1] == 1:
        image = image[..., 0]
    if image.ndim == 2 or (image.ndim == 3 and image.shape[-1] in (3, 4)):
        return cast(np.ndarray, image)
    side = int(image.size**0.5)
    square = image.ndim == 1 and side * side == image.size
    raise ValueError(
        explain(
            f"image {i} has a shape that cannot be drawn",
            got=f"shape {image.shape}",
            wanted="(h, w), (h, w, 3 or 4), or (3 or 4, h, w)",
            fix=f"reshape flat rows: x.reshape(-1, {side}, {side})"
            if square
            else "a list or array of images: plots(ims), of one: show(img)",
            entry="images",
        )
    )


def _png(figure: Figure) -> bytes:
    import io

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", bbox_inches="tight")
    return buffer.getvalue()
