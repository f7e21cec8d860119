"""Figures and what is drawn on them: images in a grid, lines in panels, a figure as HTML.

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

__all__ = ["plot_lines", "plot_points", "plots", "show", "to_html"]

INK, MUTED, MISTAKE = "#1f2933", "#7b8794", "#b45309"
# Apart in brightness too, and none is told from another by red against green alone.
COLOURS = ("#1d4e89", "#d1741b", "#6b7280", "#8a63a8", "#111827")
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
    figure = new_figure(figsize)
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
    figure = new_figure((6 * max(len(panels), 1), 4))
    for i, (title, lines) in enumerate(panels.items()):
        ax = figure.add_subplot(1, len(panels), i + 1)
        points = {
            name: list(zip(range(len(values)) if x is None else x, values, strict=False))
            for name, values in lines.items()
        }
        _draw_lines(ax, points)
        dress(ax, xlabel, title)
    return figure


def plot_points(lines: Mapping[str, Sequence[tuple[float, float]]], xlabel: str) -> Figure:
    """Draws a line for each name through its own points `(x, y)`.

    Examples:
        >>> figure = plot_points({"loss": [(0, 1.0), (10, 0.5)], "val_loss": [(10, 0.6)]}, "batch")
    """
    figure = new_figure((6, 4))
    ax = figure.add_subplot()
    _draw_lines(ax, lines)
    dress(ax, xlabel, "")
    return figure


def _draw_lines(ax: Axes, lines: Mapping[str, Sequence[tuple[float, float]]]) -> None:
    for i, (name, points) in enumerate(lines.items()):
        # Brightness, dashes and marks differ too, for those who do not see the colours.
        style, mark = LINES[i % len(LINES)], MARKS[i % len(MARKS)]
        few = {"marker": mark, "markersize": 4} if len(points) <= 50 else {}
        colour = COLOURS[i % len(COLOURS)]
        at, values = zip(*points, strict=True) if points else ((), ())
        ax.plot(at, values, color=colour, linestyle=style, label=name, **few)  # type: ignore[arg-type]


def to_html(figure: Figure | None = None, alt: str = "") -> str:
    """A figure as an HTML element that has its pixels inside, for reports and pages.

    Args:
        figure: The one to take; pyplot's newest, if not given. It is closed.
        alt: What it shows, for those who do not see it.

    Examples:
        >>> to_html(show(np.eye(3)), "a diagonal")[:32]
        '<img alt="a diagonal" src="data:'
    """
    import base64
    from html import escape

    import matplotlib.pyplot as plt

    figure = figure or plt.gcf()
    data = base64.b64encode(_png(figure)).decode()
    plt.close(figure)
    return f'<img alt="{escape(alt, quote=True)}" src="data:image/png;base64,{data}">'


def new_figure(size: tuple[float, float]) -> Figure:
    """An empty figure of pyplot, of this width and height in inches."""
    import matplotlib.pyplot as plt  # takes half a second: only who draws pays it

    return plt.figure(figsize=size, FigureClass=Picture, layout="constrained")


def dress(ax: Axes, xlabel: str, title: str, whole: bool = True) -> None:
    """Labels, a faint grid and the legend; on whole numbers along x, unless it is a scale."""
    if whole and ax.get_xscale() != "log":
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
