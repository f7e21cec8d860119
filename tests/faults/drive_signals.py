"""Ends a fit by a signal at a random moment, and resumes it: NUMBER COUNT FOLDER"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from minifast import Callback
from tests.faults.runs import fingerprint, forked, run

NAME = "adam, one-cycle"


class Reports(Callback):
    """Tells what it saw, when training ends."""

    def __init__(self, file, pipe):
        self.file, self.pipe = file, pipe
        self.ends = 0

    def on_train_begin(self, run):
        os.write(self.pipe, b".")

    def on_train_end(self, run):
        self.ends += 1
        finite = all(bool(p.isfinite().all()) for p in run.net.parameters())
        epochs = [row["epoch"] for row in run.history]
        told = {"ends": self.ends, "finite": finite, "epochs": epochs}
        self.file.write_text(json.dumps(told))


def main(number, count, folder):
    torch.set_num_threads(1)
    number, rng = int(number), random.Random(0)
    whole = fingerprint(*run(NAME))
    start = time.perf_counter()
    run(NAME, Path(folder) / "timed")
    takes = time.perf_counter() - start
    bad = {"ends": 0, "status": 0, "history": 0, "weights": 0, "resumed": 0}
    struck = 0
    for i in range(int(count)):
        path, file = Path(folder) / f"run{i}", Path(folder) / f"report{i}"
        reading, writing = os.pipe()
        with_checkpoint = i % 4 != 3

        def work(path=path, file=file, writing=writing, kept=with_checkpoint):
            run(NAME, path if kept else None, more=[Reports(file, writing)], every=2)

        pid = forked(work)
        os.close(writing)
        os.read(reading, 1)
        os.close(reading)
        end = time.perf_counter() + rng.uniform(0, 0.6 * takes)
        while time.perf_counter() < end:  # a moment that nobody chose
            pass
        os.kill(pid, number)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        told = json.loads(file.read_text()) if file.exists() else {"ends": 0, "epochs": []}
        ended = status == 0  # the run was over already
        struck += not ended
        wanted = 130 if number == signal.SIGINT else 143
        # Behind the fit the signal is Python's own again, or the system's.
        bad["status"] += status not in (0, wanted, -number)
        bad["ends"] += told["ends"] != 1
        bad["history"] += told["epochs"] != list(range(len(told["epochs"])))
        bad["weights"] += not told.get("finite", False)
        if with_checkpoint and path.exists():
            answer = Path(folder) / "answer"

            def go_on(path=path, answer=answer):
                answer.write_text(fingerprint(*run(NAME, path, resume=path, seed=5)))

            _, code = os.waitpid(forked(go_on), 0)
            bad["resumed"] += code != 0 or answer.read_text() != whole
    print(json.dumps({"signals": int(count), "struck": struck, "bad": bad}))


if __name__ == "__main__":
    main(*sys.argv[1:])
