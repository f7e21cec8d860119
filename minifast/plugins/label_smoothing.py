"""Smooth the targets of a classification."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F  # noqa: N812
from torch import nn

from ..callback import Callback, Run
from ..core import explain
from ..losses import original
from ._arguments import number
from .mixup import MixUp


class LabelSmoothing(Callback):
    """Gives every class a share of the target: `(1 - eps) * loss + eps * mean(-log p)`.

    Szegedy et al. 2016, [arXiv:1512.00567](https://arxiv.org/abs/1512.00567), section 7: what
    `nn.CrossEntropyLoss(label_smoothing=eps)` computes, with its class weights, ignored labels,
    labels of pixels, and targets that are probabilities. Validation keeps the loss as it is. With
    `MixUp` in the list each of the two targets is smoothed.

    Args:
        eps: The share that all classes have together, 0 or more and below 1.

    Raises:
        TypeError, ValueError: if `eps` is not such a number; when training begins, if the loss is
            not `nn.NLLLoss` or `nn.CrossEntropyLoss` itself, or smooths already.

    Examples:
        >>> from minifast.testing import example_fit
        >>> history = example_fit([LabelSmoothing(0.1)])
    """

    changes_training = True
    must_precede = ("GradAccumulation",)
    conflicts_with = ("LabelSmoothing",)

    def __init__(self, eps: float = 0.1) -> None:
        wanted, fix = "0 or more and below 1", "LabelSmoothing(0.1)"
        self.eps = number("eps", eps, lambda v: 0 <= v < 1, wanted, fix=fix, entry="mixing")
        self.crit: Any = None
        self.mixup: MixUp | None = None

    def on_train_begin(self, run: Run) -> None:
        """Checks the loss."""
        crit: Any = original(run.crit)
        # A subclass may have a mean of its own, which is not known here.
        known = type(crit) in (nn.NLLLoss, nn.CrossEntropyLoss)
        smoothed = isinstance(crit, nn.CrossEntropyLoss) and crit.label_smoothing > 0
        if not known or smoothed:
            with_ = f" with label_smoothing={crit.label_smoothing}" if smoothed else ""
            raise ValueError(
                explain(
                    "LabelSmoothing does not fit the loss",
                    got=f"{crit!r}{with_}",
                    wanted="nn.NLLLoss or nn.CrossEntropyLoss itself, not smoothed yet",
                    fix="leave LabelSmoothing out, and smooth in the loss: "
                    "nn.CrossEntropyLoss(label_smoothing=0.1)",
                    entry="mixing",
                )
            )
        self.crit = crit  # another callback may wrap it
        self.mixup = next((c for c in run.callbacks if isinstance(c, MixUp)), None)

    def transform_loss(self, run: Run, preds: Any, loss: Any) -> Any:
        """The smoothed loss."""
        targets = (self.mixup.targets if self.mixup is not None else []) or [(1.0, run.y)]
        smooth = sum(share * self._smooth(preds, y) for share, y in targets)
        return (1 - self.eps) * loss + self.eps * smooth

    def on_backward_begin(self, run: Run) -> None:
        """Smooths the loss."""
        run.loss = self.transform_loss(run, run.preds, run.loss)

    def _smooth(self, preds: Any, y: Any) -> Any:
        # Of log-probabilities log_softmax gives the same again, so both losses are served.
        return F.cross_entropy(
            preds,
            y,
            self.crit.weight,
            ignore_index=self.crit.ignore_index,
            reduction=self.crit.reduction,
            label_smoothing=1.0,
        )
