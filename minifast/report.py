"""What a net gets right and wrong, class by class."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from .core import explain, to_np
from .files import whole_file
from .history import as_text, html_table
from .metric_inputs import class_labels
from .metrics import confusion_matrix, probabilities
from .prediction import predictions
from .stepper import Stepper
from .team import checking, failing_together

__all__ = ["Report", "report"]

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Report:
    """What `report` found.

    Attributes:
        accuracy: Share of the rows that are right.
        per_class: A dict for each class: `class`, `rows`, `accuracy` (how many of its rows are
            found), `precision` (how many of the rows taken for it are of it).
        confused: The pairs taken for one another most often: `truth`, `said`, `rows`, and `share`
            of the truth's rows.
        worst: The rows whose truth the net thought the least probable: `row`, `truth`, `said`,
            `of_truth` and `of_said`, the probabilities of the two.
        matrix: The confusion matrix, `(c, c)`, rows are the truth.
        probabilities: Of each row for each class, `(n, c)`.
        targs: The truth, `(n,)`.
        images: The inputs of the worst rows, if they can be drawn.
        classes: Names of the classes.
    """

    accuracy: float
    per_class: Rows
    confused: Rows
    worst: Rows
    matrix: np.ndarray
    probabilities: np.ndarray
    targs: np.ndarray
    images: list[np.ndarray] | None
    classes: list[str]

    def __repr__(self) -> str:
        return f"<Report: {len(self.targs):,} rows, accuracy {self.accuracy:.4f}>"

    def __str__(self) -> str:
        parts = [f"{len(self.targs):,} rows, accuracy {self.accuracy:.4f}"]
        for title, rows in self._tables():
            parts += ["", title, _text(rows)]
        return "\n".join(parts)

    def _tables(self) -> Iterator[tuple[str, Rows]]:
        yield "By class", self.per_class
        if self.confused:
            yield "Taken for one another", self.confused
        yield "Worst rows", self.worst

    def _repr_html_(self) -> str:
        """The tables that a notebook shows."""
        head = f"<p>{len(self.targs):,} rows, accuracy {self.accuracy:.4f}</p>"
        return head + "".join(
            f"<h3>{title}</h3>{html_table(list(rows[0]), rows)}" for title, rows in self._tables()
        )

    def to_html(self, path: Path | str, title: str = "Report") -> None:
        """Writes tables and pictures into one file that needs no other, whole or not at all.

        Args:
            path: Where to.
            title: The page's title.
        """
        from .plots import plot_calibration, plot_confusion_matrix, plot_top_losses, to_html

        pictures = [
            (
                "Confusion matrix",
                plot_confusion_matrix(self.matrix, self.classes),
                "How often each class was taken for each; the numbers are in the tables above",
            ),
            (
                "How sure, how right",
                plot_calibration(self.probabilities, self.targs),
                "How often the net is right over how sure it is",
            ),
        ]
        if self.images is not None:
            at = [row["row"] for row in self.worst]
            figure = plot_top_losses(
                self.images,
                self.probabilities[at],
                self.targs[at],
                len(at),
                classes=self.classes,
                rows=-(-len(at) // 4),
            )
            pictures.append(("Worst rows", figure, "The rows of the table above, as pictures"))
        shown = "".join(f"<h2>{name}</h2>{to_html(fig, alt)}" for name, fig, alt in pictures)
        page = PAGE.format(
            title=escape(title), body=self._repr_html_().replace("h3>", "h2>") + shown
        )
        with whole_file(path) as file:
            file.write(page.encode())


PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; color: #1f2933; background: #fff;
       max-width: 60rem; margin: 2rem auto; padding: 0 1rem }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums }}
th, td {{ text-align: right; padding: .15rem .8rem; border-bottom: 1px solid #d9dee3 }}
img {{ max-width: 100% }}
</style>
<h1>{title}</h1>
{body}
</html>
"""


def report(
    net: nn.Module,
    dl: Any,
    classes: Sequence[object] | None = None,
    n_worst: int = 12,
    *,
    stepper: Stepper | None = None,
) -> Report:
    """What a net that tells classes gets right and wrong: as data, text and one HTML file.

    Args:
        net: Any module that gives a number for each class, `(n, c)`; see
            `minifast.metrics.probabilities`.
        dl: A loader of batches `(x, y)`, such as `md.val_dl`, with y a class for each row: `(n,)`
            or in a column `(n, 1)`.
            or in a column `(n, 1)`.
        classes: Names of the classes; their numbers, if not given.
        n_worst: How many of the worst rows and most confused pairs to keep.
        stepper: The stepper that the net was trained with, if its `forward` is not the plain one.

    Raises:
        ValueError: if there are no rows, or the targets are not classes 0 to c - 1.

    Examples:
        >>> import torch
        >>> from minifast import ArrayLoader
        >>> dl = ArrayLoader(torch.tensor([[2.0, 0.0], [0.0, 1.0], [1.0, 0.0]]),
        ...                  torch.tensor([0, 1, 1]))
        >>> found = report(nn.Identity(), dl, classes=["cat", "dog"])
        >>> print(found)
        3 rows, accuracy 0.6667
        <BLANKLINE>
        By class
        class  rows  accuracy  precision
          cat     1  1.000000   0.500000
          dog     2  0.500000   1.000000
        <BLANKLINE>
        Taken for one another
        truth  said  rows     share
          dog   cat     1  0.500000
        <BLANKLINE>
        Worst rows
        row  truth  said  of_truth   of_said
          2    dog   cat  0.268941  0.731059
          1    dog   dog  0.731059  0.731059
          0    cat   cat  0.880797  0.880797
    """
    preds, targs, images_of = _predicted(net, dl, stepper, n_worst)
    chance = probabilities(preds)
    targs = class_labels(targs, len(chance), chance.shape[1])
    _check_names(classes, chance.shape[1])
    names = [str(name) for name in (range(chance.shape[1]) if classes is None else classes)]
    matrix = confusion_matrix(chance, targs)
    rows, taken, hits = matrix.sum(axis=1), matrix.sum(axis=0), matrix.diagonal()
    per_class = [
        {
            "class": names[i],
            "rows": int(rows[i]),
            "accuracy": _share(hits[i], rows[i]),
            "precision": _share(hits[i], taken[i]),
        }
        for i in range(len(names))
    ]
    pairs = [(int(n), i, j) for (i, j), n in np.ndenumerate(matrix) if n and i != j]
    confused = [
        {"truth": names[i], "said": names[j], "rows": n, "share": n / int(rows[i])}
        for n, i, j in sorted(pairs, key=lambda pair: (-pair[0], pair[1:]))[:n_worst]
    ]
    of_truth, said = chance[np.arange(len(targs)), targs], chance.argmax(axis=1)
    at = np.argsort(of_truth, kind="stable")[:n_worst].tolist()
    worst = [
        {
            "row": i,
            "truth": names[targs[i]],
            "said": names[said[i]],
            "of_truth": float(of_truth[i]),
            "of_said": float(chance[i, said[i]]),
        }
        for i in at
    ]
    accuracy = float((said == targs).mean())
    images = None if images_of is None else [images_of[row] for row in at]
    return Report(accuracy, per_class, confused, worst, matrix, chance, targs, images, names)


def _check_names(classes: Sequence[object] | None, c: int) -> None:
    if classes is not None and len(classes) != c:
        raise ValueError(
            explain(
                "classes must have a name for each output",
                got=f"{len(classes)} names for {c} outputs",
                wanted="as many names as the net has outputs; two for a net of one output",
                fix="report(net, md.val_dl)",
                entry="metrics",
            )
        )


def _predicted(
    net: nn.Module, dl: Any, stepper: Stepper | None, n_worst: int
) -> tuple[np.ndarray, np.ndarray, dict[int, np.ndarray] | None]:
    """Predictions and targets, and the images of the rows that may be among the worst, by row.

    They are found in one pass: a loader may shuffle, draw other augmentations or be used up.
    """
    parts: list[tuple[Any, Any]] = []
    images, begin = _WorstImages(n_worst), 0
    with checking():
        batches = predictions(net, dl, stepper)
    with failing_together():
        for x, preds, targs in batches:
            parts.append((preds, targs))
            images.add(begin, x, preds, targs)
            begin += len(targs)
    preds, targs = (np.concatenate(each) for each in zip(*parts, strict=True))
    return preds, targs, images.by_row()


class _WorstImages:
    """The images of the rows whose target has the least probability so far.

    Whether outputs are probabilities or scores is known when all are there, so the rows are ranked
    as both, and the first `n` of each ranking are kept.
    """

    def __init__(self, n: int) -> None:
        self.n, self.drawable = n, True
        self.kept: list[tuple[float, float, int, np.ndarray]] = []

    def add(self, begin: int, x: Any, preds: Any, targs: Any) -> None:
        """Adds a batch whose first row has the number `begin`."""
        classes = getattr(targs, "ndim", 0) == 1 and targs.dtype.kind in "iu"
        arrays = isinstance(x, Tensor) and isinstance(preds, np.ndarray) and preds.ndim in (1, 2)
        if not (self.drawable and classes and arrays and len(x) == len(targs)):
            self.drawable = False
            return
        scores = preds.astype(np.float64).reshape(len(preds), -1)
        if scores.shape[1] == 1:
            scores = np.concatenate([-scores, scores], axis=1)
        softmax = np.exp(scores - scores.max(axis=1, keepdims=True))
        softmax /= softmax.sum(axis=1, keepdims=True)
        rows, known = np.arange(len(targs)), targs.clip(0, scores.shape[1] - 1)
        ranks = scores[rows, known], softmax[rows, known]
        for i in sorted({int(i) for p in ranks for i in np.argsort(p, kind="stable")[: self.n]}):
            image = _picture(to_np(x[i]))
            if image is None:
                self.drawable = False
                return
            self.kept.append((ranks[0][i], ranks[1][i], begin + i, np.array(image)))
        first = [sorted(self.kept, key=itemgetter(by))[: self.n] for by in (0, 1)]
        self.kept = list({row[2]: row for each in first for row in each}.values())
        self.kept.sort(key=lambda row: row[2])

    def by_row(self) -> dict[int, np.ndarray] | None:
        """The images by row number; None if the rows are not images."""
        return {row: image for *_, row, image in self.kept} if self.drawable else None


def _picture(x: np.ndarray) -> np.ndarray | None:
    """What `plots` draws of a row: an image, or a square number of values as a square."""
    side = round(x.size**0.5)
    if x.ndim == 1:
        return x.reshape(side, side) if side * side == x.size and side > 3 else None
    if x.ndim == 2 or (x.ndim == 3 and (x.shape[0] in (1, 3) or x.shape[-1] in (1, 3))):
        return x
    return None


def _share(part: Any, whole: Any) -> float:
    return float(part) / float(whole) if whole else float("nan")


def _text(rows: Rows) -> str:
    cells = [[as_text(value) for value in row.values()] for row in rows]
    lines = [list(rows[0]), *cells]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
        for line in lines
    )
