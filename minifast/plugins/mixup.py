"""Learn from mixtures."""

from __future__ import annotations

from typing import Any

import torch

from ..callback import Callback, Run
from ..core import explain


class MixUp(Callback):
    """Learns from each batch mixed with itself in another order: `t x + (1 - t) x'`.

    Zhang et al. 2018, [arXiv:1710.09412](https://arxiv.org/abs/1710.09412). The loss is mixed
    alike; `trn_loss` is that of the mixed input against the first of the two targets. t is drawn
    from Beta(alpha, alpha) for each batch, by torch's generator.

    Args:
        alpha: Near 0 mixes little, 1 anything.

    Raises:
        ValueError: if `alpha` is not above 0.

    Examples:
        >>> from minifast.testing import example_fit
        >>> history = example_fit([MixUp(alpha=0.4)])
    """

    changes_training = True
    must_precede = ("LabelSmoothing", "GradAccumulation")

    def __init__(self, alpha: float = 0.4) -> None:
        if not alpha > 0:
            raise ValueError(
                explain(
                    "alpha is not above 0",
                    got=repr(alpha),
                    wanted="a number above 0",
                    fix="MixUp(alpha=0.4), or leave MixUp out",
                    entry="mixing",
                )
            )
        self.alpha = alpha
        self.part: Any = None
        self.other_y: Any = None

    def on_batch_begin(self, run: Run) -> None:
        """Mixes the input."""
        alpha = torch.tensor(self.alpha)
        self.part = torch.distributions.Beta(alpha, alpha).sample().item()
        order = torch.randperm(len(run.y)).to(run.y.device)
        self.other_y = run.y[order]
        several = isinstance(run.x, tuple)
        mixed = tuple(x.lerp(x[order], 1 - self.part) for x in (run.x if several else (run.x,)))
        run.x = mixed if several else mixed[0]

    def on_backward_begin(self, run: Run) -> None:
        """Mixes the loss."""
        other = run.crit(run.preds, self.other_y)
        run.loss = self.part * run.loss + (1 - self.part) * other
        self.other_y = None
