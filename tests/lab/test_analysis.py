"""Verdicts from made-up records whose answer is known."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from studies import FIELD, SEEDS, STEPS, TOKENS_PER_STEP, TUNING_SEED, finished, plan, races, trial, tuning

from steepest.lab.analysis import Summary, analyse, reached, sweep
from steepest.lab.statistics import holm


def with_losses(losses: Mapping[str, list[float | None]], **changes: Any) -> Summary:
    """A study whose evaluation losses are given, seed by seed; None diverges."""
    study = plan(list(losses), **changes)
    records = [record for name in losses for record in tuning(study, name)]
    for name, values in losses.items():
        for seed, loss in zip(study["seeds"], values, strict=False):
            lr = FIELD[name].lr
            records.append(trial(study, name, "race", lr, seed, diverged=loss is None, loss=loss))
    return analyse(study, records)


BASE = [2.30, 2.34, 2.28, 2.33, 2.31]


def shifted(by: float, jitter: float = 0.001) -> list[float | None]:
    return [loss + by + jitter * (-1) ** k * (k + 1) / 3 for k, loss in enumerate(BASE)]


def test_the_whole_field() -> None:
    summary = analyse(plan(), finished(plan()))
    assert len(summary.results) == len(FIELD) == 11
    means = [result.loss.mean for result in summary.results if result.loss]
    assert means == sorted(means) and len(means) == 11
    assert summary.complete and summary.foreign == 0
    assert summary["adamw"].verdict == "baseline"
    assert summary["sgd"].verdict == "worse"
    assert {summary[name].lr for name in FIELD} == {entry.lr for entry in FIELD.values()}
    assert all(result.sweep.edge is None for result in summary.results)
    assert summary["lion"].bytes_per_parameter == 4
    assert (summary["sgd"].trials, summary["sgd"].diverged) == (10, 1)
    assert summary["adamw"].tuning_tokens == 5 * STEPS * TOKENS_PER_STEP
    assert summary["sgd"].tuning_tokens == 4 * STEPS * TOKENS_PER_STEP + 20 * TOKENS_PER_STEP


def test_better_tie_and_worse() -> None:
    summary = with_losses(
        {"adamw": BASE, "lion": shifted(-0.02), "adam": shifted(0.0), "lamb": shifted(0.02)}
    )
    verdicts = {result.name: result.verdict for result in summary.results}
    assert verdicts == {"lion": "better", "adamw": "baseline", "adam": "tie", "lamb": "worse"}
    assert (summary.winner, summary.leaders, summary.lighter) == ("lion", ("lion",), ())


def test_differences_and_corrected_p_agree_with_scipy() -> None:
    losses = {"adamw": BASE, "lion": shifted(-0.002), "adam": shifted(0.001), "lamb": shifted(0.02)}
    summary = with_losses(losses)
    names = ["lion", "adam", "lamb"]
    raw = [stats.ttest_rel(losses[name], BASE).pvalue for name in names]
    assert [summary[name].difference.p for name in names] == pytest.approx(raw)
    assert [summary[name].holm_p for name in names] == pytest.approx(holm(raw))


def test_holm_turns_a_lucky_contender_into_a_tie() -> None:
    lucky = [loss - 0.004 + e for loss, e in zip(BASE, (0.004, -0.003, 0.001, -0.001, 0.002), strict=True)]
    alone = with_losses({"adamw": BASE, "lion": lucky})
    assert alone["lion"].difference.p is not None
    assert 0.01 < alone["lion"].difference.p < 0.1
    crowd = ("adam", "lamb", "rmsprop", "adafactor", "signum")
    crowded = with_losses({"adamw": BASE, "lion": lucky} | {name: shifted(0.0003) for name in crowd})
    assert crowded["lion"].holm_p > alone["lion"].holm_p
    assert crowded["lion"].verdict == "tie"


def test_a_tie_at_the_top_names_all_and_the_lighter() -> None:
    summary = with_losses(
        {"adamw": BASE, "lion": shifted(-0.0001), "adam": shifted(0.0001), "sgd": shifted(1.0)}
    )
    assert summary.winner is None
    assert set(summary.leaders) == {"adamw", "lion", "adam"}
    adamw_first = with_losses({"adamw": BASE, "lion": shifted(0.0002), "sgd": shifted(1.0)})
    assert adamw_first.leaders == ("adamw", "lion")
    assert adamw_first.lighter == ("lion",)


def test_two_that_beat_the_baseline_and_tie() -> None:
    summary = with_losses({"adamw": BASE, "lion": shifted(-0.0201), "adam": shifted(-0.02, -0.001)})
    assert {summary[name].verdict for name in ("lion", "adam")} == {"better"}
    assert summary.winner is None
    assert set(summary.leaders) == {"lion", "adam"}


def test_the_baseline_can_win() -> None:
    summary = with_losses({"adamw": BASE, "lion": shifted(0.02), "sgd": shifted(1.0)})
    assert summary.winner == "adamw"


def test_a_diverged_evaluation_seed_fails_the_optimizer() -> None:
    summary = with_losses({"adamw": BASE, "lion": [2.0, 2.0, None, 2.0, 2.0]})
    lion = summary["lion"]
    assert (lion.verdict, lion.loss, lion.difference) == ("failed", None, None)
    assert lion.reason == "diverged on 1 of 5 evaluation seeds at its best learning rate"
    assert summary.results[-1].name == "lion"


def test_all_rates_diverged() -> None:
    study = plan(["adamw", "sgd"])
    lost = [trial(study, "sgd", "tune", lr, TUNING_SEED, diverged=True) for lr in (0.5, 1.0)]
    sgd = analyse(study, [*tuning(study, "adamw"), *races(study, "adamw"), *lost])["sgd"]
    assert (sgd.verdict, sgd.lr, sgd.sweep.best, sgd.hyper) == ("failed", None, None, {})
    assert sgd.reason == "diverged at every learning rate that was tried"
    assert list(sgd.sweep.points.values()) == [None, None]


def test_missing_evaluations_are_incomplete_and_do_not_stop_the_others() -> None:
    summary = with_losses({"adamw": BASE, "lion": shifted(-0.02)[:3], "adam": shifted(0.02)})
    assert (summary["lion"].verdict, summary["lion"].missing) == ("incomplete", SEEDS[3:])
    assert summary["adam"].verdict == "worse"
    assert not summary.complete
    assert summary.winner == "adamw"


@pytest.mark.parametrize("base", [BASE[:2], [2.3, None, 2.3, 2.3, 2.3]])
def test_without_a_whole_baseline_nobody_is_judged(base: list[float | None]) -> None:
    summary = with_losses({"adamw": base, "lion": shifted(-0.02)})
    assert summary["lion"].verdict == "incomplete"
    assert (summary.leaders, summary.winner, summary.target) == ((), None, None)


def test_one_seed_gives_no_interval_and_no_verdict() -> None:
    summary = with_losses({"adamw": [2.3], "lion": [2.0]}, seeds=[101])
    lion = summary["lion"]
    assert (lion.verdict, lion.loss.mean, lion.loss.low, lion.difference.p) == ("incomplete", 2.0, None, None)
    assert "one evaluation seed" in lion.reason
    assert summary.complete


@pytest.mark.parametrize("records", [[], tuning(plan(), "adamw")])
def test_a_study_that_has_just_begun(records: list[Any]) -> None:
    summary = analyse(plan(), records)
    assert len(summary.results) == 11
    assert {result.verdict for result in summary.results} == {"incomplete"}
    assert summary.leaders == ()


def test_records_of_another_plan_are_left_out() -> None:
    study = plan(["adamw", "lion"])
    strangers = [
        trial(study, "sgd", "race", 0.5, 101),
        trial(study, "lion", "race", 5e-4, 999, loss=0.1),
        trial(study, "lion", "tune", 5e-4, 999, loss=0.1),
        trial(plan(data={**study["data"], "digest": "other"}), "lion", "race", 5e-4, 101, loss=0.1),
        trial(plan(steps=400), "lion", "race", 5e-4, 101, loss=0.1),
        trial(plan(model_digest="other"), "lion", "race", 5e-4, 101, loss=0.1),
    ]
    alone, mixed = analyse(study, finished(study)), analyse(study, [*finished(study), *strangers])
    assert mixed.foreign == len(strangers)
    assert mixed.results == alone.results


def test_races_at_another_rate_than_the_chosen_are_not_mixed_in() -> None:
    study = plan(["adamw", "lion"])
    stale = [trial(study, "lion", "race", 1e-3, seed, loss=9.0) for seed in SEEDS]
    lion = analyse(study, [*finished(study), *stale])["lion"]
    assert lion.lr == FIELD["lion"].lr
    assert lion.loss.mean < 3


def test_the_raced_rate_is_shown_when_no_race_ran_at_the_sweeps_best() -> None:
    study = plan(["adamw", "lion"])
    records = [*races(study, "adamw"), *tuning(study, "lion")]
    records += [trial(study, "lion", "race", 1e-3, seed) for seed in SEEDS]
    assert analyse(study, records)["lion"].lr == 1e-3


@pytest.mark.parametrize(
    ("below", "above", "edge"), [(2, 2, None), (0, 2, "low"), (2, 0, "high"), (0, 0, "low")]
)
def test_the_edge_of_the_grid(below: int, above: int, edge: str | None) -> None:
    found = sweep(tuning(plan(), "adamw", below, above))
    assert (found.best, found.edge) == (FIELD["adamw"].lr, edge)


def test_a_diverged_neighbour_brackets_the_best() -> None:
    study = plan()
    rates = [trial(study, "sgd", "tune", lr, TUNING_SEED) for lr in (0.25, 0.5)]
    found = sweep([*rates, trial(study, "sgd", "tune", 1.0, TUNING_SEED, diverged=True)])
    assert (found.edge, found.points[1.0], found.vertex) == (None, None, None)


def test_tokens_and_seconds_to_the_baselines_loss() -> None:
    summary = with_losses({"adamw": BASE, "lion": shifted(-0.1), "sgd": shifted(1.0)})
    base, lion = summary["adamw"], summary["lion"]
    assert summary.target == pytest.approx(sum(BASE) / 5)
    assert base.tokens_to_target == pytest.approx(STEPS * TOKENS_PER_STEP)
    assert 0 < lion.tokens_to_target < base.tokens_to_target
    assert 0 < lion.seconds_to_target < base.seconds_to_target
    assert (summary["sgd"].tokens_to_target, summary["sgd"].seconds_to_target) == (None, None)


def test_reached_by_hand() -> None:
    assert reached([0, 10, 20], [3.0, 2.0, 1.0], 1.5) == 15
    assert reached([0, 10, 20], [3.0, 2.0, 2.5], 2.0) == 10
    assert reached([5, 10], [1.0, 2.0], 1.5) == 5
    assert reached([0, 10], [3.0, 2.0], 1.9) is None
    assert reached([], [], 1.0) is None


@given(st.lists(st.floats(0.5, 9), min_size=1, max_size=9), st.floats(0.5, 9))
def test_reached_is_the_first_crossing(losses: list[float], target: float) -> None:
    at = reached(range(len(losses)), losses, target)
    if min(losses) > target:
        assert at is None
    else:
        first = next(k for k, loss in enumerate(losses) if loss <= target)
        assert at is not None and max(0, first - 1) <= at <= first


def test_the_mean_curve_and_the_times() -> None:
    study = plan(["adamw"])
    records = races(study, "adamw")
    adamw = analyse(study, records)["adamw"]
    assert adamw.curve.tokens[-1] == STEPS * TOKENS_PER_STEP
    assert adamw.curve.mean[-1] == pytest.approx(adamw.loss.mean)
    assert all(
        a <= b <= c for a, b, c in zip(adamw.curve.low, adamw.curve.mean, adamw.curve.high, strict=True)
    )
    model = min(r["final"]["step_ms"] - r["final"]["optimizer_ms"] for r in records)
    assert adamw.optimizer_ms == min(r["final"]["optimizer_ms"] for r in records)
    assert adamw.step_ms == pytest.approx(model + adamw.optimizer_ms)
    assert adamw.curve.seconds[-1] == pytest.approx(STEPS * adamw.step_ms / 1e3)
    assert adamw.bits_per_byte == pytest.approx(adamw.loss.mean / math.log(2))


def test_a_busy_moment_does_not_make_an_optimizer_slow() -> None:
    study = plan(["adamw", "lion"])
    records = finished(study)
    quiet = analyse(study, records)
    for record in records:
        if record["optimizer"] == "lion" and record["seed"] != 101:
            record["final"]["step_ms"] *= 3
            record["final"]["optimizer_ms"] *= 3
    busy = analyse(study, records)
    assert busy["lion"].step_ms == pytest.approx(quiet["lion"].step_ms, rel=0.1)
    assert busy["adamw"].step_ms == pytest.approx(quiet["adamw"].step_ms, rel=0.1)


def test_the_order_of_records_does_not_matter() -> None:
    study = plan(["adamw", "lion", "sgd"])
    records = finished(study)
    assert analyse(study, records) == analyse(study, records[::-1])
