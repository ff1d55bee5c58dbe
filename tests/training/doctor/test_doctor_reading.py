"""What the doctor reads: our folders, running, torn or odd, and those of transformers' Trainer."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steepest.contract import SteepestError
from steepest.training.doctor import Series, diagnose, draw
from steepest.training.doctor.diagnosis import examine
from steepest.training.doctor.series import noise, runs, tidy
from steepest.training.files import lock
from training.doctor.simulated import always, change, healthy, policy, trainer_state, write_run


def test_a_healthy_run_is_told_what_was_looked_at(tmp_path: Path) -> None:
    found = diagnose(write_run(tmp_path / "run", healthy()))
    assert found.healthy and not found.urgent and found.causes == ()
    assert found.answer == f"No: this run is healthy in all {len(found.looked)} respects that were looked at."
    assert {"rate-too-high", "spikes", "clipping", "overfitting", "throughput"} <= set(found.looked)
    assert found.missing["policy-drift"] == "kl"
    assert not set(found.missing) & set(found.looked)
    assert found.found.stages[0].planned == 600 and not found.found.running


def test_a_running_run_is_told_from_a_finished_one(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", healthy()[:300])
    with lock(folder):
        assert diagnose(folder).found.running
    assert not diagnose(folder).found.running


def test_torn_and_odd_lines_are_passed_over(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", healthy())
    text = (folder / "metrics.jsonl").read_text()
    (folder / "metrics.jsonl").write_text('[1]\n{"loss": 2}\nnot json\n' + text[:-40])
    found = diagnose(folder)
    assert found.healthy and found.steps == 599
    assert any("1 lines" in remark for remark in found.found.remarks)


def test_a_log_may_be_too_short_to_say_anything(tmp_path: Path) -> None:
    found = diagnose(write_run(tmp_path / "run", healthy()[:10]))
    assert not found.healthy and not found.urgent
    assert found.answer == "Too early to say: the log has 10 steps, and 20 are needed."


def test_a_config_that_cannot_be_read_is_a_remark(tmp_path: Path) -> None:
    found = diagnose(write_run(tmp_path / "run", healthy(), config="optimizer: 3"))
    assert found.healthy and "config" in found.found.remarks[0]


def test_stages_are_looked_at_one_by_one(tmp_path: Path) -> None:
    """The loss may jump between stages: it is another loss. Attempts count on through the run."""
    first = [{**row, "stage": "base"} for row in healthy()]
    bad = change(policy(), always, clip_fraction=lambda step, c: 5 * c)
    second = [{**row, "stage": "rl", "attempt": 600 + row["step"]} for row in bad]
    config = (
        "optimizer: {name: adamw, lr: 3e-3}\n"
        "stages:\n- {name: base, steps: 600}\n- {name: rl, objective: grpo, steps: 200}\n"
    )
    found = diagnose(write_run(tmp_path / "run", first + second, config=config))
    assert [(s.name, s.start, s.last, s.planned) for s in found.found.stages] == [
        ("base", 0, 600, 600),
        ("rl", 600, 800, 800),
    ]
    assert [(cause.rule, cause.stage) for cause in found.causes] == [("policy-step", "rl")]
    assert found.answer == "Yes: the policy moves too far in one update (stage rl)."


def test_vetoes_of_another_stage_are_not_this_one_s(tmp_path: Path) -> None:
    rows = [{**row, "stage": "a" if row["step"] <= 300 else "b"} for row in healthy()]
    event = {"kind": "veto", "step": 301, "why": "non-finite gradient", "culprits": ["wte"]}
    found = diagnose(write_run(tmp_path / "run", rows, ({"kind": "start"}, event)))
    assert [cause.stage for cause in found.causes if cause.rule == "not-finite"] == ["b"]


# ------------------------------------------------------------------ transformers' Trainer


@pytest.mark.parametrize("every", [1, 5, 10])
def test_a_trainer_s_log_reads_as_the_same_run(tmp_path: Path, every: int) -> None:
    state = tmp_path / "trainer_state.json"
    state.write_text(json.dumps(trainer_state(healthy(), every)))
    for path in (tmp_path, state):
        found = diagnose(path)
        assert found.healthy and found.found.source == "a run of transformers' Trainer"
        assert {"rate-too-high", "overfitting", "schedule"} <= set(found.looked)


def test_the_newest_checkpoint_of_a_trainer_is_read(tmp_path: Path) -> None:
    for step in (90, 600):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "trainer_state.json").write_text(json.dumps(trainer_state(healthy()[:step])))
    assert diagnose(tmp_path).found.stages[0].last == 600


def test_changes_for_a_trainer_are_in_its_own_words(tmp_path: Path) -> None:
    rows = change(healthy(), always, loss=lambda step, loss: loss + 0.004 * max(0, step - 150))
    rows = change(rows, always, grad_norm=lambda step, norm: norm * (1 + (step / 60) ** 2))
    (tmp_path / "trainer_state.json").write_text(json.dumps(trainer_state(rows)))
    found = diagnose(tmp_path)
    assert found.answer == "Yes: the learning rate is too high."
    assert found.causes[0].change == "learning_rate=0.001"


def test_trl_s_names_are_known(tmp_path: Path) -> None:
    names = {"clip_fraction": "clip_ratio/region_mean", "zero_variance_groups": "frac_reward_zero_std"}
    rows = change(
        policy(), always, clip_fraction=lambda step, c: 5 * c, zero_variance_groups=lambda s, z: 0.9
    )
    history = [{names.get(k, k): str(v) if k == "loss" else v for k, v in row.items()} for row in rows]
    (tmp_path / "trainer_state.json").write_text(json.dumps({"log_history": history, "max_steps": 200}))
    assert {cause.rule for cause in diagnose(tmp_path).causes} >= {"policy-step", "contrast"}


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("metrics.jsonl", "", "no whole line yet"),
        ("metrics.jsonl", '{"step": 1, "lo', "no whole line yet"),
        ("trainer_state.json", "{", "not the state of a Trainer"),
        ("trainer_state.json", '{"log_history": 3}', "not the state of a Trainer"),
        ("trainer_state.json", '{"log_history": []}', "empty log_history"),
        ("trainer_state.json", "[" * 100_000, "not the state of a Trainer"),
        ("other.txt", "", "holds no run"),
    ],
)
def test_what_cannot_be_read_is_a_sentence(tmp_path: Path, name: str, text: str, words: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(SteepestError, match=words):
        diagnose(tmp_path)


def test_no_path_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(SteepestError, match="there is no folder or file"):
        diagnose(tmp_path / "nowhere")


# ------------------------------------------------------------------ nothing crashes it

KEYS = ("loss", "lr", "grad_norm", "update_norm", "param_norm", "clipped", "step_ms", "validation", "epoch")
RL_KEYS = ("reward", "kl", "kl_old", "clip_fraction", "entropy", "zero_variance_groups")
numbers = st.one_of(
    st.floats(allow_nan=True, allow_infinity=True), st.floats(0, 10), st.integers(-(10**400), 10**400)
)
values = st.one_of(
    numbers, numbers, numbers, st.none(), st.text(max_size=3), st.booleans(), st.lists(numbers)
)
layers = st.dictionaries(
    st.text(max_size=3),
    st.one_of(values, st.dictionaries(st.sampled_from(["balance", "lost", "dead", "update_ratio"]), values)),
    max_size=3,
)
rows = st.lists(
    st.one_of(
        st.fixed_dictionaries(
            {"step": st.integers(-5, 60)},
            optional=dict.fromkeys(KEYS + RL_KEYS, values) | {"layers": st.one_of(layers, values)},
        ),
        st.fixed_dictionaries({"step": values}, optional={"loss": values, "nonfinite": values}),
        values,
    ),
    max_size=80,
)
events = st.lists(
    st.fixed_dictionaries(
        {"step": st.integers(-5, 60), "kind": st.sampled_from(["resume", "veto", "start"])},
        optional={"why": values | st.just("non-finite"), "culprits": values},
    ),
    max_size=4,
)


@settings(max_examples=150, deadline=None)
@given(rows, events, st.dictionaries(st.sampled_from(["clip", "steps", "precision", "optimizer"]), values))
def test_no_series_crashes_it(given_rows: list[Any], given_events: list[Any], plan: dict[str, Any]) -> None:
    series = Series(tidy(given_rows), tuple(given_events), plan)
    for cause in examine(series, {}, {}):
        assert cause.title and cause.evidence and cause.change


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(*[st.floats(0, 10) | st.just(math.nan)] * 5), min_size=40, max_size=120),
    st.booleans(),
)
def test_no_long_series_crashes_it(table: list[tuple[float, ...]], rl: bool) -> None:
    keys = RL_KEYS if rl else KEYS
    lines = [{"step": i, "lr": 1.0, **dict(zip(keys, row, strict=False))} for i, row in enumerate(table)]
    for cause in examine(Series(tidy(reversed(lines))), {}, {}):
        assert "nan" not in " ".join((*cause.evidence, cause.change))


@settings(max_examples=40, deadline=None)
@given(st.binary(max_size=300))
def test_no_file_crashes_it(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    folder = tmp_path_factory.mktemp("run")
    for name in ("metrics.jsonl", "journal.jsonl", "config.yaml"):
        (folder / name).write_bytes(b'{"step": 1}\n' * (name == "metrics.jsonl") + data)
    assert diagnose(folder).answer
    (folder / "metrics.jsonl").unlink()
    (folder / "trainer_state.json").write_bytes(data)
    with pytest.raises(SteepestError):
        diagnose(folder)


# ------------------------------------------------------------------ its parts


def test_noise_is_that_of_the_curve_without_its_trend_and_outliers() -> None:
    draw_from = np.random.default_rng(0)
    x = np.linspace(0, 1, 2000)
    values = 5 * np.exp(-3 * x) + 0.1 * draw_from.standard_normal(2000)
    values[::50] += 3
    assert noise(values) == pytest.approx(0.1, rel=0.1)


@given(st.lists(st.booleans(), max_size=40), st.integers(0, 5))
def test_stretches_cover_what_is_true_and_are_apart(flags: list[bool], gap: int) -> None:
    found = runs(flags, gap)
    covered = {i for first, last in found for i in range(first, last + 1)}
    assert {i for i, flag in enumerate(flags) if flag} <= covered
    assert all(flags[first] and flags[last] for first, last in found)
    assert all(b[0] - a[1] > gap for a, b in itertools.pairwise(found))


def test_the_picture_marks_causes_and_lets_no_markup_through(tmp_path: Path) -> None:
    rows = [{**row, "stage": "<script>alert(1)</script>"} for row in healthy()]
    for row in rows[100:120]:
        row |= {"loss": None, "nonfinite": ["loss"]}
    page = draw(diagnose(write_run(tmp_path / "run", rows)))
    assert page.startswith("<!doctype html>") and "plotly" in page
    assert "losses or gradients are not finite" in page
    assert "<script>alert" not in page and "\\u003cscript\\u003ealert" not in page
