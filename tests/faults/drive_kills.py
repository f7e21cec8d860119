"""Kills a process that writes checkpoints, again and again, and reads what is there: N FOLDER"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from minifast.storage import read_state, write_state
from tests.faults.runs import forked


def writer(path, pipe, start):
    state = {"weights": torch.zeros(40_000), "step": start}
    while True:
        state["step"] += 1
        state["weights"].fill_(state["step"])
        write_state(path, state, keep=2)
        os.write(pipe, b".")


def main(count, folder):
    torch.set_num_threads(1)
    path, rng = Path(folder) / "run", random.Random(0)
    write_state(path, {"weights": torch.zeros(40_000), "step": 0}, keep=2)
    step, torn, lost, strays = 0, 0, 0, 0
    for _ in range(int(count)):
        reading, writing = os.pipe()
        pid = forked(lambda w=writing, s=step: writer(path, w, s))
        os.close(writing)
        os.read(reading, 1)  # it writes
        end = time.perf_counter() + rng.uniform(0, 0.02)
        while time.perf_counter() < end:  # a moment that nobody chose; a sleep would choose it
            pass
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        told = 1
        while chunk := os.read(reading, 1 << 16):
            told += len(chunk)
        os.close(reading)
        state = read_state(path)
        torn += not bool((state["weights"] == state["step"]).all())
        lost += state["step"] not in (step + told, step + told + 1)
        step = state["step"] + 1
        write_state(path, {"weights": torch.full((40_000,), float(step)), "step": step}, keep=2)
        strays += len(list(Path(folder).iterdir())) - 2
    print(json.dumps({"kills": int(count), "torn": torn, "lost": lost, "strays": strays}))


if __name__ == "__main__":
    main(*sys.argv[1:])
