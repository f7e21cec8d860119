"""How processes that were started together find each other."""

from __future__ import annotations

import os
import time
import uuid
from datetime import timedelta
from typing import Any

import torch

PAUSE = 0.005  # seconds between two looks for those who have not come yet


def begin_group(timeout: float) -> None:
    """Makes torch's process group of the environment, for the CPU and for GPUs."""
    most = timedelta(seconds=timeout)
    dist: Any = torch.distributed
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        dist.init_process_group(backend, timeout=most)
        return
    # torchrun keeps one store over all restarts, and with it the addresses of processes that are
    # no more (github.com/pytorch/pytorch/issues/135712): these get a part of it to themselves.
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = dist.TCPStore(host, port, timeout=most, wait_for_workers=False)
    name = greeted(store, size) if rank == 0 else greeting(store, rank)
    own = dist.PrefixStore(name, store)
    dist.init_process_group(backend, timeout=most, store=own, rank=rank, world_size=size)


def greeting(store: Any, rank: int) -> str:
    """Says hello by a name that nobody had; whoever answers it is alive, and names the group."""
    hello = uuid.uuid4().hex
    store.set(f"minifast/hello/{rank}", hello)
    name: str = store.get(f"minifast/answer/{hello}").decode()
    store.set(f"{name}/heard/{rank}", "1")
    return name


def greeted(store: Any, size: int) -> str:
    """Answers every hello, old ones too, until all of this start have heard the answer."""
    name, silent = f"minifast/{uuid.uuid4().hex}", set(range(1, size))
    until = time.monotonic() + store.timeout.total_seconds()
    while silent:
        if time.monotonic() > until:
            raise TimeoutError(f"of {size} processes these have not come: {sorted(silent)}")
        for rank in sorted(silent):
            if store.check([f"minifast/hello/{rank}"]):
                hello = store.get(f"minifast/hello/{rank}").decode()
                store.set(f"minifast/answer/{hello}", name)
            if store.check([f"{name}/heard/{rank}"]):
                silent.remove(rank)
        time.sleep(PAUSE)
    return name
