"""Plugins that other packages have installed: listed, loaded, and told what is wrong with them."""

import importlib
import sys

import pytest

from minifast import __main__, plugins
from minifast.plugins import EMA


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Installs a package: its modules, by name, and its entry points, by group."""

    def installed(package, modules, **groups):
        folder = tmp_path / package
        folder.mkdir()
        for name, source in modules.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(source)
        info = folder / f"{package}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        lines = [f"[{g.replace('__', '.')}]\n" + "\n".join(names) for g, names in groups.items()]
        (info / "entry_points.txt").write_text("\n".join(lines))
        monkeypatch.syspath_prepend(folder)
        importlib.invalidate_caches()

    before = set(sys.modules)
    yield installed
    for name in set(sys.modules) - before:
        if "_of_a_test" in name:
            del sys.modules[name]


GOOD = '''
from minifast import Callback, Stepper
class EMA(Callback):
    """Another one."""
class Lookahead(Callback):
    """Looks ahead."""
class Step(Stepper):
    """Steps."""
class Duck:
    """Steps too."""
    def step(self, run, events): ...
    def forward(self, net, x): ...
def make(n=1):
    """Makes one."""
    return Lookahead()
class Outer:
    class Inner(Callback): ...
five = 5
class Meter:
    """Counts."""
    def update(self, preds, targs): ...
    def compute(self): ...
'''


def load_error(name, kind):
    with pytest.raises(kind) as info:
        plugins.load(name)
    assert len(str(info.value).splitlines()) == 5  # a KeyError would show them as one
    return str(info.value)


def test_a_plugin_that_cannot_be_read_does_not_hide_the_others(install, capsys):
    sources = {
        "bad_of_a_test.py": "def (",
        "null_of_a_test.py": "\0",
        "deep_of_a_test/__init__.py": "",
        "deep_of_a_test/inner.py": GOOD,
    }
    callbacks = ["Bad = bad_of_a_test:Bad", "Null = null_of_a_test:Null", "Gone = gone_of_a_test:X"]
    callbacks += ["Lost = deep_of_a_test.other:X", "Lookahead = deep_of_a_test.inner:Lookahead"]
    install("odd", sources, minifast__callbacks=callbacks)
    __main__.main(["plugins"])
    lines = {line.split()[1]: line for line in capsys.readouterr().out.splitlines()}
    assert "cannot be read: SyntaxError" in lines["Bad"] and "bad_of_a_test.py" in lines["Bad"]
    assert "cannot be read: " in lines["Null"]
    assert "there is no module gone_of_a_test" in lines["Gone"]
    assert "there is no module deep_of_a_test.other" in lines["Lost"]
    assert lines["Lookahead"].endswith("Looks ahead.") and "accuracy" in lines
    with pytest.raises(SyntaxError) as info:
        plugins.load("Bad")
    assert info.value.__notes__ == ["raised while loading Bad, which odd 1.0 declares"]


def test_an_unknown_name_is_told_its_nearest(install):
    install("good", {"good_of_a_test.py": GOOD}, minifast__callbacks=["LA = good_of_a_test:EMA"])
    assert "did you mean EMA?" in load_error("ema", LookupError)
    assert "did you mean EarlyStopping?" in load_error("EarlyStoping", LookupError)
    assert "did you mean" not in load_error("Xyzzy", LookupError)
    assert "names no installed" in load_error("good:EMA", LookupError)
    assert "must be the name" in load_error(EMA, TypeError)


def test_one_of_two_packages_is_chosen_by_its_name(install):
    names = ["EMA = good_of_a_test:EMA"]
    install("Good_Ones", {"good_of_a_test.py": GOOD}, minifast__callbacks=names)
    text = load_error("EMA", ValueError)
    assert "Good_Ones 1.0" in text and 'load("' in text
    assert plugins.load("minifast:EMA") is EMA
    assert plugins.load("good-ones:EMA").__doc__ == "Another one."


def test_what_is_not_a_plugin_of_its_group_is_not_handed_out(install):
    def at(*names):
        return [f"{name.replace('.', '')}x = good_of_a_test:{name}" for name in names]

    install(
        "good",
        {"good_of_a_test.py": GOOD},
        minifast__callbacks=[*at("Lookahead", "Outer.Inner", "make", "five"), *at("Step", "gone")],
        minifast__steppers=[*at("Duck"), "Stepx2 = good_of_a_test:Step", "L2 = good_of_a_test:EMA"],
        minifast__metrics=[*at("Meter"), "five2 = good_of_a_test:five"],
    )
    for name in "Lookaheadx", "OuterInnerx", "makex", "Stepx2", "Duckx", "Meterx":
        assert callable(plugins.load(name))
    assert "five2 of good 1.0 is not a metric" in load_error("five2", TypeError)
    assert "fivex of good 1.0 is not a callback" in load_error("fivex", TypeError)
    assert "Stepx of good 1.0 is not a callback" in load_error("Stepx", TypeError)
    assert "L2 of good 1.0 is not a stepper" in load_error("L2", TypeError)
    with pytest.raises(AttributeError, match="gone") as info:
        plugins.load("gonex")
    assert "which good 1.0 declares" in info.value.__notes__[0]


@pytest.mark.parametrize(
    "group, meant",
    [
        ("minifast__callback", "minifast.callbacks"),
        ("minifast_callbacks", "minifast.callbacks"),
        ("minifast__stepper", "minifast.steppers"),
        ("minifast__things", "minifast.callbacks or minifast.metrics or minifast.steppers"),
    ],
)
def test_a_misspelled_group_is_told(group, meant, install, capsys):
    names = ["Lookahead = good_of_a_test:Lookahead"]
    install("good", {"good_of_a_test.py": GOOD}, **{group: names}, other__plugins=names)
    __main__.main(["plugins"])
    shown = capsys.readouterr()
    assert "Lookahead" not in shown.out
    assert f"Lookahead of good is not listed: its group must be {meant}" in shown.err
    assert f"its group must be {meant}" in load_error("Lookahead", LookupError)
