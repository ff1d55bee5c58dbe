"""The pages about performance show the figures that are committed, and nothing else."""

import json
from pathlib import Path

import pytest

from steepest.lab.bench import page

ROOT = Path(__file__).parents[2]
PAGES = {"step": "performance", "step_avx512": "performance-avx512"}


def record_of(figures):
    return json.loads((ROOT / "bench" / "results" / f"{figures}.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("figures", PAGES)
def test_the_tables_are_those_of_the_committed_figures(figures):
    text = (ROOT / "docs" / f"{PAGES[figures]}.md").read_text(encoding="utf-8")
    assert page(record_of(figures), text) == text


@pytest.mark.parametrize("figures", PAGES)
def test_the_figures_are_of_a_real_model_and_say_where_from(figures):
    record = record_of(figures)
    assert record["parameters"] == 124_439_808
    assert record["command"].startswith(("steepest bench step", "python bench/step.py"))
    assert record["machine"]["cpu"] and len(record["cases"]) >= 20
