"""Several hosts on one machine: network namespaces, each with its own address, on one switch.

    sudo python examples/cluster/namespaces.py SCRIPT ARGUMENTS ...

runs the script under torchrun on two such hosts, as on two machines, and starts it anew where it
fails, as systemd or a cluster's scheduler would. What a host has of the network is `eth0`: pull its
cable with `ip link set eth0 down`. Needs Linux and the right to make namespaces (root).
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

NET = "10.77.0"


@contextmanager
def hosts(n: int) -> Iterator[list[str]]:
    """The names of n namespaces that reach each other at 10.77.0.1, 10.77.0.2, ..."""
    tag = f"mf{os.getpid()}"
    names, switch = [f"{tag}-{i}" for i in range(n)], f"{tag}-s"
    try:
        for name in (switch, *names):
            ip("netns", "add", name)
        ip("-n", switch, "link", "add", "switch", "type", "bridge")
        ip("-n", switch, "link", "set", "switch", "up")
        for i, name in enumerate(names):
            cable = ("link", "add", "eth0", "type", "veth", "peer", f"port{i}", "netns", switch)
            ip("-n", name, *cable)
            ip("-n", switch, "link", "set", f"port{i}", "master", "switch", "up")
            ip("-n", name, "address", "add", f"{NET}.{i + 1}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                ip("-n", name, "link", "set", device, "up")
        yield names
    finally:
        for name in (switch, *names):
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)


def ip(*arguments: str) -> None:
    """iproute2's `ip`; its error is ours."""
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


def torchrun(names: Sequence[str], script: Sequence[str]) -> list[subprocess.Popen[str]]:
    """The script by torchrun on each host, again and again (five times) where it fails."""
    again = 'for i in 1 2 3 4 5; do "$@" && exit 0; done; exit 1'
    env = {**os.environ, "GLOO_SOCKET_IFNAME": "eth0", "NCCL_SOCKET_IFNAME": "eth0"}
    started = []
    for i, name in enumerate(names):
        # Machines whose names have addresses find out by themselves who is the first, and where.
        command = [
            sys.executable, "-m", "torch.distributed.run", "--nnodes", str(len(names)),
            "--nproc-per-node", "1", "--max-restarts", "3", "--monitor-interval", "0.1",
            "--rdzv-backend", "c10d", "--rdzv-endpoint", f"{NET}.1:29400",
            "--rdzv-conf", f"is_host={int(i == 0)},read_timeout=10",
            "--local-addr", f"{NET}.{i + 1}", *script,
        ]  # fmt: skip
        process = subprocess.Popen(
            ["ip", "netns", "exec", name, "bash", "-c", again, "bash", *command],
            env={"OMP_NUM_THREADS": "1", **env}, text=True, start_new_session=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        started.append(process)
    return started


def main() -> None:
    """Runs it, and shows what each host says."""
    with hosts(2) as names:
        processes = torchrun(names, sys.argv[1:])
        for name, process in zip(names, processes, strict=True):
            said, errors = process.communicate()
            print(f"== {name}: status {process.returncode}\n{said}{errors}")


if __name__ == "__main__":
    main()
