"""Kills, signals, full disks and races: F1, F2, F7 to F10 and F12 of the list."""

import errno
import os
import signal

import pytest
import torch

import minifast.files
from minifast.storage import CheckpointError, read_state, write_state

from .conftest import drive, sizes
from .runs import RUNS


@sizes(200, 1000)
def test_a_kill_at_any_moment_leaves_the_newest_checkpoint_or_the_one_before(tmp_path, size):
    assert drive("drive_kills", size, tmp_path) == {
        "kills": size,
        "torn": 0,
        "lost": 0,
        "strays": 0,
    }


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if i in (1, 2) else pytest.mark.full)
        for i, name in enumerate(RUNS)
    ],
)
def test_resumed_from_any_batch_in_a_new_process_a_run_ends_the_same_to_the_bit(tmp_path, name):
    found = drive("drive_resume", name, tmp_path)
    assert found["resumed"] == 30 and found["differ"] == [] and found["watched"]


@sizes(60, 300)
def test_ctrl_c_at_any_moment_ends_well_and_resumes_exactly(tmp_path, size):
    check_signals(drive("drive_signals", int(signal.SIGINT), size, tmp_path), size)


@sizes(20, 100)
def test_sigterm_at_any_moment_ends_well_and_resumes_exactly(tmp_path, size):
    check_signals(drive("drive_signals", int(signal.SIGTERM), size, tmp_path), size)


def check_signals(found, size):
    assert set(found["bad"].values()) == {0}, found
    assert found["signals"] == size and found["struck"] > size // 4, found


# ---- a write that fails at each of its calls ---------------------------------------------

STATE = {"weights": torch.arange(5000.0), "step": 1}
NEWER = {"weights": torch.arange(5000.0) + 1, "step": 2}


class Failing:
    """The system's calls, of which the n-th fails."""

    def __init__(self, monkeypatch, n, number):
        self.left, self.number = n, number
        real = {name: getattr(os, name) for name in ("fsync", "replace", "open", "rename")}
        for name, call in real.items():
            monkeypatch.setattr(os, name, self.counted(call))
        self.opened = minifast.files._temporary
        monkeypatch.setattr(minifast.files, "_temporary", self.temporary)

    def counted(self, call):
        def counting(*arguments, **options):
            self.left -= 1
            if self.left == 0:
                raise OSError(self.number, os.strerror(self.number))
            return call(*arguments, **options)

        return counting

    def temporary(self, path):
        file, name = self.opened(path)
        failing = self

        class File:
            def __enter__(self):
                return self

            def __exit__(self, *error):
                file.close()

            write = staticmethod(failing.counted(file.write))
            flush = staticmethod(failing.counted(file.flush))
            fileno = staticmethod(file.fileno)

        return File(), name


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EACCES])
def test_whichever_call_fails_the_old_checkpoint_stands(tmp_path, monkeypatch, number):
    path, n, failed = tmp_path / "run", 0, 0
    while True:
        n += 1
        for file in tmp_path.iterdir():
            file.unlink()
        write_state(path, STATE, keep=2)
        with monkeypatch.context() as patch:
            calls = Failing(patch, n, number)
            try:
                write_state(path, NEWER, keep=2)
            except OSError as error:
                assert error.errno == number and str(path) in str(error)
                failed += 1
            if calls.left > 0:
                break  # fewer calls than n: all were tried
        assert read_state(path)["step"] in (1, 2)
        assert not list(tmp_path.glob(".*"))
    assert failed >= 5, failed


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="has no device that is full")  # noqa: PTH110
def test_a_full_disk_is_an_error_that_leaves_the_run_whole(tmp_path):
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    path = tmp_path / "run"
    write_state(path, STATE)
    size = path.stat().st_size
    try:
        for i in range(20):
            resource.setrlimit(resource.RLIMIT_FSIZE, (i * size // 20, before[1]))
            with pytest.raises(OSError, match=str(path)):
                write_state(path, NEWER)
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
            assert read_state(path)["step"] == 1
            assert [p.name for p in tmp_path.iterdir()] == ["run"]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@sizes(100, 1000)
def test_two_processes_that_write_to_one_path_leave_one_of_the_two(tmp_path, size):
    found = drive("drive_races", size, tmp_path)
    assert found == {"races": size, "torn": 0, "failed": 0, "strays": 0}


# ---- damaged files -----------------------------------------------------------------------


def test_cut_off_anywhere_a_checkpoint_is_refused_in_words(tmp_path):
    path = tmp_path / "run"
    write_state(path, STATE)
    raw = path.read_bytes()
    for i in range(501):
        path.write_bytes(raw[: len(raw) * i // 501])
        with pytest.raises(CheckpointError, match="no whole checkpoint"):
            read_state(path)


@sizes(500, 5000)
def test_one_bit_turned_is_never_taken_for_the_truth(tmp_path, size):
    path, rng = tmp_path / "run", torch.Generator().manual_seed(0)
    write_state(path, STATE)
    raw = path.read_bytes()
    for _ in range(size):
        at = int(torch.randint(len(raw) * 8, (), generator=rng))
        changed = bytearray(raw)
        changed[at // 8] ^= 1 << at % 8
        path.write_bytes(changed)
        with pytest.raises(CheckpointError):
            read_state(path)


def test_the_generation_before_is_taken_and_that_is_said(tmp_path):
    path = tmp_path / "run"
    write_state(path, STATE, keep=2)
    write_state(path, NEWER, keep=2)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.warns(UserWarning, match=r"no whole checkpoint; taken is the one before it"):
        assert read_state(path)["step"] == 1
    path.unlink()
    assert read_state(path)["step"] == 1
