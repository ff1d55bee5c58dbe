"""Borders between stages: two halves are the whole, the first step is foreseen, what ends a stage ends it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from session_cases import LORA, ROLLOUT, finished, generations, session

from steepest.contract import SteepestError
from steepest.training.journal import read_journal, read_metrics

SAME: dict[str, dict[str, Any]] = {
    "next_token": {"data": "synthetic:0:4000", "accumulate": 2},
    "packed": {"data": "synthetic:0:4000", "packing": True},
    "sft": {"objective": "sft", "adapter": LORA},
    "adafactor": {"data": "synthetic:0:4000", "optimizer": {"name": "adafactor", "lr": 0.01}},
    "int8": {"data": "synthetic:0:4000", "optimizer": {"name": "adamw", "lr": 0.01, "state": "int8"}},
    "rloo": {"objective": "rloo", "rollout": {**ROLLOUT, "updates": 1, "reference": False}},
}
CONSTANT = {"schedule": {"name": "constant", "warmup": 0}, "evals": 1, "guard": {"minimum": 2}}


@pytest.mark.parametrize("changes", SAME.values(), ids=SAME)
def test_two_identical_stages_are_one(changes: dict[str, Any], tmp_path: Path) -> None:
    once = {**CONSTANT, **changes, "steps": 6}
    finished(tmp_path / "one", {**once, "name": "a"})  # an adapter's first numbers go by its stage's name
    later = "keep" if "adapter" in changes else None
    halves = [{"name": "a", "steps": 3}, {"name": "b", "steps": 3, **({"adapter": later} if later else {})}]
    finished(tmp_path / "two", {**once, "stages": halves})
    one, two = generations(tmp_path / "one"), generations(tmp_path / "two")
    for step in range(7):
        ours, theirs = (
            {key: own for key, own in found[step]["tensors"].items() if key[0] != "curves"}
            for found in (one, two)
        )
        assert ours == theirs and ours, f"step {step}"
    assert sum("optimizer" in key for key in one[5]["tensors"]) > 20
    for step in (2, 5):
        rates = [have[step]["facts"]["built"]["optimizer"]["parameters"] for have in (one, two)]
        assert rates[0] == rates[1]
    losses = [[line["loss"] for line in read_metrics(tmp_path / name)] for name in ("one", "two")]
    assert losses[0] == losses[1] and len(losses[0]) == 6


def test_an_adapter_of_the_same_settings_goes_on(tmp_path: Path) -> None:
    stages = [{"name": "a", "adapter": LORA}, {"name": "b", "adapter": LORA}]
    made = finished(tmp_path, {**CONSTANT, "objective": "sft", "steps": 2, "stages": stages})
    names = [name for name, _ in made.builder.policy.named_parameters()]
    assert any("lora_A" in name for name in names)
    carried = generations(tmp_path)[2]["facts"]["built"]["carried"]
    assert {row["step"] for row in carried["rows"]} == {2}


POLICIES = ["keep", "zero_m", "age_reset", {"rescale_v": 0.25}, "rescale_v", "zero", "convert"]


@pytest.mark.parametrize("moments", POLICIES, ids=str)
def test_the_first_step_after_a_border_is_foreseen(moments: Any, tmp_path: Path) -> None:
    """Exactly: it is the same step, on copies."""
    stages = [{"name": "a"}, {"name": "b", "moments": moments, "data": "synthetic:1:4000"}]
    base = {**CONSTANT, "data": "synthetic:0:4000", "steps": 2, "health": {"every": 1}}
    told: list[str] = []
    finished(tmp_path, {**base, "stages": stages}, tell=told.append)
    (event,) = (line for line in read_journal(tmp_path) if line["kind"] == "first_step")
    assert event["step"] == 3 and len(event["foreseen"]) == 16
    assert event["foreseen"].keys() == event["moved"].keys()
    for name, size in event["foreseen"].items():
        assert math.isclose(size, event["moved"][name], rel_tol=1e-4), name
    assert any("foreseen" in words for words in told)


def test_second_moments_are_rescaled_until_the_first_step_has_the_old_size(tmp_path: Path) -> None:
    stages = [{"name": "a"}, {"name": "b", "moments": "rescale_v", "data": "tasks:add:1:40"}]
    stages[1]["objective"] = "sft"
    base = {**CONSTANT, "data": "synthetic:0:4000", "steps": 4, "health": {"every": 1}}
    base["optimizer"] = {"name": "adamw", "lr": 0.01, "weight_decay": 0.0}
    finished(tmp_path, {**base, "stages": stages})
    (event,) = (line for line in read_journal(tmp_path) if line["kind"] == "first_step")
    before, after = (line["update_norm"] for line in read_metrics(tmp_path)[3:5])
    assert math.isclose(before, after, rel_tol=0.1), "each tensor's step has the size of its last one"
    assert len(event["moved"]) == 16


def test_a_first_stage_foresees_nothing(tmp_path: Path) -> None:
    finished(tmp_path, {**CONSTANT, "data": "synthetic:0:4000", "steps": 2})
    assert not [line for line in read_journal(tmp_path) if line["kind"] == "first_step"]


def test_a_warning_ends_a_stage_and_the_next_one_begins(tmp_path: Path) -> None:
    stages = [{"name": "a", "until": {"warning": "loss_spike"}}, {"name": "b", "data": "synthetic:1:4000"}]
    base = {**CONSTANT, "data": "synthetic:0:4000", "steps": 12, "stages": stages, "batch": 1, "context": 8}
    base["optimizer"] = {"name": "adamw", "lr": 1e-9}
    base["guard"] = {"minimum": 2, "warn": 1e-6, "act": 1e-6}  # any rise of the loss is a spike
    made = finished(tmp_path, base)
    first, second = made.results
    assert first.ended.startswith("loss_spike") and first.steps < 12
    assert second.steps == 12


def test_a_stage_ends_by_its_tokens(tmp_path: Path) -> None:
    base = {**CONSTANT, "data": "synthetic:0:4000", "steps": 50, "until": {"tokens": 200}}
    (result,) = finished(tmp_path, base).results
    assert result.steps == math.ceil(200 / (4 * 24)) and result.ended == "288 tokens"


def test_a_reward_that_no_stage_has_trained_is_a_sentence(tmp_path: Path) -> None:
    changes = {"objective": "grpo", "rollout": {**ROLLOUT, "reward": "stage:judge"}}
    with pytest.raises(SteepestError, match="no reward model of a stage 'judge'"):
        session(tmp_path, changes).run()


def test_a_reward_model_leaves_the_policy_as_it_is(tmp_path: Path) -> None:
    stages = [{"name": "judge", "objective": "reward"}]
    made = session(tmp_path, {"stages": stages, "steps": 2})
    made.run()
    fresh = session(tmp_path / "other", {"stages": stages, "steps": 2})
    fresh.builder.enter(0)
    pairs = zip(made.builder.policy.parameters(), fresh.builder.policy.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
