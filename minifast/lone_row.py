"""A last batch of one row, which BatchNorm cannot take alone in training."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from .callback import Run
from .core import explain, length
from .dataloader import ArrayLoader
from .rng import random_state, set_random_state
from .sharded import is_sharded
from .stepper import split_batch


@contextmanager
def lone_row_joined(run: Run) -> Iterator[None]:
    """Lets a lone last row go with the batch before it, where BatchNorm cannot take it alone."""
    loader = run.data.trn_dl
    norms = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in run.net.modules())
    if run.checks == "off" or not norms or not _ends_in_lone_row(run) or _takes_one_row(run):
        yield
        return
    if not isinstance(loader, ArrayLoader):
        raise ValueError(_lone_row(loader))
    before, loader.joins_lone_row = loader.joins_lone_row, True
    try:
        yield
    finally:
        loader.joins_lone_row = before


def _ends_in_lone_row(run: Run) -> bool:
    loader, processes = run.data.trn_dl, 1 if run.team is None else run.team.size
    if isinstance(loader, ArrayLoader):
        return loader.ends_in_lone_row
    size, rows = getattr(loader, "batch_size", None), length(getattr(loader, "dataset", None))
    if not isinstance(size, int) or rows is None or loader.drop_last:
        return False
    together, fewest = size * processes, 2 * processes - 1  # of which each has at most one
    return size > 1 and together < rows and 0 < rows % together <= fewest


def _takes_one_row(run: Run) -> bool:
    """Whether a copy of the net, in train mode, takes a batch of one row."""
    if is_sharded(run.net):  # of which there are no copies
        return False
    loader = run.data.trn_dl
    state = random_state(loader)
    try:
        rows: Sequence[Any]
        if isinstance(loader, ArrayLoader):
            rows = loader.take(torch.zeros(1, dtype=torch.int64, device=loader.arrays[0].device))
        else:
            rows = loader.collate_fn([loader.dataset[0]])
        net = copy.deepcopy(run.net).train()
        x, _ = split_batch(rows, next(net.parameters()).device)
        with torch.no_grad():
            run.stepper.forward(net, x)
    except ValueError as error:
        return "more than 1 value per channel" not in str(error)
    except Exception:  # another mistake, or a net that cannot be copied: not what is asked here
        return True
    finally:
        set_random_state(state, loader)
    return True


def _lone_row(loader: Any) -> str:
    return explain(
        "the last batch has a single row, and BatchNorm cannot take one alone in training",
        got=f"{len(loader.dataset):,} rows in batches of {loader.batch_size}",
        wanted="two rows or more in each batch",
        fix="DataLoader(..., drop_last=True), another batch_size, or an ArrayLoader, which puts "
        "that row to the batch before",
        entry="lone-row",
    )
