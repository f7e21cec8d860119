"""Tables, pictures and the page."""

from __future__ import annotations

import importlib.metadata
import re
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .jobs import JOBS
from .run import ROOT, WAYS, Result

PAGE = ROOT / "docs" / "how-fast.md"
PICTURES = ROOT / "docs" / "img"
APART = 0.1  # how far a way's validation loss may be from the floor's, before it is called wrong

Ratios = dict[str, dict[str, list[float]]]


def ratios(results: Sequence[Result]) -> Ratios:
    """For each job and way the ratios to the floor of the same round (seconds for the import)."""
    found: Ratios = {}
    floors = {(r["job"], r["round"]): r["seconds"] for r in good(results) if r["way"] == "floor"}
    for r in good(results):
        floor = 1.0 if r["job"] == "import" else floors.get((r["job"], r["round"]))
        if floor is not None:
            found.setdefault(r["job"], {}).setdefault(r["way"], []).append(r["seconds"] / floor)
    return found


def good(results: Sequence[Result]) -> list[Result]:
    """Those that came to an end and learned what the floor of the same round learned."""
    floors = {(r["job"], r["round"]): r.get("check") for r in results if r["way"] == "floor"}
    kept = []
    for r in results:
        check, floor = r.get("check"), floors.get((r["job"], r["round"]))
        wrong = check is not None and floor is not None and abs(check - floor) > APART * (1 + floor)
        if "failed" not in r and not wrong:
            kept.append(r)
    return kept


def table(results: Sequence[Result]) -> str:
    """A Markdown table: a row for each job and way."""
    lines = [
        "| job | way | time | to the floor | lowest, highest | peak memory |",
        "|---|---|---:|---:|---|---:|",
    ]
    sound = good(results)
    for job, ways in ratios(results).items():
        for way in [name for name in WAYS if name in ways]:
            those = [r for r in sound if (r["job"], r["way"]) == (job, way)]
            mib = statistics.median(r["mib"] for r in those)
            time = spell(job, statistics.median(r["seconds"] for r in those))
            values = ways[way]
            ratio = f"{statistics.median(values):.2f} | {min(values):.2f}, {max(values):.2f}"
            if job == "import":
                ratio = f"| {min(values) * 1e3:.0f}, {max(values) * 1e3:.0f} ms"
            lines.append(f"| {JOBS[job].title} | {way} | {time} | {ratio} | {mib:.0f} MiB |")
    return "\n".join(lines)


def spell(job: str, seconds: float) -> str:
    kind = JOBS[job].kind
    if kind in ("train", "bar"):
        return f"{seconds / JOBS[job].steps * 1e6:,.0f} µs a step"
    return f"{seconds * 1e3:,.0f} ms"


def left_out(results: Sequence[Result]) -> str:
    """What failed or did not learn, in words."""
    sound = {id(r) for r in good(results)}
    bad = {(r["job"], r["way"]): r for r in results if id(r) not in sound}
    return "\n".join(
        f"- {JOBS[job].title}, {way}: {r.get('failed', 'learned something else than the floor')}"
        for (job, way), r in bad.items()
    )


# ---- pictures ----------------------------------------------------------------------------

STYLE = {
    "floor": ("k", "|"),
    "tutorial": ("0.45", "s"),
    "fit": ("#0b5394", "o"),
    "fit, Fast": ("#e69138", "D"),
}
OTHERS = "^v<>P"


def picture(found: Ratios, file: Path) -> None:
    """Each job a line, each way a mark at its median ratio to the floor, with its spread."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import FixedLocator, NullLocator

    jobs = [job for job in found if job != "import"]
    peers = [w for w in WAYS if w not in STYLE and any(w in found[j] for j in jobs)]
    styles = STYLE | {w: ("0.6", mark) for w, mark in zip(peers, OTHERS[: len(peers)], strict=True)}
    figure, axes = plt.subplots(figsize=(8, 0.55 * len(jobs) + 1.6), layout="constrained")
    for row, job in enumerate(jobs):
        for way, values in found[job].items():
            colour, mark = styles[way]
            axes.plot([min(values), max(values)], [row, row], color=colour, lw=1.2, alpha=0.6)
            axes.plot(statistics.median(values), row, mark, color=colour, ms=7, zorder=3)
    for way, (colour, mark) in styles.items():
        axes.plot([], [], mark, color=colour, ms=7, label=way)
    axes.axvline(1, color="k", lw=0.8)
    axes.set(xscale="log", xlabel="time over that of the hand-written floor (less is faster)")
    axes.xaxis.set_major_locator(FixedLocator([0.5, 0.75, 1, 1.5, 2, 3, 4, 6, 8, 12]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_yticks(range(len(jobs)), [JOBS[job].title for job in jobs])
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", color="0.9")
    axes.set_axisbelow(True)
    figure.legend(loc="outside upper center", ncols=5, frameon=False)
    figure.savefig(file, dpi=130)
    plt.close(figure)


# ---- the page ----------------------------------------------------------------------------


def versions(ways: Sequence[str]) -> str:
    """The peers' versions, in words."""
    names = {"ignite": "pytorch-ignite"}
    packages = {WAYS[w].package for w in ways} - {"torch", "minifast"}
    found = [f"{p} {importlib.metadata.version(names.get(p, p))}" for p in sorted(packages)]
    return ", ".join(found) or "no other framework installed"


def write_section(name: str, text: str) -> None:
    """Puts the text between the page's two comments of that name."""
    page = PAGE.read_text()
    begin, end = f"<!-- {name}: written by the benchmark -->", f"<!-- end of {name} -->"
    pattern = re.escape(begin) + ".*?" + re.escape(end)
    assert re.search(pattern, page, re.S), f"{PAGE} has no section {name}"
    new = f"{begin}\n{text}\n{end}"
    PAGE.write_text(re.sub(pattern, lambda _: new, page, flags=re.S))


def summary(results: Sequence[Result]) -> dict[str, Any]:
    """Median ratios, for the test of the page."""
    return {
        job: {way: round(statistics.median(v), 3) for way, v in ways.items()}
        for job, ways in ratios(results).items()
    }
