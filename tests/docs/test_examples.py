"""Every block of Python in the optimizers' pages and in library.md runs, one namespace a page."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
PAGES = [DOCS / "library.md", DOCS / "kernels.md", *sorted((DOCS / "optimizers").glob("*.md"))]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)


def test_the_set_under_test():
    assert len(PAGES) >= 13 and len(BLOCK.findall(PAGES[0].read_text(encoding="utf-8"))) >= 6


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_the_examples_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = page.read_text(encoding="utf-8")
    space: dict[str, object] = {"__name__": "docs_example"}
    for match in BLOCK.finditer(text):
        above = text[: match.start(1)].count("\n")  # a failure then points at the page's own line
        exec(compile("\n" * above + match[1], str(page), "exec"), space)
    if page.parent.name == "optimizers" and page.stem != "index":
        assert space["opt"].committed == 1
