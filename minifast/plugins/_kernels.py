"""Whether the private kernels of this release of PyTorch are those that `Fast` knows."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer

from ._fused import fused_step, hooks_on_step


def kernels_differ() -> str | None:
    """Why this PyTorch's kernels cannot be called here; None if they can.

    Two steps of each optimizer are tried, which must lead downhill.
    """
    grad = torch.tensor([1.0, -2.0], dtype=torch.float32, device="cpu")
    for make in TRIED:
        p = torch.zeros_like(grad)
        p.grad = grad.clone()
        opt = make(p)
        try:
            hooks_on_step(opt)
            for _ in range(2):  # from the second on the state is there
                fused_step(opt)
        except Exception:  # another name, other arguments: what a private name may come to
            p.zero_()
        if not torch.equal(p.sign(), -grad.sign()):
            return f"PyTorch {torch.__version__} has other fused kernels than the known ones"
    return None


TRIED: list[Callable[[Tensor], Optimizer]] = [
    lambda p: SGD([p], lr=0.1),
    lambda p: SGD([p], lr=0.1, momentum=0.9),
    lambda p: Adam([p], lr=0.1),
    lambda p: AdamW([p], lr=0.1),
]
