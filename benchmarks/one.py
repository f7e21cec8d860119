"""One measurement in a process of its own: python -m benchmarks.one JOB WAY SEED FILE"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ENOUGH = 1.0  # seconds of timed epochs: short ones are repeated, and their median taken


def seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def measured(call: Callable[[], Any]) -> float:
    taken = [seconds(call)]
    while sum(taken) < ENOUGH:
        taken.append(seconds(call))
    return statistics.median(taken)


def main(job_name: str, way_name: str, seed: str, file: str) -> None:
    import torch  # noqa: F401 - what `import` is timed over

    start = time.perf_counter()
    if job_name == "import":
        import minifast  # noqa: F401

        Path(file).write_text(json.dumps({"seconds": time.perf_counter() - start}))
        return
    from .jobs import JOBS
    from .peers import PEERS
    from .ways import OURS

    job = JOBS[job_name]
    arrays = job.data()
    way = (OURS | PEERS)[way_name](job, arrays, int(seed))
    result: dict[str, float] = {}
    if job.kind == "predict":
        rows = arrays[2]
        way.predict(rows)
        result["seconds"] = measured(lambda: way.predict(rows))
        assert way.predict(rows).shape == (len(rows), job.classes)
    elif job.kind == "script":
        result["check"] = way.epoch()
        way.predict(arrays[2])
    else:
        way.epoch()  # warms up
        result["seconds"] = measured(way.epoch)
        result["check"] = way.epoch()
    Path(file).write_text(json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
