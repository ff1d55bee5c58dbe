"""A run: the same numbers twice, whoever watches, and an honest end when it diverges."""

from __future__ import annotations

import json
import math
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from steepest.contract import SteepestError
from steepest.training import Progress, Run, RunConfig, run
from steepest.training.save import save_run


def config(**changes: Any) -> RunConfig:
    base = {
        "model": "toys:bigram",
        "data": "synthetic:0:20000",
        "optimizer": {"name": "adamw", "lr": 0.01},
        "batch": 2,
        "context": 16,
        "steps": 12,
        "evals": 3,
        "threads": 1,
    }
    return RunConfig(**{**base, **changes})


def losses(done: Run) -> tuple[list[float], list[float]]:
    return done.curves[0].loss, done.curves[1].loss


@pytest.fixture(scope="module")
def trained() -> Run:
    return run(config(model="tiny", steps=4, evals=1, optimizer={"name": "adamw", "lr": 1e-3}))


def test_two_runs_are_equal_to_the_last_bit(trained: Run) -> None:
    again = run(trained.config)
    assert trained.trained is not None
    assert losses(again) == losses(trained)
    assert all(map(torch.equal, again.model.parameters(), trained.model.parameters()))


def test_another_seed_is_another_run() -> None:
    assert losses(run(config(seed=1))) != losses(run(config()))


def test_numbers_do_not_depend_on_torchs_global_generator() -> None:
    torch.manual_seed(1)
    first = run(config())
    torch.manual_seed(2)
    torch.rand(7)
    assert losses(run(config())) == losses(first)


@pytest.mark.parametrize("evals", [1, 5, 12, 100])
def test_how_often_is_measured_changes_nothing(evals: int) -> None:
    usual, other = run(config()), run(config(evals=evals))
    assert losses(other)[0] == losses(usual)[0]
    assert other.final_loss == usual.final_loss
    assert len(other.curves[1].loss) == min(evals, 12) + 1, "and once before training"


def test_a_watcher_sees_every_step_and_changes_nothing() -> None:
    seen: list[Progress] = []
    done = run(config(), watch=seen.append)
    assert losses(done) == losses(run(config()))
    assert [p.steps for p in seen] == list(range(1, 13))
    assert [p.loss for p in seen] == losses(done)[0]
    assert seen[-1].validation == done.final_loss
    assert all(p.of == 12 and p.tokens_per_second > 0 for p in seen)


def test_the_learning_rate_follows_the_schedule_to_its_end() -> None:
    rates: list[float] = []
    asked = config(schedule={"name": "linear", "warmup": 4, "final": 0.0})
    run(asked, watch=lambda progress: rates.append(progress.lr))
    shape = asked.schedule.build(0.01, 12)
    assert rates == [pytest.approx(shape(step), rel=1e-6) for step in range(12)]
    assert max(rates) == pytest.approx(0.01)


def test_curves_count_tokens_and_time() -> None:
    done = run(config())
    curve, validation = done.curves
    assert curve.step == list(range(1, 13)) and validation.step == [0, 4, 8, 12]
    assert curve.tokens == [32 * step for step in curve.step]
    assert validation.tokens == [0, 128, 256, 384]
    assert curve.seconds == sorted(curve.seconds) and curve.seconds[0] > 0
    assert done.trained is not None and done.trained.step_ms >= done.trained.optimizer_ms > 0


def test_one_step_is_a_run() -> None:
    done = run(config(steps=1, evals=1))
    assert len(done.curves[0].loss) == 1 and done.curves[1].step == [0, 1]


def test_bits_per_byte_are_nats_over_log_2_for_byte_tokens() -> None:
    done = run(config())
    assert done.final_loss is not None
    assert done.text.bits_per_byte(done.final_loss) == pytest.approx(done.final_loss / math.log(2))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model": "toys:fading"}, "the validation became nan at step 4"),
        ({"model": "toys:cliff"}, "12 of 12 steps were skipped"),
        ({"model": "toys:cliff", "steps": 40}, "step 25: .*table.weight"),
        (
            {"optimizer": {"name": "sgd", "lr": 1e6}, "clip": None},
            "above both .* and .*, a uniform guess",
        ),
        ({"optimizer": {"name": "sgd", "lr": 1e38}, "clip": None}, "became (nan|inf) at step"),
    ],
)
def test_a_run_that_diverges_says_when_and_keeps_its_curve(changes: dict[str, Any], reason: str) -> None:
    done = run(config(**changes))
    assert done.trained is None and done.final_loss is None
    assert done.reason is not None and re.search(reason, done.reason)
    assert done.curves[0].loss and done.curves[1].loss


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": "toys:broken"}, "nan before any training; look at the data and the model"),
        ({"batch": 5000}, "one batch of 5000 x 16 needs"),
        ({"context": 1000}, "tokens and one (batch|window)"),
    ],
)
def test_what_no_optimizer_can_mend_is_an_error(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(SteepestError, match=words):
        run(config(**changes))


# ---------------------------------------------------------------------- what a run leaves


def test_a_saved_model_loads_with_equal_logits(trained: Run, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    save_run(trained, tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model", local_files_only=True).eval()
    ids = torch.arange(24).reshape(2, 12)
    with torch.inference_mode():
        assert torch.equal(loaded(ids).logits, trained.model.eval()(ids).logits)
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["config"] == trained.config.model_dump(mode="json")
    assert record["curve"]["loss"] == trained.curves[0].loss
    assert losses(run(RunConfig(**record["config"]))) == losses(trained)


def test_a_model_trained_in_its_own_tokens_keeps_its_tokenizer(trained: Run, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "merges.txt", "model.safetensors"):
        (source / name).write_text(name)
    own = trained.config.model_copy(update={"model": str(source), "tokenizer": "model"})
    save_run(replace(trained, config=own), tmp_path / "out")
    kept = {p.name for p in (tmp_path / "out" / "model").iterdir()}
    assert {"tokenizer.json", "tokenizer_config.json", "merges.txt", "config.json"} <= kept
    assert (tmp_path / "out" / "model" / "model.safetensors").read_bytes() != b"model.safetensors"


def test_any_module_is_saved_as_safetensors(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    done = run(config())
    save_run(done, tmp_path)
    (weights,) = load_file(tmp_path / "model" / "model.safetensors").values()
    assert torch.equal(weights, next(done.model.parameters()))


def test_a_second_model_replaces_the_first_and_leaves_nothing_else(tmp_path: Path) -> None:
    save_run(run(config()), tmp_path)
    (tmp_path / "model" / "stale").write_text("of the first")
    save_run(run(config(seed=1)), tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["model", "run.json"]
    assert os.listdir(tmp_path / "model") == ["model.safetensors"]


@pytest.mark.parametrize("kind", ["system", "library"])
def test_a_model_that_cannot_be_written_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    from safetensors import SafetensorError

    done = run(config())
    save_run(done, tmp_path)
    before = (tmp_path / "model" / "model.safetensors").read_bytes()
    error = OSError(28, "No space left on device") if kind == "system" else SafetensorError("No space left")

    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr("safetensors.torch.save_model", fail)
    with pytest.raises(SteepestError, match=r"cannot save the model .*No space left.*; free space"):
        save_run(done, tmp_path)
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == before
