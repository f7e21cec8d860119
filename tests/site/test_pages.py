"""What can be held of the built pages without a browser: links, anchors, alt texts, notebooks."""

import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urljoin, urlparse

import nbformat
import pytest

from minifast import plugins

from .conftest import REPOSITORY
from .make_notebooks import PAGES, notebook

DOCS = REPOSITORY / "docs"
LOADING = {"script": "src", "img": "src", "iframe": "src", "source": "src", "video": "src"}


class Page(HTMLParser):
    """What a page links to, loads, and can be linked to at."""

    def __init__(self, text):
        super().__init__()
        self.links, self.loads, self.anchors, self.without_alt = [], [], set(), []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.anchors |= {attrs[key] for key in ("id", "name") if attrs.get(key)}
        if tag == "a" and "href" in attrs:
            self.links.append(attrs["href"])
        if tag == "img" and not (attrs.get("alt") or "").strip():
            self.without_alt.append(attrs.get("src", "")[:60])
        if tag in LOADING and attrs.get(LOADING[tag]):
            self.loads.append(attrs[LOADING[tag]])
        if tag == "link" and attrs.get("rel") not in ("canonical", "next", "prev", "alternate"):
            self.loads.append(attrs["href"])


@pytest.fixture(scope="session")
def pages(site):
    return {
        path.relative_to(site).as_posix(): Page(path.read_text(encoding="utf-8"))
        for path in sorted(site.rglob("*.html"))
    }


def test_every_link_and_anchor_inside_lives(site, pages):
    dead = []
    for name, page in pages.items():
        if name == "404.html":  # its links begin at the site's root, wherever that is
            continue
        for link in page.links:
            at = urlparse(urljoin(f"http://site/{name}", link))
            if at.netloc != "site":
                continue
            path = unquote(at.path).lstrip("/")
            path = f"{path}index.html" if path.endswith("/") or not path else path
            there = path in pages or (site / path).is_file()
            if not there or (at.fragment and unquote(at.fragment) not in pages[path].anchors):
                dead.append(f"{name}: {link}")
    assert not dead, "\n".join(dead)
    assert len(pages) > 40


def test_nothing_is_loaded_from_another_host(pages):
    loads = [(name, url) for name, page in pages.items() for url in page.loads]
    assert [(name, url) for name, url in loads if re.match(r"(https?:)?//", url)] == []
    assert len(loads) > len(pages)


def test_every_picture_has_alt_text(pages):
    assert {name: page.without_alt for name, page in pages.items() if page.without_alt} == {}


def test_every_public_name_is_in_the_reference(pages):
    anchors = set().union(*(page.anchors for page in pages.values()))
    missing = []
    for module in sorted((REPOSITORY / "minifast").rglob("*.py")):
        name = module.relative_to(REPOSITORY).with_suffix("").as_posix().replace("/", ".")
        public = re.search(r"^__all__ = \[(.*?)\]", module.read_text(), re.MULTILINE | re.DOTALL)
        for each in re.findall(r'"(\w+)"', public[1]) if public else ():
            exempt = {name, f"{name}.{each}"} & EXPLAINED
            if not exempt and not any(a.endswith(f".{each}") for a in anchors):
                missing.append(f"{name}.{each}")
    missing += [p for p in plugins.STOCK if not any(a.endswith(f".{p}") for a in anchors)]
    assert not missing, missing


# Star imports hand names over that are documented where they are defined, or are other packages'.
EXPLAINED = {
    "minifast.io.gzip",
    "minifast.compat.io",
    "minifast.imports",
    "minifast.torch_imports",
    "minifast.__init__",
}


@pytest.mark.parametrize("name", PAGES)
def test_the_notebook_is_that_of_its_page(name):
    made = nbformat.writes(notebook((DOCS / PAGES[name]).read_text(encoding="utf-8")))
    kept = (DOCS / "notebooks" / f"{name}.ipynb").read_text(encoding="utf-8")
    assert made.strip() == kept.strip(), "python -m tests.site.make_notebooks"


@pytest.mark.parametrize("name", PAGES)
def test_the_notebook_runs(name, tmp_path):
    from nbclient import NotebookClient

    book = nbformat.read(DOCS / "notebooks" / f"{name}.ipynb", as_version=4)
    assert sum(cell.cell_type == "code" for cell in book.cells) >= 3
    NotebookClient(book, timeout=120, resources={"metadata": {"path": tmp_path}}).execute()


def test_printed_results_are_made_by_building(site):
    for path in [*(DOCS / "lesson").glob("*.md"), *(DOCS / "how-to").glob("*.md")]:
        text = path.read_text()
        assert "```text" not in text, f"{path}: a result that nobody makes"
        blocks = re.findall(r"^```python(.*)$", text, re.MULTILINE)
        assert all('exec="on"' in block for block in blocks), path
    html = Path(site, "lesson", "fit", "index.html").read_text()
    assert html.count("data:image/png") >= 6
