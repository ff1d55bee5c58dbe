"""The config of a run: what people write is read, and a mistake is one sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from steepest.contract import SteepestError
from steepest.training import RunConfig, load_config, parse_config, prepare

GOOD = {"optimizer": {"name": "adamw", "lr": 3e-4}}


def write(folder: Path, text: str) -> Path:
    path = folder / "run.yaml"
    path.write_text(text)
    return path


def test_a_config_survives_the_way_through_yaml(tmp_path: Path) -> None:
    config = RunConfig(
        model="small",
        optimizer={"name": "lion", "lr": 1e-4, "betas": [0.9, 0.99]},
        schedule={"name": "wsd", "warmup": 20, "cooldown": 0.2},  # type: ignore[arg-type]
        clip=None,
    )
    path = write(tmp_path, yaml.safe_dump(config.model_dump(mode="json")))
    assert load_config(path).model_dump(mode="json") == config.model_dump(mode="json")


@pytest.mark.parametrize("text", ["3e-4", "3E-4", "0.0003", "'3e-4'", "3.0e-4", "+3e-4"])
def test_learning_rates_are_numbers_however_they_are_written(tmp_path: Path, text: str) -> None:
    config = load_config(write(tmp_path, f"optimizer: {{name: adamw, lr: {text}, betas: [9e-1, 0.95]}}"))
    assert config.optimizer == {"name": "adamw", "lr": 3e-4, "betas": (0.9, 0.95)}


@pytest.mark.parametrize(
    ("warmup", "steps", "expected"), [(0.1, 200, 20), (0, 200, 0), (30, 200, 30), (1, 200, 1)]
)
def test_warmup_is_a_share_below_one_and_steps_from_there(warmup: float, steps: int, expected: int) -> None:
    config = RunConfig(**GOOD, schedule={"name": "linear", "warmup": warmup})  # type: ignore[arg-type]
    assert config.schedule.build(1.0, steps).warmup == expected  # type: ignore[attr-defined]


MISTAKES: list[tuple[str, str]] = [
    ("", "holds no config"),
    ("- 1\n- 2", "holds no config"),
    ("optimizer: {name: adamw", "not valid YAML"),
    ("steps: 100", "optimizer is missing"),
    ("optimizer: adamw", "optimizer: input should be a valid dictionary"),
    ("optimizer: {lr: 3e-4}", "needs a name and an lr"),
    ("optimizer: {name: adamw}", "needs a name and an lr"),
    ("optimizer: {name: adamww, lr: 3e-4}", "did you mean 'adamw'"),
    ("optimizer: {name: 3, lr: 3e-4}", "name must be text, got 3"),
    ("optimizer: {name: adamw, lr: fast}", "lr must be a number from 0 up, got 'fast'"),
    ("optimizer: {name: adamw, lr: -1}", "lr must be a number from 0 up, got -1"),
    ("optimizer: {name: adamw, lr: .nan}", "lr must be a number from 0 up, got nan"),
    ("optimizer: {name: adamw, lr: .inf}", "lr must be a number from 0 up, got inf"),
    ("optimizer: {name: adamw, lr: [1, 2]}", "lr must be a number"),
    ("optimizer: {name: adamw, lr: null}", "lr must be a number"),
    ("stps: 10\noptimizer: {name: adamw, lr: 3e-4}", "did you mean 'steps'"),
    ("lr: 10\noptimizer: {name: adamw, lr: 3e-4}", "unknown key"),
    ("1: 10\noptimizer: {name: adamw, lr: 3e-4}", "keys should be strings"),
    ("steps: many\noptimizer: {name: adamw, lr: 3e-4}", "steps: .*got 'many'"),
    ("steps: 0\noptimizer: {name: adamw, lr: 3e-4}", "steps: .*got 0"),
    ("batch: -8\noptimizer: {name: adamw, lr: 3e-4}", "batch: .*got -8"),
    ("clip: 0\noptimizer: {name: adamw, lr: 3e-4}", "clip: .*got 0"),
    ("clip: .inf\noptimizer: {name: adamw, lr: 3e-4}", "clip: .*got inf"),
    ("schedule: cosine\noptimizer: {name: adamw, lr: 3e-4}", "schedule: .*got 'cosine'"),
    ("schedule: {warmup: .inf}\noptimizer: {name: adamw, lr: 3e-4}", "schedule.warmup: .*got inf"),
    ("schedule: {warmup: 2.5}\noptimizer: {name: adamw, lr: 3e-4}", "warmup 2.5 is neither"),
]


@pytest.mark.parametrize(("text", "words"), MISTAKES)
def test_a_mistake_in_the_file_is_one_sentence(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(SteepestError, match=words) as caught:
        load_config(write(tmp_path, text))
    assert "\n" not in str(caught.value) and "pydantic" not in str(caught.value)


BUILT: list[tuple[dict[str, Any], str]] = [
    ({"optimizer": {"name": "adamw", "lr": 1e-3, "bets": 0.9}}, "did you mean 'betas'"),
    ({"optimizer": {"name": "adamw", "lr": 1e-3, "betas": [0.9, 1.5]}}, r"betas\[1\]=1.5 is out of range"),
    ({"optimizer": {"name": "adamw", "lr": 1e-3, "betas": 0.9}}, "betas must be 2 numbers"),
    ({"optimizer": {"name": "adamw", "lr": 1e-3, "weight_decay": -0.1}}, "weight_decay=-0.1 is out of range"),
    ({"schedule": {"name": "cosin"}}, "did you mean 'cosine'"),
    ({"schedule": {"name": "cosine", "finl": 0.1}}, "did you mean 'final'"),
    ({"schedule": {"name": "cosine", "warmup": 999}}, "warmup"),
    ({"model": "tiyn"}, "did you mean 'tiny'"),
    ({"data": "nowhere/at.txt"}, "no file or folder"),
    ({"tokenizer": "model"}, "needs a model folder"),
    ({"device": "cpuu"}, "device 'cpuu' cannot be used .*; use cpu"),
]


@pytest.mark.parametrize(("changes", "words"), BUILT)
def test_a_mistake_found_in_building_is_one_sentence(changes: dict[str, Any], words: str) -> None:
    base = {**GOOD, "model": "toys:bigram", "data": "synthetic:0:20000"}
    with pytest.raises(SteepestError, match=words) as caught:
        prepare(RunConfig(**{**base, **changes}))
    assert "\n" not in str(caught.value)


def test_a_file_that_cannot_be_read_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(SteepestError, match=r"no config at .*nothing\.yaml; `steepest compare` writes one"):
        load_config(tmp_path / "nothing.yaml")
    with pytest.raises(SteepestError, match="cannot read"):
        load_config(tmp_path)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\x00\xfe")
    with pytest.raises(SteepestError, match=r"binary\.yaml"):
        load_config(tmp_path / "binary.yaml")


def test_a_misspelt_required_key_is_named_before_the_one_it_leaves_missing() -> None:
    with pytest.raises(SteepestError, match="unknown key in here 'optimiser'; did you mean 'optimizer'"):
        parse_config({"optimiser": {"name": "adamw", "lr": 1e-3}}, "here")
