"""The table of docs/faults.md: `python tests/training/fault_page.py` writes it anew."""

from __future__ import annotations

import json
import re
from pathlib import Path

from fault_rows import ROWS

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "faults.md"
RESULTS = ROOT / "bench" / "results" / "faults.json"
"""What the laboratory has found last."""
MARKED = re.compile(
    r"(<!-- faults: tests/training/fault_page\.py -->\n).*?(<!-- end of faults -->)", re.DOTALL
)


def table() -> str:
    """The rows as they stand on the page."""
    found = {row["number"]: row for row in json.loads(RESULTS.read_text(encoding="utf-8"))["rows"]}
    lines = ["| | fault | what happens | shown by | in the laboratory |\n|---|---|---|---|---|\n"]
    for number, row in ROWS.items():
        links = [_link(*test.split("::")) for test in row.tests]
        told = "passes" if found[number]["passed"] else "**fails**"
        lines.append(f"| {number} | {row.fault} | {row.outcome} | {'<br>'.join(links)} | {told} |\n")
    return "".join(lines)


def _link(path: str, name: str) -> str:
    return f"[{name.removeprefix('test_').replace('_', ' ')}](../tests/{path})"


def page() -> str:
    """The page with the table as it should be."""
    return MARKED.sub(lambda found: found[1] + table() + found[2], PAGE.read_text(encoding="utf-8"))


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
