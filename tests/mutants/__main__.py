"""Draws mutants, runs the tests that run their lines, and lists those that survive."""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
import time
import tomllib
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from queue import SimpleQueue

from . import __doc__ as usage
from .operators import Mutant, mutants_of
from .recording import REPOSITORY, Lines, copied, named, record, run_pytest

PACKAGE = REPOSITORY / "minifast"
LISTED = Path(__file__).with_name("equivalent.toml")
# Tests of these modules that run lines in forked processes, which leave no record.
FORKING = "tests/faults/test_breaking_off.py"
FORKED = {"checkpoint", "plugins/checkpoint", "files", "storage", "interrupts"}


def drawn(mutants: list[Mutant], seed: int) -> Iterator[Mutant]:
    """All mutants at random; the first ones are from all modules, by their sizes."""

    def chance(name: object) -> float:
        return int(hashlib.sha256(f"{seed} {name}".encode()).hexdigest()[:12], 16) / 16**12

    by_module = defaultdict(list)
    for mutant in sorted(mutants, key=chance):
        by_module[mutant.module].append(mutant)
    order = [
        ((place + chance(module)) / len(own), mutant)
        for module, own in by_module.items()
        for place, mutant in enumerate(own)
    ]
    order.sort(key=lambda pair: pair[0])
    return (mutant for _, mutant in order if mutant.compiles())


def tests_for(mutant: Mutant, seconds: dict[str, float], lines: Lines) -> list[str]:
    """The tests that run the mutant's lines, the quickest first.

    Where no test is known to run them, those of its function, and else of its module.
    """
    names = named((PACKAGE / f"{mutant.module}.py").read_text())
    by_line = lines.get(mutant.module, {})
    found: set[str] = set()
    for reach in mutant.reach:
        found = found or set().union(*(by_line.get(names[n - 1], ()) for n in reach))
    if mutant.module in FORKED:
        found |= {test for test in seconds if test.startswith(FORKING)}
    return sorted(found, key=lambda test: seconds[test])


def killer(mutant: Mutant, tests: list[str], seconds: dict[str, float], folder: Path) -> str:
    """The test that fails with a mutant, in a copy of the repository; "" if none does."""
    file = folder / "minifast" / f"{mutant.module}.py"
    original = file.read_text()
    quick = [test for test in tests if seconds[test] < 1]
    own = Counter(map(file_of, quick)).most_common(1)  # most fail here, and it is quickly imported
    first = [test for test in quick if file_of(test) == own[0][0]]
    rest = [test for test in tests if test not in set(first)]
    file.write_text(mutant.source)
    try:
        for part in first, rest:
            if by := failing(part, seconds, folder):
                return by
    finally:
        file.write_text(original)
    return ""


def failing(tests: list[str], seconds: dict[str, float], folder: Path) -> str:
    """The first of the tests that fails or hangs in a copy of the repository; "" if none does."""
    listed, now = folder / "tests.json", folder / "now.txt"
    listed.write_text(json.dumps({test: seconds[test] for test in tests}))
    now.write_text("the import of the package")
    files = sorted({file_of(test) for test in tests})
    env = {"MUTANTS_TESTS": str(listed), "MUTANTS_NOW": str(now)}
    limit = 600 + 10 * sum(seconds[test] for test in tests)
    ends_well = not tests or run_pytest(folder, ["-x", *files], limit, env) == 0
    return "" if ends_well else now.read_text()


def file_of(test: str) -> str:
    """The file that a test is in."""
    return test.partition("::")[0]


def run(mutants: list[Mutant], jobs: int, afresh: bool) -> list[Mutant]:
    """Prints the fate of each mutant, and returns the survivors."""
    survivors = []
    with tempfile.TemporaryDirectory() as temporary:
        folders: SimpleQueue[Path] = SimpleQueue()
        for job in range(jobs):
            folders.put(copied(Path(temporary, str(job))))
        seconds, lines = record(folder := Path(temporary, "0"), afresh)
        quickest = sorted(seconds, key=lambda test: seconds[test])[:20]
        if mutants and (by := failing(quickest, seconds, folder)):
            sys.exit(f"{by} fails without a mutant:\n{(folder / 'output.txt').read_text()}")

        def tried(mutant: Mutant) -> tuple[Mutant, str, str]:
            folder, start = folders.get(), time.monotonic()
            tests = tests_for(mutant, seconds, lines)
            try:
                by = killer(mutant, tests, seconds, folder)
            finally:
                folders.put(folder)
            took = f"{time.monotonic() - start:.0f} s"
            return mutant, by, f"line {mutant.line}, {by or f'{len(tests)} tests'}, {took}"

        with ThreadPoolExecutor(jobs) as pool:
            for mutant, by, more in pool.map(tried, mutants):
                print(f"{'killed  ' if by else 'SURVIVED'} {mutant}\n         {more}", flush=True)
                survivors += [] if by else [mutant]
    return survivors


def main() -> int:
    """Returns 1 if a mutant survived that is not listed as equivalent."""
    parser = argparse.ArgumentParser(
        "python -m tests.mutants",
        description=usage,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=100, help="how many are drawn")
    parser.add_argument("--only", help="modules, by commas: model,plugins/ema")
    parser.add_argument("--matching", help="a text that the mutant's line in the report contains")
    parser.add_argument("--list", action="store_true", help="draw, and run nothing")
    parser.add_argument("--jobs", type=int, default=1, help="how many run at the same time")
    parser.add_argument("--record", action="store_true", help="record afresh which tests run what")
    args = parser.parse_args()
    modules = {str(p.relative_to(PACKAGE).with_suffix("")): p for p in PACKAGE.glob("**/*.py")}
    wanted = args.only.split(",") if args.only else [m for m in modules if "compat/" not in m]
    mutants = [
        mutant for module in sorted(wanted) for mutant in mutants_of(module, modules[module])
    ]
    known = {
        f"{m['module']} {m['function']}: `{m['old']}` -> `{m['new']}`"
        for m in tomllib.loads(LISTED.read_text())["mutant"]
    }
    if not args.only and (gone := known - {str(mutant) for mutant in mutants}):
        print("listed in equivalent.toml, but not made:", *gone, sep="\n")
    if args.matching:
        mutants = [mutant for mutant in mutants if args.matching in str(mutant)]
    sample = list(islice(drawn(mutants, args.seed), args.count))
    if args.list:
        print(*sample, sep="\n")
        return 0
    tried = [mutant for mutant in sample if str(mutant) not in known]
    survivors = run(tried, args.jobs, args.record)
    listed, killed = len(sample) - len(tried), len(tried) - len(survivors)
    print(f"{killed} killed, {listed} listed as equivalent, {len(survivors)} survived")
    print(*survivors, sep="\n")
    return int(bool(survivors))


if __name__ == "__main__":
    sys.exit(main())
