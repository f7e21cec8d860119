"""How processes that were started together find each other."""

from __future__ import annotations

import multiprocessing
import os
import time
import uuid
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch

from .core import explain

VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")

PAUSE = 0.005  # seconds between two looks for those who have not come yet


def is_helper() -> bool:
    """Whether one of the processes has started this one, as for a pool: it inherits their names.

    Examples:
        >>> is_helper()
        False
    """
    parent = multiprocessing.parent_process()
    if parent is None or "RANK" not in os.environ:
        return False
    try:
        said = Path(f"/proc/{parent.pid}/environ").read_bytes().decode(errors="replace")
    except OSError:  # not on Linux
        return False
    theirs = dict(each.split("=", 1) for each in said.split("\0") if "=" in each)
    return all(theirs.get(name) == os.environ.get(name) for name in VARIABLES)


def world_size() -> int:
    """How many processes were started together, as the environment says; 1 if it does not.

    Raises:
        ValueError: if it says what cannot be.
    """
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return 1
    said = {name: os.environ.get(name, "") for name in VARIABLES}
    numbers = [said[name].isdigit() for name in ("RANK", "WORLD_SIZE", "MASTER_PORT")]
    size = int(said["WORLD_SIZE"]) if numbers[1] else 0
    if size == 1:
        return 1
    if all(numbers) and said["MASTER_ADDR"] and int(said["RANK"]) < size:
        return size
    raise ValueError(
        explain(
            "the environment does not say which of several processes this is",
            got=", ".join(f"{name}={value!r}" for name, value in said.items()),
            wanted="RANK below WORLD_SIZE, and the address and port of the first process",
            fix="torchrun --nproc-per-node 2 script.py, which sets them; or unset WORLD_SIZE",
            entry="several-processes",
        )
    )


def begin_group(timeout: float) -> Any:
    """Makes torch's process group of the environment, for the CPU and for GPUs.

    Returns the store by which its processes find each other.
    """
    most = timedelta(seconds=timeout)
    dist: Any = torch.distributed
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        store = dist.TCPStore(host, port, size, rank == 0, timeout=most)
        dist.init_process_group(backend, timeout=most, store=store, rank=rank, world_size=size)
        return store
    # torchrun keeps one store over all restarts, and with it the addresses of processes that are
    # no more (github.com/pytorch/pytorch/issues/135712): these get a part of it to themselves.
    store = dist.TCPStore(host, port, timeout=most, wait_for_workers=False)
    name = greeted(store, size) if rank == 0 else greeting(store, rank)
    own = dist.PrefixStore(name, store)
    dist.init_process_group(backend, timeout=most, store=own, rank=rank, world_size=size)
    return own


def store_of_program() -> Any:
    """The store of a process group that the program made itself; None where torch hides it.

    torch has no public name for it. Without it an error still ends all processes, but the others
    are told only that a connection was closed.
    """
    try:
        return torch.distributed.distributed_c10d._get_default_store()
    except Exception:  # a private name may go, and must not take the place of the user's error
        return None


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
