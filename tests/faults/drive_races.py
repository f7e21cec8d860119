"""Lets two processes write to one path at once: COUNT FOLDER"""

import json
import os
import sys
from pathlib import Path

import torch

from minifast.storage import read_state, write_state
from tests.faults.runs import forked


def main(count, folder):
    torch.set_num_threads(1)
    path, torn, failed, strays = Path(folder) / "run", 0, 0, 0
    for i in range(int(count)):
        values = [2 * i + 1, 2 * i + 2]
        begin, ready = os.pipe()

        def write(value, begin=begin, ready=ready):
            os.close(ready)
            os.read(begin, 1)  # ends when the parent closes it: both start at once
            write_state(path, {"weights": torch.full((20_000,), float(value)), "n": value}, keep=2)

        pids = [forked(lambda v=value: write(v)) for value in values]
        os.close(begin)
        os.close(ready)
        failed += sum(os.waitpid(pid, 0)[1] != 0 for pid in pids)
        state = read_state(path)
        torn += state["n"] not in values or not bool((state["weights"] == state["n"]).all())
        strays += len(list(Path(folder).iterdir())) - (1 if i == 0 else 2) > 1
    print(json.dumps({"races": int(count), "torn": torn, "failed": failed, "strays": strays}))


if __name__ == "__main__":
    main(*sys.argv[1:])
