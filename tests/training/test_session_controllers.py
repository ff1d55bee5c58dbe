"""Controllers in a run: where a fixed rate loses the policy they keep it, and they are saved and restored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from session_cases import ROLLOUT, assert_same, finished, generations

from steepest.contract import SteepestError
from steepest.training.journal import read_journal, read_metrics

GRPO: dict[str, Any] = {
    "model": "session_cases:still",
    "objective": "grpo",
    "steps": 60,
    "evals": 1,
    "clip": None,
    "optimizer": {"name": "adamw", "lr": 0.5},
    "schedule": {"name": "constant", "warmup": 20},
    "checkpoint": {"every": None, "minutes": None},
    "health": {"every": 0},
    "rollout": {"group": 8, "new_tokens": 6, "reward": "session_cases:letters", "updates": 4},
}
SEEDS = (3, 4, 5)


def last(folder: Path, key: str, steps: int = 12) -> float:
    """The mean over the last steps."""
    lines = read_metrics(folder)[-steps:]
    return float(sum(line[key] for line in lines) / len(lines))


@pytest.mark.slow
def test_a_rate_led_by_kl_keeps_the_policy_that_a_fixed_one_loses(tmp_path: Path) -> None:
    """A rate far too high: left alone, the policy collapses into one answer in most seeds; led by KL(old ||
    new) and the clip fraction, it goes on improving in all of them."""
    rate = {"rate": {"kl": 0.008, "clip_fraction": 0.02, "updates": 4, "low": 0.001}}
    fixed, led = [], []
    for seed in SEEDS:
        finished(tmp_path / f"fixed{seed}", {**GRPO, "seed": seed})
        finished(tmp_path / f"led{seed}", {**GRPO, "seed": seed, "controller": rate})
        fixed.append(tmp_path / f"fixed{seed}")
        led.append(tmp_path / f"led{seed}")
    rewards = [[last(folder, "reward") for folder in folders] for folders in (fixed, led)]
    entropies = [[last(folder, "entropy") for folder in folders] for folders in (fixed, led)]
    assert sum(entropy < 0.05 for entropy in entropies[0]) >= 2, entropies
    assert min(entropies[1]) > 0.5, entropies
    assert min(rewards[1]) > 0.5, rewards
    assert sum(rewards[1]) > sum(rewards[0]) + 0.6, rewards
    assert max(read_metrics(led[0])[i]["lr"] for i in (-1, -2)) < 0.1, "the rate was brought down"
    assert any(
        "KL: the learning rate is" in e["what"] for e in read_journal(led[0]) if e["kind"] == "control"
    )


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS[:2])
def test_a_coefficient_led_by_kl_holds_the_distance_that_a_fixed_one_does_not(
    seed: int, tmp_path: Path
) -> None:
    base = {
        **{**GRPO, "seed": seed, "steps": 100},
        "objective": {"name": "grpo", "kl_coef": 0.1},
        "optimizer": {"name": "adamw", "lr": 0.03},
        "schedule": {"name": "constant", "warmup": 2},
    }
    finished(tmp_path / "fixed", base)
    finished(tmp_path / "led", {**base, "controller": {"kl": {"start": 0.1, "kl": 0.5, "horizon": 100}}})
    fixed, led = (last(tmp_path / name, "kl_reference", 32) for name in ("fixed", "led"))
    assert fixed > 1.2 and abs(led - 0.5) < 0.4, (fixed, led)


HELD = {
    "data": "synthetic:0:4000",
    "steps": 8,
    "batch": 1,
    "context": 8,
    "optimizer": {"name": "adamw", "lr": 1e-9},
    "schedule": {"name": "linear", "warmup": 4},
    "guard": {"minimum": 2, "warn": 1e-6, "act": 1e-6},
    "controller": {"hold": {"on": ["grad_norm_spike", "loss_spike"], "steps": 3}},
}
LED = {
    "objective": {"name": "grpo", "kl_coef": 0.1},
    "optimizer": {"name": "adamw", "lr": 0.3},
    "schedule": {"name": "constant", "warmup": 0},
    "rollout": {**ROLLOUT, "group": 4, "updates": 4, "reward": "session_cases:letters"},
    "steps": 12,
    "controller": {
        "rate": {"kl": 1e-4, "clip_fraction": 0.001, "updates": 4, "low": 0.01},
        "kl": {"start": 0.1, "kl": 0.01, "horizon": 8},
    },
}


@pytest.mark.parametrize("changes", [HELD, LED], ids=["hold", "rate and kl"])
def test_controllers_are_continued_to_the_last_bit(changes: dict[str, Any], tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    finished(whole, changes)
    decided = [line["step"] for line in read_journal(whole) if line["kind"] == "control"]
    assert decided and decided[0] < changes["steps"], "something was decided, and acts"
    plain = tmp_path / "plain"
    finished(plain, {**changes, "controller": None})
    rates = [[line["lr"] for line in read_metrics(folder)] for folder in (whole, plain)]
    assert rates[0] != rates[1]

    def stop_at(step: int) -> Any:
        def log(at: int, values: Any) -> None:
            if at == step:
                raise KeyboardInterrupt

        return log

    for step in range(2, changes["steps"] + 1, 3):
        cut = tmp_path / f"cut{step}"
        with pytest.raises(KeyboardInterrupt):
            finished(cut, changes, log=stop_at(step))
        finished(cut, changes)
        assert_same(whole, cut)
    saved = [of["facts"]["built"]["controls"] for of in generations(whole).values() if of["facts"]["built"]]
    assert len(saved) >= 3 and saved[0] != saved[-1]


def test_kl_is_for_policies(tmp_path: Path) -> None:
    with pytest.raises(SteepestError, match="needs a policy gradient"):
        finished(tmp_path, {"data": "synthetic:0:4000", "controller": {"kl": {}}})
