"""A last batch of a single row, which BatchNorm cannot take in training."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import UninitializedBuffer, is_lazy

from .callback import Run
from .core import explain, length
from .dataloader import ArrayLoader
from .rng import random_state, set_random_state
from .sharded import is_sharded
from .stepper import split_batch

BATCH_NORM: Any = nn.BatchNorm1d.__base__  # of all kinds of it: the class has a private name
HOOKS = "_forward_hooks", "_forward_pre_hooks"


def ends_in_single_row(run: Run, loader: Any) -> bool:
    """Whether the last batch of the loader has a single row (in one of the processes)."""
    batches = length(loader)
    if run.max_batches is not None and batches is not None and run.max_batches < batches:
        return False  # the last batch is not reached
    if isinstance(loader, ArrayLoader):
        return loader.last_batch_is_single
    processes = 1 if run.team is None else run.team.size
    size, rows = getattr(loader, "batch_size", None), length(getattr(loader, "dataset", None))
    sampler = getattr(loader, "sampler", None)
    if sampler is not None:  # it may draw other rows than there are
        rows = length(sampler)
    if not isinstance(size, int) or rows is None or getattr(loader, "drop_last", False):
        return False
    together, fewest = size * processes, 2 * processes - 1  # of which each has at most one
    return size > 1 and together < rows and 0 < rows % together <= fewest


def needs_two_rows(run: Run, loader: Any) -> bool:
    """Whether the net cannot take a single row in training, as a copy of it shows."""
    if not any(isinstance(m, BATCH_NORM) for m in run.net.modules()):
        return False
    if is_sharded(run.net):  # which cannot be copied
        return True
    state = random_state(loader)
    try:
        rows: Sequence[Any]
        if isinstance(loader, ArrayLoader):
            rows = loader.gatherer()(
                torch.zeros(1, dtype=torch.int64, device=loader.arrays[0].device)
            )
        else:
            rows = loader.collate_fn([loader.dataset[0]])
        net = copied_without_hooks(run.net).train()
        x, _ = split_batch(rows, next(net.parameters()).device)
        with torch.no_grad():
            run.stepper.forward(net, x)
    except ValueError as error:
        return "more than 1 value per channel" in str(error)
    except Exception:  # another mistake, or a net that cannot be copied: not the question here
        return False
    finally:
        set_random_state(state, loader)
    return False


def copied_without_hooks(net: nn.Module) -> nn.Module:
    """A copy of the net that calls no hook of the user and compiles nothing.

    PyTorch's own hooks stay: some compute a layer's weights.
    """
    net = getattr(net, "_orig_mod", net)
    # PyTorch cannot copy the buffers that a lazy module has not made yet.
    made: Any = UninitializedBuffer
    blank = {id(b): made(device=b.device, dtype=b.dtype) for b in net.buffers() if is_lazy(b)}
    copied: nn.Module = copy.deepcopy(net, blank)
    for module in copied.modules():
        for hooks in (getattr(module, name, {}) for name in HOOKS):
            for key, hook in list(hooks.items()):
                owner = getattr(hook, "__module__", None) or ""
                if not owner.startswith("torch."):
                    del hooks[key]
    return copied


def single_row_message(loader: Any) -> str:
    """The error's text."""
    return explain(
        "the last batch has a single row, and BatchNorm cannot take one alone in training",
        got=f"{len(loader.dataset):,} rows in batches of {loader.batch_size}",
        wanted="two rows or more in each batch",
        fix="DataLoader(..., drop_last=True), another batch_size, or an ArrayLoader, which merges "
        "that row with the batch before",
        entry="lone-row",
    )
