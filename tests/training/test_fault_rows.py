"""Every fault of the list has an outcome and tests that exist, and the page says the same."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest
from fault_page import MARKED, PAGE, page
from fault_rows import ROWS

TESTS = Path(__file__).parents[1]

LATER = {18, 31, 33}
"""Rows that are about several processes altogether."""


@cache
def names_in(path: str) -> frozenset[str]:
    """The tests at the top of a file, by name."""
    tree = ast.parse((TESTS / path).read_text(encoding="utf-8"))
    return frozenset(node.name for node in tree.body if isinstance(node, ast.FunctionDef))


def test_no_row_is_missing() -> None:
    assert list(ROWS) == list(range(1, 43))
    assert {number for number, row in ROWS.items() if not row.tests} == LATER
    assert {number for number, row in ROWS.items() if row.several} == LATER | {1, 10, 11, 23, 37, 42}


@pytest.mark.parametrize("number", ROWS)
def test_a_row_says_what_happens_and_its_tests_exist(number: int) -> None:
    row = ROWS[number]
    assert row.fault and (row.outcome.endswith(".") or number in LATER)
    assert len(set(row.tests)) == len(row.tests)
    for test in row.tests:
        path, _, name = test.partition("::")
        assert name.startswith("test_") and name in names_in(path), test


def test_the_page_is_fresh() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert len(MARKED.findall(text)) == 1
    assert text == page(), "run python tests/training/fault_page.py"
