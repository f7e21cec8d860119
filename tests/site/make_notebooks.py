"""Makes a notebook of each chapter: python -m tests.site.make_notebooks

Text becomes Markdown cells and the code that the page shows becomes code cells. What a page runs
without showing it, such as putting a picture in, a notebook does by itself.
"""

import re
import textwrap
from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

DOCS = Path(__file__).parents[2] / "docs"
PAGES = {
    "1-digits": "lesson/digits.md",
    "2-normalising": "lesson/normalising.md",
    "3-a-net": "lesson/a-net.md",
    "4-loss": "lesson/loss.md",
    "5-fit": "lesson/fit.md",
    "6-from-scratch": "lesson/from-scratch.md",
    "7-the-loop": "lesson/the-loop.md",
    "8-deeper": "lesson/deeper.md",
    "9-convolutions": "lesson/convolutions.md",
    "write-a-callback": "write-a-callback.md",
}
FENCE = re.compile(r"^```(\S+)([^\n]*)\n(.*?)^```\n", re.MULTILINE | re.DOTALL)


def notebook(page: str) -> nbformat.NotebookNode:
    """The notebook of a page's text."""
    # A solution that unfolds on the page stands below its exercise.
    page = re.sub(
        r'^\?\?\? \w+ "(.*?)"\n((?:(?: {4}.*)?\n)+)',
        lambda m: f"**{m[1]}**\n\n{textwrap.dedent(m[2])}",
        page,
        flags=re.MULTILINE,
    )
    page = page.partition("\n## The kit's reference")[0]
    cells, end = [], 0
    for fence in FENCE.finditer(page):
        language, options, code = fence.groups()
        if language != "python":
            continue
        cells += _text(page[end : fence.start()])
        end = fence.end()
        if "exec=" not in options or "source=" in options:
            cells.append(new_code_cell(code.strip()))
    cells += _text(page[end:])
    for i, cell in enumerate(cells):
        cell["id"] = f"cell-{i}"  # nbformat's are random: the file would differ each time
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return new_notebook(cells=cells, metadata={"kernelspec": kernel})


def _text(text: str) -> list[nbformat.NotebookNode]:
    text = re.sub(r"\[([^]]+)\]\((?!https?:)[^)]*\)", r"\1", text)  # pages are not beside it
    text = re.sub(r"\[([^]]+)\]\[[^]]*\]", r"\1", text)
    return [new_markdown_cell(text.strip())] if text.strip() else []


def main() -> None:
    """Writes them all."""
    for name, page in PAGES.items():
        text = (DOCS / page).read_text(encoding="utf-8")
        (DOCS / "notebooks").mkdir(exist_ok=True)
        nbformat.write(notebook(text), DOCS / "notebooks" / f"{name}.ipynb")


if __name__ == "__main__":
    main()
