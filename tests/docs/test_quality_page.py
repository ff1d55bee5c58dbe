"""The page about quality shows the figures that are committed, and the script that makes them works."""

import importlib
import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from steepest.contract import SteepestError
from steepest.lab.statistics import paired_difference

ROOT = Path(__file__).parents[2]


@pytest.fixture
def quality(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "bench")  # by its name, as workers import it
    return importlib.import_module("quality")


@pytest.fixture
def record(quality):
    return json.loads(quality.RESULT.read_text())


def test_the_tables_are_those_of_the_committed_figures(quality, record):
    text = quality.PAGE.read_text(encoding="utf-8")
    assert quality.page(record, text) == text, "run python bench/quality.py --page"


def test_no_cell_is_empty_and_none_has_fewer_seeds_than_the_page_says(quality, record):
    cells = 0
    for name, study in quality.STUDIES.items():
        least = {"rates": 1}.get(name, 5)
        found = {}
        for trial in quality.trials(study, record["losses"]):
            key = (trial.model, trial.rule, trial.storage, trial.lr)
            found[key] = found.get(key, 0) + (trial.name in record["losses"])
        assert found and min(found.values()) >= least, name
        cells += len(found)
    assert cells > 100


def test_codecs_are_measured_where_they_act(quality, record):
    (model,) = quality.STUDIES["rules"].models
    assert record["models"][model]["compressed"] >= 0.9


def test_every_recipe_for_the_long_run_is_light(quality):
    assert quality.BEST
    for storage in quality.BEST:
        assert quality.bytes_per_parameter("adamw", storage) <= 4.2
    assert quality.bytes_per_parameter("adamw", "fp32") == 12
    assert quality.bytes_per_parameter("adamw", "nearest/fp32") == 10


def test_a_storage_is_run_only_under_rules_that_have_its_slots(quality):
    assert quality.says_something("lion", "int8")
    assert not quality.says_something("lion", "v=factored")
    assert not quality.says_something("rmsprop", "m=int8+v=factored")
    assert quality.says_something("rmsprop", "v=factored")


def test_the_model_sees_bfloat16_and_the_optimizer_remembers_more(quality):
    trial = quality.Trial("tiny", 20, "adamw", "split24/int8", 4e-3, 1)
    options, narrow = quality.way(trial.storage)
    assert narrow and options == {"state": "int8", "param": "split24"}
    made = quality.prepare(trial.config({}))
    optimizer = quality.on_bfloat16(made.model, trial.config(options))
    before = [p.detach().clone() for p in made.model.parameters()]
    made.model(torch.zeros(1, 8, dtype=torch.long)).logits.logsumexp(-1).sum().backward()
    optimizer.step()  # the schedule's first rate is above zero
    after = list(made.model.parameters())
    assert all(p.dtype == torch.float32 and torch.equal(p, p.bfloat16().float()) for p in after)
    assert all(p.grad is None for p in after)
    assert any(not torch.equal(p, old) for p, old in zip(after, before, strict=True))
    assert sum("p.low" in state for state in optimizer.state.values()) == len(after)


def test_a_cell_is_the_paired_difference_and_bold_only_when_worse(quality):
    study = replace(quality.STUDIES["recipes"], seeds=(1, 2, 3, 4))
    base, worse, better = [2.0, 2.5, 3.0, 2.2], [0.1, 0.11, 0.09, 0.1], [-0.1, -0.11, -0.09, -0.1]
    lr = quality.rate("tiny", "adamw", {})

    def losses(shift):
        ours = [None if s is None else b + s for b, s in zip(base, shift, strict=True)]
        named = {"fp32": base, "int8": ours}
        return {
            quality.Trial("tiny", study.steps, "adamw", storage, lr, seed).name: loss
            for storage, values in named.items()
            for seed, loss in zip(study.seeds, values, strict=True)
        }

    def cell(shift):
        return quality.gap(study, "tiny", "adamw", "int8", losses(shift))

    expected = paired_difference([b + s for b, s in zip(base, worse, strict=True)], base)
    assert cell(worse) == expected
    assert quality.shown(cell(worse)) == f"**+100.0 ± {1e3 * expected.half_width:.1f}**"
    assert not quality.shown(cell(better)).startswith("**")
    assert cell([*worse[:3], None]).mean == math.inf
    assert quality.shown(cell([*worse[:3], None])).startswith("**")
    assert quality.gap(study, "tiny", "adamw", "int8", {}) is None


def test_a_page_without_marks_is_refused(quality, record):
    with pytest.raises(SteepestError, match="marks"):
        quality.page(record, "# Quality\n")


def test_a_study_runs_stops_and_goes_on(quality, monkeypatch, tmp_path, capsys):
    toy = quality.Study("Toy", ("tiny",), 3, (1,), ("split24/int8",))
    monkeypatch.setitem(quality.STUDIES, "toy", toy)
    out = tmp_path / "quality.json"
    whole = quality.measure(["toy"], out, workers=1)
    assert json.loads(out.read_text()) == whole
    assert len(whole["losses"]) == 2 and all(1 < loss < 8 for loss in whole["losses"].values())
    lost = next(iter(whole["losses"]))
    out.write_text(json.dumps({**whole, "losses": {k: v for k, v in whole["losses"].items() if k != lost}}))
    capsys.readouterr()
    again = quality.measure(["toy"], out, workers=1)
    assert again["losses"] == whole["losses"], "the same trial has the same loss"
    assert len(re.findall(r"^toy, ", capsys.readouterr().out, re.MULTILINE)) == 1
    out.write_text(json.dumps({**whole, "versions": {"torch": "0"}}))
    with pytest.raises(SteepestError, match="other versions"):
        quality.measure(["toy"], out, workers=1)
