"""The commands; see `benchmarks/__init__.py`."""

from __future__ import annotations

import argparse

from . import growth, report
from .jobs import JOBS
from .run import WAYS, installed, machine, measure
from .ways import OURS


def jobs(args: argparse.Namespace) -> None:
    names = args.jobs.split(",") if args.jobs else list(JOBS)
    ways = args.ways.split(";") if args.ways else installed()
    unknown = [name for name in [*names, *ways] if name not in JOBS and name not in WAYS]
    if unknown:
        raise SystemExit(
            f"no such job or way: {unknown[0]}; jobs: {', '.join(JOBS)}; ways: {'; '.join(WAYS)}"
        )
    results = measure(names, ways, args.rounds)
    text = report.table(results)
    print(text, report.left_out(results), sep="\n\n")
    if args.jobs or args.ways:
        return  # a part is no page
    report.picture(report.ratios(results), report.PICTURES / "how-fast.png")
    where = f"{args.rounds} rounds. {machine()}; {report.versions(ways)}."
    wrong = report.left_out(results)
    report.write_section(
        "jobs", f"\n{where}\n\n{text}\n" + (f"\nLeft out:\n\n{wrong}\n" if wrong else "")
    )


def grow() -> None:
    curves = growth.measure()
    growth.picture(curves, report.PICTURES / "growth.png")
    text = growth.table(curves)
    print(text)
    report.write_section("growth", f"\n{machine()}.\n\n{text}\n")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("what", nargs="?", choices=["jobs", "growth"], default="jobs")
    parser.add_argument("--quick", action="store_true", help="a minute, and no page")
    parser.add_argument("--jobs", help=f"some of {','.join(JOBS)}")
    parser.add_argument("--ways", help=f"some of {';'.join(WAYS)}")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    if args.quick:
        args.jobs, args.ways, args.rounds = "logreg,import", ";".join(OURS), 3
    if args.what == "growth":
        grow()
    else:
        jobs(args)


if __name__ == "__main__":
    main()
