"""What happened in a fit, as plain data."""

from __future__ import annotations

import csv
import io
import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import torch
from torch import Tensor

from .errors import MissingKeyError, explain
from .files import whole_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["History"]

Row = dict[str, Any]


class History(Sequence[Row]):
    """The epochs of a fit: a row each, a dict of plain numbers.

    Attributes:
        stopped: Why training stopped before its last epoch; None if it did not.

    Examples:
        >>> h = History([{"epoch": 0, "trn_loss": 0.5, "accuracy": 0.8},
        ...              {"epoch": 1, "trn_loss": 0.25, "accuracy": 0.9}])
        >>> h[-1]["accuracy"], h["trn_loss"]
        (0.9, [0.5, 0.25])
        >>> h
        epoch  trn_loss  accuracy
            0  0.500000  0.800000
            1  0.250000  0.900000
    """

    def __init__(self, rows: Iterable[Mapping[str, Any]] = ()) -> None:
        self.stopped: str | None = None
        self._rows: list[Row] = []
        for row in rows:
            self.append(row)

    def append(self, row: Mapping[str, Any]) -> None:
        """Adds an epoch's row; tensors and numpy numbers in it become Python's."""
        self._rows.append({name: plain(value) for name, value in row.items()})

    @property
    def columns(self) -> list[str]:
        """The names of the columns, in the order in which they first appeared."""
        return list(dict.fromkeys(name for row in self._rows for name in row))

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, key: int) -> Row: ...
    @overload
    def __getitem__(self, key: slice) -> list[Row]: ...
    @overload
    def __getitem__(self, key: str) -> list[Any]: ...
    def __getitem__(self, key: Any) -> Any:  # a column may have any type that a callback put there
        if not isinstance(key, str):
            return self._rows[key]
        if key not in self.columns:
            raise MissingKeyError(
                f"no column {key!r}: there are {', '.join(self.columns) or 'none yet'}"
            )
        return [row.get(key) for row in self._rows]

    def __repr__(self) -> str:
        if not self._rows:
            return "History of no epochs"
        table = Table(self.columns)
        return "\n".join([table.header(), *(table.line(row) for row in self._rows)])

    def _repr_html_(self) -> str:
        """The table that a notebook shows, with each column's course as a small line."""
        lines = ("" if name == "epoch" else _sparkline(self[name]) for name in self.columns)
        course = f"<tr>{''.join(f'<td>{line}</td>' for line in lines)}</tr>"
        return html_table(self.columns, self._rows, course if len(self) > 1 else "")

    def to_csv(self, path: str | Path) -> None:
        """Writes a line an epoch under a line of names, whole or not at all.

        Numbers are written so that reading them gives the same ones back.
        """
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self.columns)
        writer.writeheader()
        writer.writerows(self._rows)
        with whole_file(path) as file:
            file.write(text.getvalue().encode())

    def plot(self, losses: Sequence[float] | None = None) -> Figure:
        """The losses, and beside them the metrics, over the epochs, with the best epoch marked.

        Args:
            losses: Those of all batches, as `LossRecorder` notes them, to draw behind.
        """
        from .plots import plot_history

        return plot_history(self, losses)


def html_table(names: Sequence[str], rows: Iterable[Mapping[str, Any]], below: str = "") -> str:
    """A table of HTML; `below` is a row of it, set under the names as it is.

    Examples:
        >>> html_table(["a"], [{"a": 0.5}])
        '<table><tr><th>a</th></tr><tr><td>0.500000</td></tr></table>'
    """
    from html import escape

    def cells(tag: str, texts: Iterable[str]) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(text)}</{tag}>" for text in texts) + "</tr>"

    body = [cells("td", (as_text(row.get(name)) for name in names)) for row in rows]
    return f"<table>{cells('th', names)}{below}{''.join(body)}</table>"


class Table:
    """Lines of text with a column for each name: what `fit` prints and a `History` shows."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = list(names)
        self.widths = [len(n) if n == "epoch" else max(len(n), 8) for n in self.names]

    def header(self) -> str:
        """The names."""
        return self._join(self.names)

    def line(self, row: Mapping[str, Any]) -> str:
        """The values of a row; what it lacks stays blank."""
        return self._join(as_text(row.get(name)) for name in self.names)

    def _join(self, texts: Iterable[str]) -> str:
        pairs = zip(texts, self.widths, strict=True)
        return "  ".join(text.rjust(width) for text, width in pairs)


def as_text(value: Any) -> str:
    """A value in eight characters: 0.123456, 12.34568, -0.12346, 1.23e-05."""
    if value is None:
        return ""
    if not isinstance(value, float):
        return str(value)
    if value != 0 and not 1e-4 <= abs(value) < 1e4:  # nan and inf come here too
        return f"{value:.3g}"
    before_the_point = len(str(int(abs(value)))) + (value < 0)
    return f"{value:.{7 - before_the_point}f}"


def _sparkline(values: Sequence[Any]) -> str:
    """A column's course as a small line, from its least to its largest value; "" if it has none."""
    points = [(i, v) for i, v in enumerate(values) if isinstance(v, int | float) and v - v == 0]
    if len(points) < 2:
        return ""
    low, high = min(v for _, v in points), max(v for _, v in points)
    across, up = 60 / max(len(values) - 1, 1), 16 / ((high - low) or 1)
    line = " ".join(f"{2 + i * across:.1f},{18 - (v - low) * up:.1f}" for i, v in points)
    return (
        f'<svg role="img" aria-label="from {as_text(points[0][1])} to {as_text(points[-1][1])}" '
        'width="64" height="20"><polyline fill="none" stroke="currentColor" stroke-width="1.5" '
        f'points="{line}"/></svg>'
    )


def plain(value: Any) -> Any:
    """A tensor or NumPy number as Python's; anything else as it is."""
    return value.item() if hasattr(value, "item") else value


def _no_loss(loss: Any) -> str:
    shape = f" of shape {tuple(loss.shape)}" if hasattr(loss, "shape") else ""
    return explain(
        "the stepper's step must return the loss of the batch",
        got=f"{type(loss).__name__}{shape}",
        wanted="what the criterion returns, a tensor with one element",
        fix="end step with `return loss`, without .item() and float()",
        entry="steppers",
    )


class RunningLoss:
    """The training loss as fastai smooths it: an exponential average (0.98), debiased.

    `avg = 0.98 * avg + 0.02 * loss` over all batches of a fit, shown as `avg / (1 - 0.98**n)`.
    Losses on the CPU are read at once, which costs less than keeping them. Those on a GPU are kept,
    and read when somebody asks, so that nothing waits for it. A copy of each is sent meanwhile, to
    be looked at once it has come.

    A loss that is nan makes the value nan, unless its batch counted nothing: `fit` then leaves it
    out.

    Examples:
        >>> smooth = RunningLoss()
        >>> for loss in 1.0, 2.0, 3.0, 4.0:
        ...     is_no_number = smooth.add(torch.tensor(loss))
        >>> round(smooth.value(), 8)
        2.52525046
    """

    __slots__ = ("average", "coming", "count", "last", "nans", "unread")

    MOMENTUM = 0.98
    MOST_UNREAD = 1000  # bounds the memory that waits; reading so many costs a moment
    MOST_AHEAD = 64  # batches that a GPU may be told of beforehand: each holds its memory till then

    def __init__(self) -> None:
        self.average = 0.0
        self.count = 0
        self.nans = 0  # losses that were nan, and are not in the average
        self.last: Tensor | float = float("nan")
        self.unread: list[Tensor] = []
        self.coming: deque[tuple[Tensor, torch.cuda.Event]] = deque()

    def add(self, loss: Tensor) -> bool:
        """Takes the loss of a batch; whether one that was read is nan or infinite."""
        try:
            if loss.is_cpu:
                self.last = value = loss.item()
                self._take(value)
                return value - value != 0  # nan and inf are the numbers that this holds for
        except (AttributeError, RuntimeError) as error:
            raise TypeError(_no_loss(loss)) from error
        self.last = loss.detach().reshape(())
        self.unread.append(self.last)
        if len(self.unread) >= self.MOST_UNREAD:
            self._read()
        return self.last.is_cuda and self._one_is_bad(self.last)

    def _one_is_bad(self, loss: Tensor) -> bool:
        """Whether one of the losses that have come from the GPU is nan or infinite; sends this."""
        copy = torch.empty((), dtype=loss.dtype, pin_memory=True)
        copy.copy_(loss, non_blocking=True)
        done = torch.cuda.Event()
        done.record(torch.cuda.current_stream(loss.device))
        self.coming.append((copy, done))
        if len(self.coming) > self.MOST_AHEAD:
            self.coming[0][1].synchronize()
        while self.coming and self.coming[0][1].query():
            if not math.isfinite(self.coming.popleft()[0].item()):
                return True
        return self.nans > 0 or not math.isfinite(self.average)

    def is_bad(self) -> bool:
        """Whether a loss so far was nan or infinite. Syncs with the GPU."""
        self._read()
        return self.nans > 0 or not math.isfinite(self.average)

    def leave_out_nan(self) -> None:
        """Continues as if the batches whose loss was nan had not been there."""
        self._read()
        self.nans = 0

    def _take(self, loss: float) -> None:
        if loss != loss:  # only nan differs from itself
            self.nans += 1
            return
        self.average = self.MOMENTUM * self.average + (1 - self.MOMENTUM) * loss
        self.count += 1

    def value(self) -> float:
        """The smoothed loss so far; nan before the first batch. Syncs with the GPU."""
        self._read()
        if self.nans:
            return float("nan")
        return self.average / (1 - self.MOMENTUM**self.count) if self.count else float("nan")

    def state_dict(self) -> dict[str, float]:
        """The average and how many losses are in it."""
        self._read()
        return {"average": float("nan") if self.nans else self.average, "count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from them."""
        self.average, self.count, self.nans = state["average"], state["count"], 0
        self.last = self.average if self.count else float("nan")  # no batch has come yet
        self.unread.clear()
        self.coming.clear()

    def _read(self) -> None:
        if not self.unread:
            return
        for loss in torch.stack(self.unread).tolist():
            self._take(loss)
        self.unread.clear()
        self.coming.clear()  # `average` tells of them from here on
