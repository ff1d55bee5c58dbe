"""Every fault of the list has an outcome and tests that exist, and the page says the same."""

from __future__ import annotations

import ast
import json
from functools import cache
from pathlib import Path

import pytest
from fault_page import MARKED, PAGE, RESULTS, page
from fault_rows import ROWS

from steepest.training import faults as laboratory

TESTS = Path(__file__).parents[1]


@cache
def names_in(path: str) -> frozenset[str]:
    """The tests at the top of a file, by name."""
    tree = ast.parse((TESTS / path).read_text(encoding="utf-8"))
    return frozenset(node.name for node in tree.body if isinstance(node, ast.FunctionDef))


def test_no_row_is_missing() -> None:
    assert list(ROWS) == list(range(1, 43))
    assert list(laboratory.ROWS) == list(ROWS)
    assert all(row.tests for row in ROWS.values())


@pytest.mark.parametrize("number", ROWS)
def test_a_row_says_what_happens_and_its_tests_exist(number: int) -> None:
    row = ROWS[number]
    assert row.fault and row.outcome.endswith(".")
    assert len(set(row.tests)) == len(row.tests)
    for test in row.tests:
        path, _, name = test.partition("::")
        assert name.startswith("test_") and name in names_in(path), test


def test_the_page_is_fresh() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert len(MARKED.findall(text)) == 1
    assert text == page(), "run python tests/training/fault_page.py"


def test_the_laboratory_s_results_are_of_its_rows() -> None:
    """A row that is worded anew has to be provoked anew."""
    rows = json.loads(RESULTS.read_text(encoding="utf-8"))["rows"]
    listed = [(row.number, row.fault, row.must) for row in laboratory.ROWS.values()]
    assert [(row["number"], row["fault"], row["must"]) for row in rows] == listed
