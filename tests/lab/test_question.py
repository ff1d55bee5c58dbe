"""What is asked: budgets, seeds, names, and where the search begins."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steepest.contract import SteepestError
from steepest.lab.question import (
    HIGHEST_PRIOR,
    MIN_STEPS,
    Budget,
    Question,
    grid_rate,
    parse_budget,
    prior_lr,
)
from steepest.rules import CARDS


@pytest.mark.parametrize(
    ("text", "amount", "unit"),
    [
        ("90s", 90, "seconds"),
        ("5m", 300, "seconds"),
        ("1.5min", 90, "seconds"),
        ("2h", 7200, "seconds"),
        (".5h", 1800, "seconds"),
        ("200steps", 200, "steps"),
        ("1step", 1, "steps"),
        ("100ktok", 100_000, "tokens"),
        ("2Mtok", 2_000_000, "tokens"),
        ("5000tok", 5000, "tokens"),
        (" 30 m ", 1800, "seconds"),
    ],
)
def test_budgets_are_read(text: str, amount: float, unit: str) -> None:
    assert parse_budget(text) == Budget(amount, unit)  # type: ignore[arg-type]


@given(st.one_of(st.text(max_size=12), st.from_regex(r"-?[0-9.]{0,5}[a-zA-Z]{0,5}", fullmatch=True)))
def test_any_other_budget_is_a_sentence(text: str) -> None:
    try:
        amount = parse_budget(text).amount
    except SteepestError as error:
        told = str(error)
    else:
        told = "5m"
        assert 0 < amount < math.inf
    assert "5m" in told


NOTHING = ["0s", "0.0steps", "9" * 400 + "steps", "", "5", "m", "-5m", "5 weeks", "nanm"]


@pytest.mark.parametrize("text", NOTHING)
def test_budgets_that_mean_nothing_are_refused(text: str) -> None:
    with pytest.raises(SteepestError, match="5m"):
        parse_budget(text)


@given(
    unit=st.sampled_from(["seconds", "tokens", "steps"]),
    amount=st.floats(1e-6, 1e7),
    seconds_per_step=st.floats(1e-5, 1e3),
    workers=st.integers(1, 64),
    names=st.sets(st.sampled_from(sorted(CARDS))),
    seeds=st.integers(1, 20),
    batch=st.integers(1, 512),
    context=st.integers(1, 4096),
)
def test_a_budget_too_small_names_the_least_that_works(
    unit: str,
    amount: float,
    seconds_per_step: float,
    workers: int,
    names: set[str],
    seeds: int,
    batch: int,
    context: int,
) -> None:
    def ask(budget: Budget) -> int:
        asked = Question(optimizers=tuple(names), seeds=seeds, batch=batch, context=context, budget=budget)
        return asked.steps(seconds_per_step, workers)

    try:
        steps = ask(Budget(amount, unit))  # type: ignore[arg-type]
    except SteepestError as error:
        least = str(error).split("give at least ")[1].split(",")[0]
        assert ask(parse_budget(least)) >= MIN_STEPS
        assert parse_budget(least).amount > amount
    else:
        assert steps >= MIN_STEPS


def test_steps_of_a_time_budget_have_two_digits_so_that_equal_machines_agree() -> None:
    asked = Question(optimizers=("lion",), budget=parse_budget("10m"), seeds=2)
    steps = {asked.steps(seconds, 2) for seconds in (0.0200, 0.0201)}
    assert len(steps) == 1
    (only,) = steps
    assert only % 10 ** (len(str(only)) - 2) == 0


@given(st.integers(-(10**6), 10**6), st.integers(1, 50))
def test_no_evaluation_uses_the_tuning_seed(seed: int, seeds: int) -> None:
    asked = Question(seed=seed, seeds=seeds)
    assert asked.tuning_seed not in asked.evaluation_seeds
    assert len(set(asked.evaluation_seeds)) == seeds


def test_the_baseline_runs_once_and_first_whatever_is_named() -> None:
    assert Question(optimizers=("lion", " LION ", "AdamW", "sgd")).optimizers == ("adamw", "lion", "sgd")
    assert Question().optimizers == ("adamw",)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"optimizers": ("lyon",)}, "did you mean 'lion'"),
        ({"optimizers": ("adamv",)}, "did you mean 'adam"),
        ({"baseline": "adamww"}, "did you mean 'adamw'"),
        ({"seeds": 0}, "--seeds 0"),
        ({"workers": 0}, "--workers 0"),
    ],
)
def test_a_question_that_cannot_be_asked_is_a_sentence(changes: dict[str, object], words: str) -> None:
    with pytest.raises(SteepestError, match=words):
        Question(**changes)  # type: ignore[arg-type]


@given(st.integers(1, 10**12), st.integers(1, 10**14))
def test_the_prior_is_positive_bounded_and_falls_with_size(parameters: int, tokens: int) -> None:
    prior = prior_lr(parameters, tokens)
    assert 0 < prior <= HIGHEST_PRIOR
    assert prior_lr(parameters * 10, tokens) <= prior <= prior_lr(parameters, tokens * 10)


def test_the_prior_is_the_published_law_where_it_was_fitted() -> None:
    """Step Law, arXiv:2503.04715: 1.79 N^-0.713 D^0.307 at N = 1e9, D = 1e11."""
    assert prior_lr(10**9, 10**11) == pytest.approx(1.79 * 1e9**-0.713 * 1e11**0.307)
    assert prior_lr(10**9, 10**11) == pytest.approx(1.63e-3, rel=0.01)


@given(st.floats(1e-8, 1e3), st.integers(-8, 8))
def test_the_grid_doubles_and_passes_near_the_prior(prior: float, k: int) -> None:
    assert grid_rate(prior, k + 1) == pytest.approx(2 * grid_rate(prior, k), rel=0.01)
    assert 2**-0.51 < grid_rate(prior, 0) / prior < 2**0.51
    assert grid_rate(1e-3, 0) == 1e-3


def test_a_folder_with_a_tokenizer_is_asked_in_its_own_tokens(tmp_path: Path) -> None:
    assert Question().tokenizer == "bytes"
    assert Question(model=str(tmp_path)).tokenizer == "bytes"
    (tmp_path / "tokenizer.json").write_text("{}")
    assert Question(model=str(tmp_path)).tokenizer == "model"
    assert Question(model=str(tmp_path), tokenizer="bytes").tokenizer == "bytes"
