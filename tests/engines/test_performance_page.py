"""The page about performance shows the figures that are committed, and nothing else."""

import importlib.util
import json
from pathlib import Path

ROOT = Path(__file__).parents[2]


def bench():
    spec = importlib.util.spec_from_file_location("bench_foreach", ROOT / "bench" / "foreach.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_table_is_the_one_of_the_committed_figures():
    module = bench()
    record = json.loads((ROOT / "bench" / "results" / "foreach.json").read_text())
    text = module.PAGE.read_text()
    assert module.page(record, text) == text


def test_every_case_is_measured_on_one_thread_and_more():
    module = bench()
    record = json.loads((ROOT / "bench" / "results" / "foreach.json").read_text())
    assert {"1"} < set(record["threads"])
    for cases in record["threads"].values():
        assert set(cases) == set(module.CASES)
    assert record["parameters"] == 124_439_808
