"""For each loader of a fit the loader to take batches from."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .callback import Run
from .checkpoint import size_of
from .core import device_of
from .dataloader import ArrayLoader
from .devices import DeviceCache
from .errors import NotesBatch
from .single_row_batch import ends_in_single_row, needs_two_rows, single_row_message

_told: weakref.WeakSet[ArrayLoader] = weakref.WeakSet()


@contextmanager
def loader_views(run: Run) -> Iterator[None]:
    """While it lasts `run.loader_for` gives views of loaders, whatever is assigned to `run.data`.

    The loaders themselves never change: a fit within this one, or in another thread, finds them as
    the user made them.
    """
    views = LoaderViews(run)
    before, run.loader_for = run.loader_for, views
    try:
        run.first_loader, run.given = run.data.trn_dl, size_of(run)
        found = [dl for dl in (run.data.trn_dl, run.data.val_dl) if views.is_cached(dl)]
        if not _told.issuperset(found):
            run.kept = f"rows kept on {views.cache.device}: {views.cache.size / 1e6:,.0f} MB"
            _told.update(found)
        with NotesBatch(run):
            yield
    finally:
        run.loader_for = before
        # Who still has the run must not keep the memory, nor a loader's workers: left to Python's
        # garbage collector, each of them takes PyTorch five seconds to end.
        views.cache.clear()
        run.batches = None


class LoaderViews:
    """`run.loader_for`: see `minifast.callback.Run`."""

    def __init__(self, run: Run) -> None:
        self.run, self.cache = run, DeviceCache.of_free_memory(device_of(run.net))
        self.needs_two_rows: bool | None = None  # not asked yet: it takes a copy of the net

    def __call__(self, loader: Any, training: bool = False) -> Any:
        """The loader to take batches from."""
        if isinstance(loader, ArrayLoader) and self.run.team is not None:
            loader = loader.view(shard=(self.run.team.rank, self.run.team.size))
        if training and self._must_merge(loader):
            loader = loader.view(merge_last=True)
        return self.cache.near(loader)

    def _must_merge(self, loader: Any) -> bool:
        """Whether the single row of the last batch must join the batch before it.

        Raises:
            ValueError: if it must, and the loader is not an `ArrayLoader`.
        """
        if self.run.checks == "off" or not ends_in_single_row(self.run, loader):
            return False
        if self.needs_two_rows is None:
            self.needs_two_rows = needs_two_rows(self.run, loader)
        if self.needs_two_rows and not isinstance(loader, ArrayLoader):
            raise ValueError(single_row_message(loader))
        return self.needs_two_rows

    def is_cached(self, loader: Any) -> bool:
        """Whether the loader's rows are on the net's device in addition to where they are."""
        return isinstance(loader, ArrayLoader) and self(loader).arrays is not loader.arrays
