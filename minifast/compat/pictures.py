"""0.7's `fastai.plots`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .. import plots as ours

__all__ = ["ceildiv", "plot_confusion_matrix", "plots"]


def ceildiv(a: float, b: float) -> float:
    """Division, rounded up."""
    return -(-a // b)


def plots(
    ims: Any,
    figsize: tuple[float, float] = (12, 6),
    rows: int = 1,
    interp: bool = False,
    titles: Sequence[Any] | None = None,
    maintitle: str | None = None,
) -> None:
    """Draws images in a grid; the notebook shows it."""
    del interp
    ours.plots(ims, figsize, rows, titles, maintitle=maintitle)


def plot_confusion_matrix(
    cm: Any,
    classes: Sequence[Any],
    normalize: bool = False,
    title: str = "Confusion matrix",
    cmap: Any = "Blues",
    figsize: tuple[float, float] | None = None,
) -> None:
    """Prints and draws how often each class was taken for each."""
    print(cm)
    ours.plot_confusion_matrix(cm, classes, normalize, title, cmap, figsize)
