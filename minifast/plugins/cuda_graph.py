"""Forward, loss and backward as one launch."""

from __future__ import annotations

import warnings
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from ..callback import Events, Run, hears
from ..core import device_of, explain
from ..stepper import Stepper
from ..trained import others


class CudaGraph(Stepper):
    """Replays forward, loss and backward as one CUDA graph, for nets too small for their launches.

    A small net computes for less time than it takes to tell the GPU what to compute. The first
    batches are learned from as usual, then one is recorded, and from there on the GPU is told the
    whole of it at once. The optimizer steps as always, so schedules, clipping and skipped steps
    work; one with `fused=True` has the fewest launches.

    A batch that is not like the recorded one (the last of an epoch has fewer rows) takes the
    ordinary step, and so does each batch of a net that is not on an NVIDIA GPU. So it is, and it
    says so once, with several processes, several inputs, or a callback that hears
    `on_backward_begin`. `run.preds` is written over by the next batch. What the net does in Python,
    hooks too, is done when it is recorded and not again.

    Raises:
        RuntimeError: while training, if the net does what cannot be recorded: reading a number of
            a tensor (`.item()`, `if x.sum() > 0`), shapes that depend on the data.

    Examples:
        >>> from minifast.testing import example_fit
        >>> history = example_fit([], stepper=CudaGraph())
    """

    WARM_UP = 3  # batches before the recording: libraries and optimizers set themselves up in them

    def __init__(self) -> None:
        self.recorded: Any = None
        self.before: tuple[Any, int] = (None, 0)  # what the batches before were like, how many
        self.told = False

    def step(self, run: Run, events: Events) -> Tensor:
        """Learns from the batch, by the recording if that is of one like it."""
        if not self._may_be_recorded(run, events):
            return super().step(run, events)
        like = _like(run)
        if like != self.recorded:
            known, times = self.before
            self.before = like, times + 1 if known == like else 1
            if self.before[1] <= self.WARM_UP:
                return super().step(run, events)
            self._record(run)
            self.recorded = like
        self.before = None, 0
        run.keep_grads = run.skip_step = False
        self.x.copy_(run.x, non_blocking=True)
        self.y.copy_(run.y, non_blocking=True)
        self.graph.replay()
        for p, grad in self.grads:
            p.grad = grad
        run.preds = self.preds
        run.loss = loss = self.loss.clone()  # whoever keeps it keeps this batch's
        events.on_backward_end(run)
        if not run.skip_step:
            self.update(run)
        return loss

    def _may_be_recorded(self, run: Run, events: Events) -> bool:
        why = _why_not(run)
        if why and not self.told and device_of(run.net).type == "cuda":
            self.told = True
            warnings.warn(f"CudaGraph takes the ordinary step: {why}", stacklevel=3)
        return not why and type(events) is Events  # another kind looks at the very first batch

    def _record(self, run: Run) -> None:
        self.x, self.y = run.x.clone(), run.y.clone()
        self.graph, self.recorded = torch.cuda.CUDAGraph(), None
        here, side = torch.cuda.current_stream(run.x.device), torch.cuda.Stream(run.x.device)
        learning = [*run.net.parameters(), *others(run.net, run.opt)]
        for p in learning:
            p.grad = None  # so that the recording has gradients in memory of its own
        mode = "thread_local"  # a DataLoader's thread pins memory meanwhile
        try:
            with torch.cuda.graph(self.graph, stream=side, capture_error_mode=mode):
                preds = self.forward(run.net, self.x)
                loss = run.crit(preds, self.y)
                loss.backward()
        except RuntimeError as error:
            torch.cuda.set_stream(here)  # torch leaves its own where the end of it fails
            raise RuntimeError(
                explain(
                    "the net cannot be recorded as a CUDA graph",
                    got=str(error.__context__ or error).split("\n")[0],  # the end of it fails too
                    wanted="tensors on the GPU, from x to the loss, of which no number is read",
                    fix="no .item() or print; keep run.loss.detach(), not run.loss; a new process",
                    entry="steppers",
                )
            ) from error
        self.preds, self.loss = preds.detach(), loss.detach()
        self.grads = [(p, p.grad) for p in learning]


def _why_not(run: Run) -> str:
    """Why no batch of the run can be recorded; nothing if some can."""
    if run.team is not None:
        return "there are several processes"
    for callback in run.callbacks:
        if hears(callback, "on_backward_begin"):
            return f"{type(callback).__name__} may change the loss in on_backward_begin"
    if torch.is_autocast_enabled("cuda") and torch.is_autocast_cache_enabled():
        return "torch.autocast around fit keeps a cache; use MixedPrecision"
    if not all(isinstance(t, Tensor) and t.is_cuda for t in (run.x, run.y)):
        return "x and y are not one tensor each on an NVIDIA GPU"
    return ""


def _like(run: Run) -> Any:
    """What must be the same for a recording to be this batch's: the fit, shapes, where all lies."""
    parts = [part for part in (run.net, run.crit) if isinstance(part, nn.Module)]
    tensors = chain(*((*part.parameters(), *part.buffers()) for part in parts))
    lies = [(t.data_ptr(), t.requires_grad) for t in tensors]
    modes = [module.training for module in run.net.modules()]
    # The history stands for the fit: `run` itself would keep all its data alive.
    return run.history, run.x.shape, run.x.dtype, run.y.shape, run.y.dtype, *modes, *lies
