"""How one batch is learned."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .arrays import as_tensor, batch_dtype
from .callback import Events, Run
from .declarations import STEPPER, call_of, check_members
from .devices import sent

__all__ = ["Stepper"]


class Stepper:
    """Forward, loss, backward, step: what `examples/plain_loop.py` spells out.

    A callback adds to this; a stepper of your own replaces it: override `forward`, `backward` or
    `update`, or all of `step`, and hand it to `fit(..., stepper=...)`.

    Raises:
        TypeError: when a class is defined with a method of these that takes other arguments, or
            whose name is misspelled.

    Examples:
        >>> class Clipped(Stepper):
        ...     '''Predictions beyond ±10 do not count.'''
        ...     def forward(self, net, x):
        ...         return super().forward(net, x).clamp(-10, 10)
    """

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        check_members(cls, STEPPER)

    def __repr__(self) -> str:
        """The call that makes one like it, as far as its attributes tell."""
        return call_of(self)

    def forward(self, net: nn.Module, x: Any) -> Any:
        """Returns the net's output for a batch, `net(x)`, whole: the loss and the metrics get it.

        Several inputs in a tuple or dict are its arguments. Training and the validation of `fit`
        share it; `validate`, `predict` and `report` do if they are given the stepper.

        Examples:
            >>> several = torch.ones(5, 2), torch.ones(5, 3)
            >>> Stepper().forward(nn.Bilinear(2, 3, 1), several).shape
            torch.Size([5, 1])
        """
        if isinstance(x, Tensor):
            return net(x)
        return net(**x) if isinstance(x, dict) else net(*x)

    def zero_grad(self, run: Run) -> None:
        """Forgets the gradients of the batch before."""
        run.opt.zero_grad()

    def backward(self, run: Run) -> None:
        """Adds the gradients of `run.loss` to the parameters' `grad`."""
        run.loss.backward()

    def update(self, run: Run) -> None:
        """Changes the weights by their gradients."""
        run.opt.step()

    def state_dict(self) -> dict[str, Any]:
        """What it needs to go on later: tensors, numbers, strings, lists and dicts only."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes back what `state_dict` gave."""

    def step(self, run: Run, events: Events) -> Tensor:
        """Learns from `run.x` and `run.y`; returns the criterion's loss, a tensor."""
        run.preds = self.forward(run.net, run.x)
        run.loss = loss = run.crit(run.preds, run.y)
        run.keep_grads = run.skip_step = False
        events.on_backward_begin(run)
        if not run.keep_grads:
            self.zero_grad(run)
        self.backward(run)
        events.on_backward_end(run)
        if not run.skip_step:
            self.update(run)
        return loss


def split_batch(batch: Any, device: torch.device) -> tuple[Any, Any]:
    """The input and the target of a loader's batch, on the device: the target stands last.

    Examples:
        >>> x, y = split_batch((torch.ones(2, 3), torch.zeros(2)), torch.device("cpu"))
    """
    if len(batch) == 2:
        x, y = batch
    else:
        *xs, y = batch
        x = xs[0] if len(xs) == 1 else tuple(xs)
    if not (isinstance(x, Tensor) and x.device == device):
        x = to_device(x, device, masks=not isinstance(x, np.ndarray))
    if not (isinstance(y, Tensor) and y.device == device):
        y = to_device(y, device)
    return x, y


def to_device(value: Any, device: torch.device, masks: bool = False) -> Any:
    """The tensors in `value` on the device; a tensor that is there already is not copied.

    NumPy arrays become tensors as in an `ArrayLoader`: float32, or int64. With `masks` booleans
    stay bool, as they do there among several inputs.
    """
    if isinstance(value, Tensor):
        return sent(value, device)
    if isinstance(value, dict):
        return {key: to_device(v, device, masks) for key, v in value.items()}
    if isinstance(value, tuple | list):
        return tuple([to_device(v, device, masks) for v in value])
    if isinstance(value, np.ndarray):
        t = as_tensor(value, "the batch")
        is_mask = masks and t.dtype == torch.bool
        return sent(t if is_mask else t.to(batch_dtype(t)), device)
    return value
