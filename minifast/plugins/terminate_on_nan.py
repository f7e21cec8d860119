"""Stop when the loss is no number any more."""

from __future__ import annotations

import math

from torch import Tensor

from ..callback import Callback, Run


class TerminateOnNaN(Callback):
    """Stops at the first batch whose loss is nan or infinite, and says where it was.

    On a GPU the loss of the batch before is looked at, so that nothing waits for it.

    Examples:
        >>> from minifast.testing import example_fit
        >>> example_fit([TerminateOnNaN()], lr=1e30).stopped
        'the loss is nan at batch 1 of epoch 0, lr 1e+30; first bad parameter: 0.weight'
    """

    def __init__(self) -> None:
        self._waiting: list[tuple[int, int, Tensor | float]] = []

    def on_train_begin(self, run: Run) -> None:
        """Forgets an earlier fit."""
        self._waiting = []

    def on_batch_end(self, run: Run) -> None:
        """Looks at this batch's loss, or on a GPU at the one before."""
        loss = run.running_loss.last
        self._waiting.append((run.epoch, run.batch, loss))
        if len(self._waiting) > isinstance(loss, Tensor):
            self._look(run)

    def on_epoch_end(self, run: Run) -> None:
        """Looks at the last batch's, too."""
        while self._waiting:
            self._look(run)

    def _look(self, run: Run) -> None:
        epoch, batch, loss = self._waiting.pop(0)
        value = float(loss)
        if math.isfinite(value) or not run.running_loss.is_bad():  # the batch counted nothing
            return
        rates = ", ".join(f"{float(group['lr']):g}" for group in run.opt.param_groups)
        bad = [name for name, p in run.net.named_parameters() if not p.isfinite().all()]
        parameter = f"; first bad parameter: {bad[0]}" if bad else ""
        run.stop(f"the loss is {value} at batch {batch} of epoch {epoch}, lr {rates}{parameter}")
