"""The loss as a picture, while it falls."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from ..callback import Callback, Run
from ..core import in_notebook, positive

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class LivePlot(Callback):
    """Draws the running loss in a notebook while the net learns, and the epochs' losses over it.

    It draws at most every `seconds`, and at each epoch's end. Outside a notebook it draws nothing
    until it is asked to: `plot()` gives the picture as it stands.

    Args:
        seconds: The least time between two pictures; drawing one takes about a tenth of a second.

    Examples:
        >>> from minifast.testing import example_fit
        >>> live = LivePlot()
        >>> history = example_fit([live])
        >>> figure = live.plot()
    """

    first_process_only = True

    def __init__(self, seconds: float = 2.0) -> None:
        self.seconds = positive("seconds", seconds, fix="LivePlot(seconds=2)", entry="times")
        self.running: list[tuple[int, float]] = []  # (step, running loss)
        self.epochs: dict[str, list[tuple[int, float]]] = {}  # by column
        self._shown: Any = None
        self._next = 0.0

    def on_train_begin(self, run: Run) -> None:
        """Begins a picture."""
        self.running, self.epochs = [], {}
        self._shown, self._next = None, time.monotonic() + self.seconds

    def on_batch_end(self, run: Run) -> None:
        """Draws, if it is time: only then is the loss read."""
        if time.monotonic() >= self._next:
            self.running.append((run.step, run.running_loss.value()))
            self._draw()

    def on_epoch_end(self, run: Run) -> None:
        """Notes the epoch's losses, and draws."""
        self.running.append((run.step, run.running_loss.value()))
        for name, value in run.values.items():
            if name.endswith("loss") and name != "trn_loss":
                self.epochs.setdefault(name, []).append((run.step, float(value)))
        self._draw()

    def state_dict(self) -> dict[str, Any]:
        """The picture's points."""
        listed = {name: [list(point) for point in line] for name, line in self.epochs.items()}
        return {"running": [list(point) for point in self.running], "epochs": listed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on with them."""
        self.running = [(step, loss) for step, loss in state["running"]]
        self.epochs = {
            name: [(step, loss) for step, loss in line] for name, line in state["epochs"].items()
        }

    def plot(self) -> Figure:
        """The picture as it stands."""
        from ..plots import plot_points

        return plot_points({"running loss": self.running, **self.epochs}, "batch")

    def _draw(self) -> None:
        self._next = time.monotonic() + self.seconds
        if not in_notebook():
            return
        from IPython.display import HTML, display

        from ..plots import to_html

        picture = HTML(to_html(self.plot(), "the training loss so far"))
        if self._shown is None:
            self._shown = display(picture, display_id=True)
        else:
            self._shown.update(picture)
