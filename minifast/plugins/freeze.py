"""Parts of a net that do not learn, for a while or at all."""

from __future__ import annotations

from torch import nn

from ..callback import Callback, Run
from ..core import explain


class Freeze(Callback):
    """Keeps a part of the net as it is, until an epoch begins or to the end.

    The part's parameters get no gradients and it stays in eval mode, so that BatchNorm's averages
    do not move and dropout drops nothing. Afterwards every parameter is as free as it was.

    Args:
        *parts: Modules of the net.
        until: The epoch, from 0, from which they learn; None for never in this fit.

    Raises:
        ValueError: if a part is not in the net that is trained.

    Examples:
        >>> from minifast.testing import example_data, example_net
        >>> import minifast, torch
        >>> net = example_net()
        >>> opt = torch.optim.SGD(net.parameters(), lr=0.1)
        >>> before = net[0].weight.clone()
        >>> history = minifast.fit(net, example_data(), 1, nn.NLLLoss(), opt, progress=False,
        ...                        callbacks=[Freeze(net[0])])
        >>> torch.equal(net[0].weight, before)
        True
    """

    changes_training = True

    def __init__(self, *parts: nn.Module, until: int | None = None) -> None:
        self.parts, self.until = parts, until
        self.free: list[nn.Parameter] = []

    def __repr__(self) -> str:
        names = ", ".join(type(part).__name__ for part in self.parts)
        return f"Freeze({names}, until={self.until})"

    def on_train_begin(self, run: Run) -> None:
        """Takes the parts' parameters out of learning."""
        known = set(run.net.modules())
        strange = [part for part in self.parts if part not in known]
        if strange or not self.parts:
            raise ValueError(
                explain(
                    "Freeze wants parts of the net that is trained",
                    got=", ".join(type(part).__name__ for part in strange) or "nothing",
                    wanted="modules of net, such as net[0]",
                    fix="Freeze(net[0], until=2)",
                    entry="freezing",
                )
            )
        self.free = [p for part in self.parts for p in part.parameters() if p.requires_grad]
        self._let_learn(False)

    def on_epoch_begin(self, run: Run) -> None:
        """Keeps them in eval mode, or lets them learn."""
        if self.until is not None and run.epoch >= self.until:
            self._let_learn(True)
            return
        for part in self.parts:
            part.eval()

    def on_train_end(self, run: Run) -> None:
        """Leaves every parameter as free as it was."""
        self._let_learn(True)

    def _let_learn(self, learn: bool) -> None:
        for p in self.free:
            p.requires_grad_(learn)
            if not learn:
                p.grad = None  # a gradient of before would be stepped by
