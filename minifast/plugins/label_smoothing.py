"""Do not be too sure."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..callback import Callback, Run
from ..core import explain


class LabelSmoothing(Callback):
    """Gives each wrong class a share of the target: `(1 - eps) loss + eps mean(-log p)`.

    Szegedy et al. 2016, [arXiv:1512.00567](https://arxiv.org/abs/1512.00567), section 7. For
    `nn.NLLLoss` and `nn.CrossEntropyLoss`; validation keeps the loss as it is.

    Args:
        eps: The share that all classes have together.

    Raises:
        ValueError: if `eps` is not in 0..1, or when training begins for another loss.

    Examples:
        >>> from minifast.testing import example_fit
        >>> history = example_fit([LabelSmoothing(0.1)])
    """

    changes_training = True
    must_precede = ("GradAccumulation",)

    def __init__(self, eps: float = 0.1) -> None:
        if not 0 <= eps < 1:
            raise ValueError(
                explain(
                    "eps is out of range",
                    got=repr(eps),
                    wanted="0 or more, below 1",
                    fix="LabelSmoothing(0.1)",
                    entry="mixing",
                )
            )
        self.eps = eps

    def on_train_begin(self, run: Run) -> None:
        """Looks at the loss."""
        crit: Any = run.crit
        fits = isinstance(crit, nn.NLLLoss | nn.CrossEntropyLoss)
        if not fits or crit.weight is not None or crit.reduction != "mean":
            raise ValueError(
                explain(
                    "LabelSmoothing does not fit the loss",
                    got=repr(run.crit),
                    wanted="nn.NLLLoss() or nn.CrossEntropyLoss(), without weights, their mean",
                    fix="leave it out; nn.CrossEntropyLoss(label_smoothing=0.1) takes weights too",
                    entry="mixing",
                )
            )

    def on_backward_begin(self, run: Run) -> None:
        """Smooths the loss."""
        # Of log-probabilities log_softmax gives the same again, so both losses are served.
        smooth = -run.preds.log_softmax(dim=1).mean()
        run.loss = (1 - self.eps) * run.loss + self.eps * smooth
