"""What one of several processes draws random numbers from: a stream of its own, or all the same."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b
from typing import Any

import numpy as np
import torch

generators: Any = np.random  # its stubs leave out some names

__all__: list[str] = []  # of use to `team` alone


class Draws:
    """The random streams of one of several processes, in a fit.

    What must be the same in all processes is drawn from the generators as they are, which agree:
    orders, batches of a loader that draws as it goes, what callbacks do to gradients and weights.
    In between, from the time a batch is there until its gradients are, each process draws from a
    stream of its own: dropout, augmentation, mixtures. That stream is seeded for each step, so that
    no state has to be saved for it, and the common one is put aside: it goes on as that of one
    process whose net draws nothing.

    Attributes:
        key: What all streams of the fit are seeded from, besides the step and the process.
        loader_draws: Whether the loader draws as it goes, and so from the common stream in between.
    """

    def __init__(self, rank: int = 0, device: torch.device | None = None) -> None:
        self.rank, self.key, self.loader_draws = rank, 0, False
        self.gpu = device if device is not None and device.type == "cuda" else None
        self.aside: Any = None  # the common stream, while the process's own is in its place
        self.of_steps, self.of_batches = np.random.MT19937(), np.random.MT19937()

    def begin(self, step: int) -> None:
        """Begins the process's own stream of a step."""
        self.aside = self._taken()
        self._seed(self.of_steps, "step", step)

    def end(self) -> None:
        """Ends it: the common one is back."""
        if self.aside is not None:
            self._put(self.aside)
            self.aside = None

    @contextmanager
    def common(self) -> Iterator[None]:
        """While it lasts, the common stream is in place, also within a step."""
        if self.aside is None:
            yield
            return
        own = self._taken()
        self.end()
        yield
        self.aside = self._taken()
        self._put(own)

    @contextmanager
    def of_batch(self, batch: int) -> Iterator[None]:
        """While it lasts, the process's own stream of a batch's rows is in place."""
        now = self._taken()
        self._seed(self.of_batches, "batch", batch)
        yield
        self._put(now)

    # ---- the generators ------------------------------------------------------------------

    def _taken(self) -> Any:
        gpu = None if self.gpu is None else torch.cuda.get_rng_state(self.gpu)
        # NumPy takes as long to read its state as a small net to learn a batch. To exchange the
        # generator itself takes nothing, and loses no more than a normal number kept in store.
        state = np.random.get_state() if self.loader_draws else None
        numbers = generators.get_bit_generator(), state
        return torch.get_rng_state(), gpu, numbers, random.getstate()

    def _put(self, streams: Any) -> None:
        cpu, gpu, (generator, numbers), state = streams
        torch.set_rng_state(cpu)
        if gpu is not None and self.gpu is not None:
            torch.cuda.set_rng_state(gpu, self.gpu)
        generators.set_bit_generator(generator)
        if numbers is not None:
            np.random.set_state(numbers)
        random.setstate(state)

    def _seed(self, generator: Any, what: str, number: int) -> None:
        seed = mixed(self.key, what, number, self.rank)
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed all GPUs
        if self.gpu is not None:
            with torch.cuda.device(self.gpu):
                torch.cuda.manual_seed(seed)
        generators.set_bit_generator(generator)
        np.random.seed(seed % 2**32)
        random.seed(seed)


def mixed(*parts: Any) -> int:
    """A seed of 63 bits that differs wherever one of the parts does.

    Examples:
        >>> mixed(1, "step", 2) == mixed(1, "step", 2), mixed(1, "step", 2) == mixed(1, "step", 3)
        (True, False)
    """
    return int.from_bytes(blake2b(repr(parts).encode(), digest_size=8).digest(), "big") >> 1
