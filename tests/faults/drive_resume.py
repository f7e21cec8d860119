"""Resumes a run from every one of its batches, each in a process of its own: NAME FOLDER"""

import json
import os
import shutil
import sys
from pathlib import Path

import torch

from minifast import Callback
from tests.faults.runs import fingerprint, forked, run


class Copies(Callback):
    """Keeps the checkpoint of every batch."""

    def __init__(self, path):
        self.path_of_run = path

    def on_batch_end(self, run):
        step = run.step
        run.after(lambda _: shutil.copy(self.path_of_run, f"{self.path_of_run}-{step}"))


def main(name, folder):
    torch.set_num_threads(1)
    path = Path(folder) / "run"
    net, opt, history = run(name, path, more=[Copies(path)])
    whole = fingerprint(net, opt, history)
    plain = fingerprint(*run(name))
    steps = [int(file.name.split("-")[1]) for file in Path(folder).glob("run-*")]
    differ = []
    for step in sorted(steps):
        answer = Path(folder) / "answer"

        def resume(step=step, answer=answer):
            answer.write_text(fingerprint(*run(name, resume=f"{path}-{step}", seed=99)))

        _, status = os.waitpid(forked(resume), 0)
        if status != 0 or answer.read_text() != whole:
            differ.append(step)
    print(json.dumps({"resumed": len(steps), "differ": differ, "watched": whole == plain}))


if __name__ == "__main__":
    main(*sys.argv[1:])
