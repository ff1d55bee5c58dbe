"""Several ranks train what one process trains: losses, validation, facts, parameters, in every placement."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from rank_cases import start
from session_cases import LORA, OBJECTIVES, ROLLOUT, finished

from steepest.training.checkpoint import Store
from steepest.training.config import PLACEMENTS
from steepest.training.journal import read_journal, read_metrics

QUIET: Mapping[str, Any] = {
    "model": "session_cases:still",
    # What a gradient near zero is rounded to must not decide the direction of a whole step.
    "optimizer": {"name": "adamw", "lr": 0.01, "weight_decay": 0.1, "eps": 1e-3},
    "health": {"every": 1},
    "checkpoint": {"every": None, "minutes": None, "background": False},
}
RUNS: Mapping[str, Mapping[str, Any]] = {
    "next_token": {**OBJECTIVES["next_token"], **QUIET},
    "packed": {**OBJECTIVES["packed"], **QUIET},
    "adagc": {
        **OBJECTIVES["next_token"],
        **QUIET,
        "guard": {"adagc": {"warmup": 1, "absolute": 0.1, "relative": 1.0}},
    },
    "sft": {**OBJECTIVES["sft"], **QUIET, "adapter": {**LORA, "dropout": 0.0}, "batch": 5},
    "dpo": {**OBJECTIVES["dpo"], **QUIET},
    "reward": {**OBJECTIVES["reward"], **QUIET},
    "grpo": {
        **OBJECTIVES["grpo"],
        **QUIET,
        "rollout": {**ROLLOUT, "reward": "session_cases:letters"},
        "batch": 5,
        "accumulate": 3,
    },
    "ppo": {**OBJECTIVES["ppo"], **QUIET, "rollout": {**ROLLOUT, "kl_in_reward": 0.05}},
}
TRAINED: Mapping[str, tuple[str, ...]] = {
    "ddp": tuple(RUNS),
    "zero1": ("next_token", "adagc", "grpo"),
    "zero2": ("next_token", "adagc", "sft"),
    "fsdp": ("next_token", "adagc", "sft", "grpo", "ppo"),
    "hybrid": ("next_token", "adagc", "grpo"),
}
CELLS = [(kind, name) for kind, names in TRAINED.items() for name in names]
TIMED = ("seconds", "tokens_per_second", "step_ms", "eta_seconds", "memory_mb")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every run by one process, and by two ranks."""
    made = tmp_path_factory.mktemp("ranks")
    for name, changes in RUNS.items():
        finished(made / "one" / name, changes)
    cases = {f"{kind}/{name}": {"changes": {**RUNS[name], "placement": kind}} for kind, name in CELLS}
    told = start(2, made / "two", cases)
    assert told[0] == told[1], "all ranks know the same"
    copies = {name: cases[name] for name in ("hybrid/next_token", "hybrid/adagc")}
    start(4, made / "two of two", copies, machines=2)
    start(3, made / "three", {"ddp/next_token": cases["ddp/next_token"], "fsdp/sft": cases["fsdp/sft"]})
    return made


def assert_equal(ours: Path, theirs: Path) -> None:
    """Two folders hold one run, to rounding."""
    lines, others = read_metrics(ours), read_metrics(theirs)
    assert len(lines) == len(others) > 2
    for line, other in zip(lines, others, strict=True):
        layers, other_layers = line.pop("layers", {}), other.pop("layers", {})
        assert line.keys() == other.keys() and layers.keys() == other_layers.keys() and layers
        for key in line.keys() - set(TIMED):
            near = isinstance(other[key], float)
            expected = pytest.approx(other[key], rel=2e-4, abs=1e-5) if near else other[key]
            assert line[key] == expected, key
    saved, expected = (Store(folder / "checkpoints").load() for folder in (ours, theirs))
    assert saved.facts["builder"] == expected.facts["builder"] or saved.facts["builder"]["previous"]
    for group in ("policy", "optimizer"):
        if group not in expected.tensors:
            continue
        assert saved.tensors[group].keys() == expected.tensors[group].keys()
        for name, tensor in expected.tensors[group].items():
            torch.testing.assert_close(
                saved.tensors[group][name], tensor, rtol=1e-3, atol=2e-5, msg=lambda m, n=name: f"{n}: {m}"
            )


def test_every_placement_is_there() -> None:
    assert {kind for kind, _ in CELLS} == set(PLACEMENTS) - {"one"}
    assert len(CELLS) == len(set(CELLS)) >= 17


@pytest.mark.parametrize(("kind", "name"), CELLS)
def test_two_ranks_train_what_one_process_does(folder: Path, kind: str, name: str) -> None:
    assert_equal(folder / "two" / kind / name, folder / "one" / name)


@pytest.mark.parametrize("name", ["next_token", "adagc"])
def test_two_machines_of_two_ranks_hold_a_copy_each(folder: Path, name: str) -> None:
    assert_equal(folder / "two of two" / "hybrid" / name, folder / "one" / name)


@pytest.mark.parametrize("cell", ["ddp/next_token", "fsdp/sft"])
def test_three_ranks_whose_parts_are_uneven(folder: Path, cell: str) -> None:
    assert_equal(folder / "three" / cell, folder / "one" / cell.split("/")[1])


def test_the_clipping_of_single_tensors_has_clipped(folder: Path) -> None:
    clipped, free = (read_metrics(folder / "one" / name) for name in ("adagc", "next_token"))
    assert clipped[0]["grad_norm"] == pytest.approx(0.1, rel=1e-3) and free[0]["grad_norm"] > 0.2
    assert clipped[-1]["grad_norm"] < free[-1]["grad_norm"]


def test_one_rank_writes_the_diaries_and_says_how_many_there_are(folder: Path) -> None:
    lines = read_journal(folder / "three" / "ddp" / "next_token")
    assert [line["ranks"] for line in lines if line["kind"] == "start"] == [3]
    assert len([line for line in lines if line["kind"] == "stage"]) == 1
