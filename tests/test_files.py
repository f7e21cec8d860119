"""Files that are there whole or not at all."""

import errno
import os
import resource
from pathlib import Path

import pytest

from minifast.files import older, whole_file


def test_a_file_that_fails_half_way_leaves_the_old_one_and_nothing_else(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(ZeroDivisionError), whole_file(path) as file:
        file.write(b"half of the new")
        file.flush()
        raise ZeroDivisionError
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_new_file_is_not_there_before_it_is_whole(tmp_path):
    path = tmp_path / "file"
    with whole_file(path) as file:
        file.write(b"new")
        assert not path.exists()
    assert path.read_bytes() == b"new"


def test_a_file_has_the_permissions_of_any_other(tmp_path):
    with whole_file(tmp_path / "ours") as file:
        file.write(b"")
    (tmp_path / "other").touch()
    modes = [(tmp_path / name).stat().st_mode for name in ("ours", "other")]
    assert modes[0] == modes[1]


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts open files by /proc")
def test_no_file_stays_open(tmp_path):
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    for _ in range(5):
        with whole_file(tmp_path / "file") as file:
            file.write(b"x")
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="looks up files in /proc")
def test_the_file_and_its_new_name_are_on_the_disk(tmp_path, monkeypatch):
    synced, fsync = [], os.fsync

    def noted(descriptor):
        synced.append(Path(f"/proc/self/fd/{descriptor}").resolve())
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    with whole_file(tmp_path / "file") as file:
        file.write(b"new")
    assert [path.name.startswith(".file.") for path in synced] == [True, False]
    assert synced[1] == tmp_path.resolve()


def write(path, text, **options):
    with whole_file(path, **options) as file:
        file.write(text)


def test_generations_are_kept_the_youngest_first(tmp_path):
    path = tmp_path / "file"
    for text in b"1", b"2", b"3", b"4":
        write(path, text, keep=3)
    texts = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    assert texts == {"file": b"4", "file.1": b"3", "file.2": b"2"}
    assert older(path, 2).read_bytes() == b"2"


def test_what_a_killed_writer_left_is_cleared_away_and_a_living_ones_file_is_not(tmp_path):
    path = tmp_path / "file"
    left = tmp_path / ".file.0123abcd.tmp"
    left.write_bytes(b"half")
    other = tmp_path / ".other.0123abcd.tmp"
    other.write_bytes(b"of another file")
    with whole_file(path) as first:
        first.write(b"first")
        write(path, b"second")  # while the first is being written
        assert path.read_bytes() == b"second"
    assert path.read_bytes() == b"first"
    assert {p.name for p in tmp_path.iterdir()} == {"file", other.name}


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="bounds files as Unix does")
def test_a_write_that_the_system_refuses_names_file_and_errno(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(OSError, match=str(path)) as info:
            write(path, b"x" * 5000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert info.value.errno == errno.EFBIG
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    assert path.read_bytes() == b"old"


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        write(tmp_path / "nowhere" / "file", b"")


def test_a_link_stays_one_and_what_it_names_is_written(tmp_path):
    (tmp_path / "disk").mkdir()
    link, target = tmp_path / "here.ckpt", tmp_path / "disk" / "there.ckpt"
    link.symlink_to(target)  # there is nothing yet
    for text in b"first", b"second", b"third":
        with whole_file(link, keep=2) as file:
            file.write(text)
    assert link.is_symlink() and link.read_bytes() == target.read_bytes() == b"third"
    assert older(link, 1).read_bytes() == b"second"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk", "here.ckpt"]
    assert sorted(path.name for path in target.parent.iterdir()) == ["there.ckpt", "there.ckpt.1"]
