"""Files of a stranger: nothing in them is run, imported or called (F5, F6, F22, F24)."""

import ctypes
import functools
import gzip
import hashlib
import importlib
import io
import logging
import marshal
import operator
import os
import pathlib
import pickle
import pydoc
import runpy
import shutil
import subprocess
import sys
import types
import webbrowser
import zipfile
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn

from minifast import load_weights
from minifast.io import load_mnist
from minifast.storage import MARK, CheckpointError, read_state, write_state
from minifast.testing import example_fit

from .conftest import sizes

CANARY = "canary"
MODULE = "canary_module"
TOUCH = f"touch {CANARY}"
PYTHON = f"open({CANARY!r}, 'w')"


class Calls:
    """Pickles to a call of any function."""

    def __init__(self, function, *arguments):
        self.how = function, arguments

    def __reduce__(self):
        return self.how


class Builds:
    """Pickles to an object whose state is set by force."""

    def __reduce__(self):
        return types.SimpleNamespace, (), {"forward": Calls(os.system, TOUCH)}


PAYLOADS = {
    "os.system": Calls(os.system, TOUCH),
    "os.popen": Calls(os.popen, TOUCH),
    "subprocess.call": Calls(subprocess.call, ["touch", CANARY]),
    "subprocess.Popen": Calls(subprocess.Popen, ["touch", CANARY]),
    "eval": Calls(eval, PYTHON),
    "exec": Calls(exec, PYTHON),
    "compile": Calls(compile, PYTHON, "x", "exec"),
    "open": Calls(open, CANARY, "w"),
    "__import__": Calls(__import__, MODULE),
    "import_module": Calls(importlib.import_module, MODULE),
    "run_path": Calls(runpy.run_path, f"{MODULE}.py"),
    "run_module": Calls(runpy.run_module, MODULE),
    "pydoc.locate": Calls(pydoc.locate, f"{MODULE}.x"),
    "pydoc.pipepager": Calls(pydoc.pipepager, "text", TOUCH),
    "ctypes.CDLL": Calls(ctypes.CDLL, None),
    "logging.FileHandler": Calls(logging.FileHandler, CANARY),
    "getattr": Calls(getattr, os, "system") if False else Calls(getattr, "os", "upper"),
    "attrgetter": Calls(operator.attrgetter, "system"),
    "methodcaller": Calls(operator.methodcaller, "system", TOUCH),
    "partial": Calls(functools.partial, os.system, TOUCH),
    "rmtree": Calls(shutil.rmtree, "."),
    "copyfile": Calls(shutil.copyfile, f"{MODULE}.py", CANARY),
    "webbrowser": Calls(webbrowser.open, "http://127.0.0.1"),
    "marshal": Calls(marshal.loads, marshal.dumps(compile(PYTHON, "x", "exec"))),
    "pickle in pickle": Calls(pickle.loads, pickle.dumps(Calls(os.system, TOUCH))),
    "torch.load": Calls(torch.load, CANARY),
    "torch.hub": Calls(torch.hub.load, ".", "x"),
    "numpy.load": Calls(np.load, CANARY),
    "numpy.memmap": Calls(np.memmap, CANARY, "f4", "w+", 0, (1,)),
    "an array of objects": np.array([Calls(os.system, TOUCH)], dtype=object),
    "a path": pathlib.Path("../../canary"),
    "a new class": Calls(type, "X", (), {}),
    "a state by force": Builds(),
    "a whole net": nn.Linear(2, 1),
    "a class": nn.Linear,
    "a set": {1, 2},
    "bytes": b"data",
    "an exception": Calls(ValueError, "x"),
}
# Plain data all of it, which must stay data: what others have imported, called or made a path of.
STRINGS = {
    "_instantiator": {"_instantiator": "canary_module.run", "hyper_parameters": {"x": 1}},
    "class names": {"__class__": "canary_module.Net", "module": MODULE, "target": "os.system"},
    "a path for a name": {"../../canary": torch.ones(1), "/etc/canary": torch.ones(1)},
    "a template": {"{0.__class__}": torch.ones(1), "%s%n": "{canary!r}"},
}


def as_pickle(value, protocol):
    return pickle.dumps(value, protocol=protocol)


def as_torch(value, _):
    """What torch.save writes of {"x": value}: the pickle is in a zip."""
    file = io.BytesIO()
    torch.save({"x": value}, file)
    return file.getvalue()


def as_ours(value, _):
    raw = as_torch(value, _)
    return raw + hashlib.sha256(raw).digest() + MARK


def as_legacy(value, _):
    file = io.BytesIO()
    torch.save({"x": value}, file, _use_new_zipfile_serialization=False)
    return file.getvalue()


def as_packed(value, protocol):
    return gzip.compress(pickle.dumps(value, protocol=protocol))


FORMS = {
    "a pickle": (as_pickle, 2),
    "a pickle of protocol 4": (as_pickle, 4),
    "torch's zip": (as_torch, 2),
    "with our sum": (as_ours, 2),
    "torch's old form": (as_legacy, 2),
}
READERS = {
    "load_weights": lambda path: load_weights(nn.Linear(2, 1), path),
    "resume": lambda path: example_fit([], resume=path),
    "read_state": read_state,
}


class Audit:
    """What Python reports of programs, imports and files that are written."""

    seen: ClassVar[list] = []
    on = False

    @classmethod
    def hook(cls, event, arguments):
        if not cls.on:
            return
        written = (
            event == "open" and isinstance(arguments[1], str) and set("wax+") & {*arguments[1]}
        )
        named = event == "import" and arguments[0] not in KNOWN
        if written or named or event in FATAL:
            cls.seen.append((event, arguments[:1]))


FATAL = {"os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "ctypes.dlopen"}
FATAL |= {"exec", "compile", "shutil.rmtree", "webbrowser.open", "socket.connect", "marshal.loads"}
KNOWN: set = set()


@pytest.fixture
def watched(tmp_path, monkeypatch):
    """A folder with a module that tells if it is imported; and the audit hook."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / f"{MODULE}.py").write_text(f"{PYTHON}.close()\n")
    monkeypatch.syspath_prepend(tmp_path)
    for read in READERS.values():  # what they import by themselves
        write_state("warm", {"x": torch.ones(1)})
        with pytest.raises((CheckpointError, ValueError)) if read is not read_state else none():
            read("warm")
    Path("warm").unlink()
    if not KNOWN:
        sys.addaudithook(Audit.hook)
    KNOWN.update(sys.modules)
    Audit.seen = []
    yield tmp_path
    Audit.on = False


class none:  # noqa: N801
    def __enter__(self):
        return self

    def __exit__(self, *error):
        return False


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("form", FORMS)
def test_nothing_in_a_file_is_run(watched, reader, form):
    make, protocol = FORMS[form]
    refused = 0
    for name, payload in PAYLOADS.items():
        Path("file").write_bytes(make(payload, protocol))
        before = sorted(p.name for p in watched.iterdir())
        Audit.on = True
        try:
            READERS[reader]("file")
        except (CheckpointError, TypeError) as error:
            refused += 1
            assert "\n  fix:    " in str(error), (name, error)
        finally:
            Audit.on = False
        assert Audit.seen == [], (name, Audit.seen)
        assert sorted(p.name for p in watched.iterdir()) == before, name
        assert MODULE not in sys.modules
    assert refused == len(PAYLOADS)


@pytest.mark.parametrize("name", STRINGS)
def test_strings_stay_strings(watched, name):
    write_state("file", STRINGS[name])
    Audit.on = True
    state = read_state("file")
    for reader in "load_weights", "resume":
        with pytest.raises(CheckpointError):
            READERS[reader]("file")
    Audit.on = False
    assert state.keys() == STRINGS[name].keys()
    assert Audit.seen == [] and MODULE not in sys.modules
    assert not Path(CANARY).exists() and not Path("../../canary").exists()


def test_the_audit_would_see_it(watched):
    for payload in "os.system", "import_module":
        Path("file").write_bytes(pickle.dumps(PAYLOADS[payload]))
        Audit.on = True
        with Path("file").open("rb") as file:
            pickle.load(file)
        Audit.on = False
    assert {event for event, _ in Audit.seen} >= {"os.system", "exec"}
    assert Path(CANARY).exists()


def test_an_archive_that_is_no_torch_file_is_refused(tmp_path):
    path = tmp_path / "file"
    write_state(path, {"x": torch.ones(3)})
    with zipfile.ZipFile(path) as archive:
        parts = {entry: archive.read(entry) for entry in archive.namelist()}
    folder = next(iter(parts)).split("/")[0]
    changes = {
        "packed": {"compression": zipfile.ZIP_DEFLATED},
        "two pickles": {"more": {f"{folder}x/data.pkl": parts[f"{folder}/data.pkl"]}},
        "no pickle": {"less": f"{folder}/data.pkl"},
        "a record missing": {"less": f"{folder}/data/0"},
        "a record too short": {"more": {f"{folder}/data/0": b"\0" * 4}},
        "nothing": {"parts": {}},
    }
    for name, change in changes.items():
        with zipfile.ZipFile(path, "w", change.get("compression", zipfile.ZIP_STORED)) as archive:
            these = change.get("parts", {**parts, **change.get("more", {})})
            for entry, data in these.items():
                if entry != change.get("less"):
                    archive.writestr(entry, data)
        with pytest.raises(CheckpointError, match="is not read"):
            load_weights(nn.Linear(1, 1), path)
        assert name


@sizes(300, 3000)
def test_no_mutation_of_a_file_without_a_sum_crashes(tmp_path, size):
    path, rng = tmp_path / "file", np.random.default_rng(0)
    net = nn.Linear(3, 2)
    torch.save(net.state_dict(), path)
    raw = np.frombuffer(path.read_bytes(), np.uint8)
    other = nn.Linear(3, 2)
    for _ in range(size):
        changed = raw.copy()
        at = rng.integers(0, len(raw), rng.integers(1, 9))
        changed[at] = rng.integers(0, 256, len(at))
        path.write_bytes(changed.tobytes())
        try:
            load_weights(other, path)
        except CheckpointError as error:
            assert "\n  fix:    " in str(error)


@pytest.mark.parametrize("protocol", [2, 4])
def test_the_lessons_reader_runs_nothing_either(watched, protocol):
    for name, payload in PAYLOADS.items():
        Path("mnist.pkl.gz").write_bytes(as_packed(payload, protocol))
        Audit.on = True
        with pytest.raises(ValueError, match=r"(?s)is not the lesson's file.*fix:"):
            load_mnist("mnist.pkl.gz")
        Audit.on = False
        assert Audit.seen == [], name
    assert not Path(CANARY).exists()


OLD = Path(__file__).parent / "made_by"


@pytest.mark.parametrize("path", sorted(OLD.glob("*.ckpt")), ids=lambda path: path.name)
def test_the_checkpoints_of_released_versions_are_read(path):
    history = example_fit([], epochs=3, resume=path)
    assert len(history) == 3
    whole = example_fit([], epochs=3)["val_loss"]
    assert history["val_loss"] == pytest.approx(whole, rel=1e-4)  # another processor rounds so


def test_there_is_one_of_each_version():
    assert {path.stem for path in OLD.glob("*.ckpt")} == {"0.1.0"}
