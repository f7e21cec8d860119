"""How long gradients are."""

from __future__ import annotations

from typing import Any

import torch

from ..callback import Callback, Run
from ..sharded import lies_in_parts


class GradientStats(Callback):
    """Adds the column `grad_norm` to the table: the mean length of all gradients together.

    It stands behind what changes gradients, to see what is stepped by.

    Attributes:
        norms: The length at each step of the fit, read when the epoch ends.

    Examples:
        >>> from minifast.testing import example_fit
        >>> history = example_fit([GradientStats()])
        >>> history[0]["grad_norm"] > 0
        True
    """

    columns = ("grad_norm",)  # what it adds: a monitor of this name is there

    def __init__(self) -> None:
        self.norms: list[float] = []
        self._unread: list[torch.Tensor] = []

    def on_train_begin(self, run: Run) -> None:
        """Forgets an earlier fit."""
        self.norms, self._unread = [], []

    def on_backward_end(self, run: Run) -> None:
        """Measures, if the batch steps."""
        grads = [p.grad for p in run.net.parameters() if p.grad is not None]
        if grads and not run.skip_step:
            norm: Any = torch.nn.utils.get_total_norm(grads)
            self._unread.append(norm.full_tensor() if lies_in_parts(norm) else norm)

    def on_epoch_end(self, run: Run) -> None:
        """Adds the column."""
        if self._unread:
            found = torch.stack(self._unread).tolist()
            self.norms += found
            self._unread = []
            run.values["grad_norm"] = sum(found) / len(found)

    def state_dict(self) -> dict[str, Any]:
        """The lengths so far, and those of the epoch that is not over."""
        return {"norms": self.norms, "unread": self._unread}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues after them."""
        self.norms, self._unread = list(state["norms"]), list(state["unread"])
