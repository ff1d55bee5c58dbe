"""The page about performance shows the figures that are committed, and nothing else."""

import json
from pathlib import Path

from steepest.lab.bench import page

ROOT = Path(__file__).parents[2]
RECORD = json.loads((ROOT / "bench" / "results" / "step.json").read_text(encoding="utf-8"))


def test_the_tables_are_those_of_the_committed_figures():
    text = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    assert page(RECORD, text) == text


def test_the_figures_are_of_a_real_model_and_say_where_from():
    assert RECORD["parameters"] == 124_439_808
    assert (
        RECORD["command"].startswith(("steepest bench step", "python bench/step.py"))
        and RECORD["machine"]["cpu"]
    )
    assert len(RECORD["cases"]) >= 20
