"""What pytest does otherwise while mutants are tested: it records tests, or runs a list of them."""

from __future__ import annotations

import faulthandler
import json
import os
import resource
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

RECORD = os.environ.pop("MUTANTS_RECORD", "")  # where to write the seconds and outcomes of tests
TESTS = os.environ.pop("MUTANTS_TESTS", "")  # the tests to run, and their seconds
NOW = os.environ.pop("MUTANTS_NOW", "")  # where to write the test that runs
MEMORY = 8 * 2**30  # a mutant must not take the machine's

seconds: dict[str, float] = defaultdict(float)
failed: set[str] = set()


def pytest_configure() -> None:
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, resource.getrlimit(resource.RLIMIT_DATA)[1]))


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if TESTS:
        seconds.update(json.loads(Path(TESTS).read_text()))
        listed = {item.nodeid: item for item in items}
        items[:] = [listed[test] for test in seconds if test in listed]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    if RECORD:
        from coverage import Coverage

        if recorder := Coverage.current():
            recorder.switch_context(item.nodeid)
        return (yield)
    Path(NOW).write_text(item.nodeid)
    faulthandler.dump_traceback_later(60 + 10 * seconds[item.nodeid], exit=True)  # it hangs
    try:
        return (yield)
    finally:
        faulthandler.cancel_dump_traceback_later()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if RECORD:
        seconds[report.nodeid] += report.duration
        if report.outcome != "passed":
            failed.add(report.nodeid)


def pytest_sessionfinish() -> None:
    if RECORD:
        Path(RECORD).write_text(json.dumps({"seconds": seconds, "failed": sorted(failed)}))
