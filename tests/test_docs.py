"""Every Python block of README and docs runs, page by page, top to bottom."""

import importlib.util
import inspect
import re
from pathlib import Path

import pytest
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser

from minifast import model

REPOSITORY = Path(__file__).parents[1]
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]


# What other frameworks warn of in themselves is not our errors.
FOREIGN = pytest.mark.filterwarnings("default")


@pytest.mark.parametrize(
    "page",
    [pytest.param(p, marks=[FOREIGN] if p.parent.name == "coming-from" else []) for p in PAGES],
    ids=lambda page: str(page.relative_to(REPOSITORY)),
)
def test_the_code_on_the_page_runs(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    document = Sybil(parsers=[PythonCodeBlockParser(), SkipParser()]).parse(page)
    document.namespace["installed"] = lambda name: importlib.util.find_spec(name) is not None
    for example in document.examples():
        example.evaluate()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_every_block_says_its_language_and_every_picture_what_it_shows(page):
    text = page.read_text()
    fences = re.findall(r"^ *```(.*)$", text, re.MULTILINE)
    assert all(fence.strip() for fence in fences[::2]), "a code block without a language"
    assert not re.search(r"!\[\s*\]\(", text), "a picture without alt text"


def test_every_error_has_its_entry():
    source = "".join(path.read_text() for path in (REPOSITORY / "minifast").rglob("*.py"))
    entries = set(re.findall(r'entry="([a-z0-9-]+)"', source))
    words = set(re.findall(r'"([a-z]+(?:-[a-z0-9]+)*)"', source))
    anchors = set(
        re.findall(r"\{ *#([a-z0-9-]+) *\}", (REPOSITORY / "docs/errors-and-fixes.md").read_text())
    )
    assert entries <= anchors, entries - anchors
    assert anchors - {"all-messages"} <= words, "an entry that no error leads to"


def test_the_loop_that_is_read_line_by_line_is_the_source():
    source = inspect.getsource(model.fit) + inspect.getsource(model._train_epoch)
    lines = {re.sub(r"\s+", " ", line.strip()) for line in source.splitlines()}
    page = (REPOSITORY / "docs" / "loop.md").read_text(encoding="utf-8")
    quoted = re.findall(r"^\| `([^`]+)` \|", page, re.MULTILINE)
    assert len(quoted) > 15
    assert [line for line in quoted if re.sub(r"\s+", " ", line) not in lines] == []
