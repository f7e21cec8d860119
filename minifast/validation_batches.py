"""Batches of a validation loader that can be looked at without changing the loader."""

from __future__ import annotations

from itertools import islice
from typing import Any

from torch.utils.data import (
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from .batches import cloned
from .dataloader import ArrayLoader
from .dataset import ArraysDataset

SAMPLERS = SequentialSampler, RandomSampler, SubsetRandomSampler, WeightedRandomSampler

Numbered = list[tuple[int, Any]]  # batches with their numbers


def batches_to_try(dl: Any) -> Numbered | None:
    """Up to two batches of a loader, copied; None if drawing them might change the loader.

    - Of arrays in memory the first and the last batch, which may be shorter; of arrays on a disk,
      and of a list or tuple of batches, the first two.
    - Of a PyTorch `DataLoader` over a dataset with indices and with one of PyTorch's samplers the
      first two. With workers only if the dataset is made of tensors: another one may open files
      when its first row is read, which must happen in the workers.
    - Of anything else none: an iterator would lose the batches, a stream may continue where it
      stopped, and another class may keep count of its passes.

    Random generators may have moved afterwards: the caller restores them.

    Examples:
        >>> [(i, x.tolist()) for i, (x,) in batches_to_try(ArrayLoader([1, 2, 3, 4, 5], bs=2))]
        [(0, [1, 2]), (2, [5])]
        >>> batches_to_try(iter([1, 2])) is None
        True
    """
    if type(dl) is ArrayLoader:
        if dl.out_of_core:
            return list(enumerate(islice(dl.in_order(dl.bs), 2)))
        last = (dl.n_rows - 1) // dl.bs
        gather = dl.gatherer(adjacent=True)
        return [(i, gather(range(i * dl.bs, min((i + 1) * dl.bs, dl.n_rows)))) for i in {0, last}]
    if type(dl) in (list, tuple):
        return [(i, cloned(batch)) for i, batch in enumerate(dl[:2])]
    if type(dl) is DataLoader and _can_be_read_again(dl):
        return list(enumerate(_read(dl)))
    return None


def _can_be_read_again(dl: DataLoader[Any]) -> bool:
    if isinstance(dl.dataset, IterableDataset) or type(dl.sampler) not in SAMPLERS:
        return False
    return dl.num_workers == 0 or type(dl.dataset) in (TensorDataset, ArraysDataset)


def _read(dl: DataLoader[Any]) -> list[Any]:
    if dl.num_workers == 0:
        return list(islice(dl, 2))
    if dl.batch_sampler is None:
        return [dl.collate_fn(dl.dataset[i]) for i in islice(dl.sampler, 2)]
    return [dl.collate_fn([dl.dataset[i] for i in rows]) for rows in islice(dl.batch_sampler, 2)]
