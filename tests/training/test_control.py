"""Controllers: bounded, deaf to nonsense, restored exactly; and policies that need a controlled rate."""

from __future__ import annotations

import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from steepest import schedules
from steepest.contract import SteepestError
from steepest.training.control import (
    ControllerConfig,
    Held,
    HoldConfig,
    KlCoefficient,
    KlCoefficientConfig,
    KlRate,
    KlRateConfig,
)
from steepest.training.indicators import TABLE, Finding, Level

NUMBERS = st.floats(allow_nan=True, allow_infinity=True)
SIGNALS = st.lists(st.tuples(NUMBERS, NUMBERS), max_size=30)
FLAT = schedules.constant(1.0, 100)


def kl_rate(**config: object) -> KlRate:
    return KlRate(KlRateConfig(**config), FLAT, 100)


def finding(indicator: str, level: Level = "act") -> Finding:
    return TABLE[indicator].finding(5, "the run", 9.0, 6.0, level)


# ---------------------------------------------------------------- the rate, by KL


def feed(controller: KlRate, kl: float, clipped: float, updates: int = 4) -> float:
    for _ in range(updates):
        controller.update(kl, clipped)
    return controller.factor


@pytest.mark.parametrize(
    ("kl", "clipped", "expected"),
    [
        (0.016, 0.3, 0.5 / math.sqrt(2)),  # twice the target: the root of a half
        (1e9, 0.3, 0.5 / 1.5),
        (0.002, 0.0, 0.5 * 1.5),
        (0.0064, 0.0, 0.5 * math.sqrt(1.25)),
        (0.0, 0.0, 0.75),
        (0.016, 0.0, 0.5),  # much KL, little clipping: they disagree
        (0.002, 0.3, 0.5),
        (0.008, 0.3, 0.5),
    ],
)
def test_the_rate_moves_where_both_signals_agree(kl: float, clipped: float, expected: float) -> None:
    controller = kl_rate()
    controller.factor = 0.5
    assert feed(controller, kl, clipped) == pytest.approx(expected, rel=1e-12)


def test_it_moves_once_in_so_many_updates_and_on_their_mean() -> None:
    controller = kl_rate(updates=5)
    assert feed(controller, 0.0125, 0.5, updates=4) == 1.0
    assert controller.update(0.0, 0.5) == pytest.approx(math.sqrt(0.008 / 0.01))
    before = controller.factor
    assert feed(controller, 0.032, 0.5, updates=4) == before > controller.update(0.032, 0.5)


def test_it_stays_within_its_bounds() -> None:
    controller = kl_rate(low=0.2)
    assert feed(controller, 1.0, 0.9, updates=100) == 0.2
    assert feed(controller, 1e-6, 0.0, updates=100) == 1.0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, -1e-3])
def test_a_signal_that_cannot_be_changes_nothing_and_says_so(bad: float) -> None:
    controller = kl_rate()
    feed(controller, 0.1, 0.5, updates=3)
    before = controller.state()
    for kl, clipped, name in ((bad, 0.5, "KL"), (0.1, bad, "clip fraction")):
        assert controller.update(kl, clipped) == 1.0
        assert name in controller.frozen and controller.state() == before
    assert controller.update(0.1, 0.5) < 1.0 and controller.frozen == ""


@given(SIGNALS, SIGNALS)
def test_it_is_a_function_of_its_signals_and_is_restored_bitwise(before: list, after: list) -> None:
    own, other = kl_rate(), kl_rate()
    for kl, clipped in before:
        own.update(kl, clipped)
        assert 0.1 <= own.factor <= 1.0
    other.load(json.loads(json.dumps(own.state(), allow_nan=False)))
    assert [own.update(*signals) for signals in after] == [other.update(*signals) for signals in after]
    assert own.state() == other.state()


@pytest.mark.parametrize("name", ["cosine", "linear", "wsd", "inverse_sqrt", "one_cycle"])
def test_a_rate_has_one_owner(name: str) -> None:
    with pytest.raises(SteepestError, match="two owners"):
        KlRate(KlRateConfig(), schedules.make(name, 1e-3, 1000, warmup=10), 1000)


def test_warm_up_is_no_owner() -> None:
    assert KlRate(KlRateConfig(), schedules.constant(1e-3, 1000, warmup=100), 1000).factor == 1.0


# ---------------------------------------------------------------- a policy


RUNS, ARMS, ANSWERS, UPDATES, ROUNDS, WARMUP = 64, 50, 64, 4, 200, 50


def play(rate: float, controllers: list[KlRate] | None) -> torch.Tensor:
    """Softmax policies on a bandit whose rewards are mostly noise, each trained by Adam on the clipped
    surrogate of normalized rewards, four steps on every 64 answers. The expected reward at the end (RUNS,):
    the best arm's is 1, the mean arm's 0.5; a policy that collapsed early sits on any of them."""
    noise = torch.Generator().manual_seed(0)
    worth, logits = torch.linspace(0, 1, ARMS), torch.zeros(RUNS, ARMS, requires_grad=True)
    m, v, t, factor = torch.zeros_like(logits), torch.zeros_like(logits), 0, torch.ones(RUNS)
    for step in range(ROUNDS):
        old = logits.log_softmax(-1).detach()
        drawn = torch.multinomial(old.exp(), ANSWERS, replacement=True, generator=noise)
        reward = worth[drawn] + 3 * torch.randn(RUNS, ANSWERS, generator=noise)
        advantage = (reward - reward.mean(-1, True)) / reward.std(-1, keepdim=True)
        for _ in range(UPDATES):
            ratio = (logits.log_softmax(-1) - old).gather(-1, drawn).exp()
            surrogate = torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage).mean(-1)
            (g,) = torch.autograd.grad(-surrogate.sum(), logits)
            t, m, v = t + 1, m.lerp(g, 0.1), v.lerp(g * g, 0.001)
            u = m / (1 - 0.9**t) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
            with torch.no_grad():
                logits -= rate * min(1, (step + 1) / WARMUP) * factor[:, None] * u
                ratio = (logits.log_softmax(-1) - old).gather(-1, drawn).exp()
            kl = (ratio - 1 - ratio.log()).mean(-1).tolist()
            clipped = ((ratio - 1).abs() > 0.2).float().mean(-1).tolist()
            if controllers:
                signals = zip(controllers, kl, clipped, strict=True)
                factor = torch.tensor([own.update(k, c) for own, k, c in signals])
    return (logits.softmax(-1) * worth).sum(-1).detach()


def test_policies_that_collapse_at_a_fixed_rate_learn_at_a_controlled_one() -> None:
    torch.set_num_threads(1)
    fixed, controlled = play(30.0, None), play(30.0, [kl_rate() for _ in range(RUNS)])
    assert (fixed < 0.6).sum() >= RUNS / 8, fixed
    assert (controlled < 0.6).sum() <= RUNS / 16, controlled
    difference = controlled - fixed
    assert difference.mean() > 3 * difference.std() / RUNS**0.5 > 0


# ---------------------------------------------------------------- the KL coefficient


@pytest.mark.parametrize(
    ("kl", "error"), [(6.0, 0.0), (6.6, 0.1), (12.0, 0.2), (1e9, 0.2), (5.4, -0.1), (0.0, -0.2)]
)
def test_the_coefficient_follows_its_formula(kl: float, error: float) -> None:
    coefficient = KlCoefficient(KlCoefficientConfig(start=0.2, kl=6.0, horizon=10_000))
    assert coefficient.update(kl, 64) == pytest.approx(0.2 * (1 + error * 64 / 10_000), rel=1e-12)


@given(st.lists(st.tuples(NUMBERS, st.integers(1, 10**6)), max_size=40))
def test_no_signal_makes_the_coefficient_other_than_positive(signals: list) -> None:
    coefficient, other = KlCoefficient(KlCoefficientConfig()), KlCoefficient(KlCoefficientConfig())
    for kl, samples in signals:
        before = coefficient.value
        after = coefficient.update(kl, samples)
        assert 0 < after < math.inf
        assert after == before or (math.isfinite(kl) and kl >= 0)
    other.load(json.loads(json.dumps(coefficient.state())))
    assert other.value == coefficient.value


# ---------------------------------------------------------------- held schedules


COSINE = schedules.cosine(1.0, 100, warmup=20)


def test_without_a_decision_it_is_the_schedule() -> None:
    assert [Held(COSINE)(step) for step in range(130)] == [COSINE(step) for step in range(130)]


def test_held_it_stands_still_and_goes_on_later() -> None:
    held = Held(COSINE)
    held.hold(50, 10)
    assert [held(s) for s in range(51)] == [COSINE(s) for s in range(51)]
    assert [held(s) for s in range(50, 61)] == [COSINE(50)] * 11
    assert [held(s) for s in range(60, 130)] == [COSINE(s - 10) for s in range(60, 130)]


def test_held_within_warm_up_makes_it_longer() -> None:
    held = Held(COSINE)
    held.hold(10, 30)
    assert max(range(100), key=held) == 20 - 1 + 30


def test_holding_again_while_held_goes_on_from_there() -> None:
    held = Held(COSINE)
    held.hold(50, 10)
    held.hold(55, 10)
    assert held.holds == [(50, 15)] and held(66) == COSINE(51)
    held.hold(90, 5)
    assert held.holds == [(50, 15), (90, 5)] and held(100) == COSINE(80)


def test_cooled_it_falls_in_a_line_and_stays() -> None:
    held = Held(schedules.constant(2.0, 100))
    held.cool(40, 10, 0.1)
    held.cool(45, 99, 0.9)
    assert held(40) == 2.0 and held(45) == pytest.approx(2.0 * 0.55)
    assert held(50) == held(99) == pytest.approx(0.2)


def test_scaled_from_the_next_step_on() -> None:
    held = Held(FLAT)
    held.scale(10, 0.5)
    held.scale(15, 0.5)
    held.scale(20, 0.75)
    assert [held(step) for step in (10, 11, 20, 21)] == [1.0, 0.5, 0.5, 0.75]
    assert len(held.scales) == 2


DECISIONS = st.lists(
    st.tuples(st.sampled_from(["hold", "cool", "scale"]), st.integers(0, 12), st.integers(1, 20)), max_size=8
)


@given(DECISIONS)
def test_no_decision_changes_what_has_been_or_the_step_at_hand(decisions: list) -> None:
    held, now = Held(COSINE), 0
    for kind, later, number in decisions:
        now += later
        before = [held(step) for step in range(now + 1)]
        if kind == "hold":
            held.hold(now, number)
        elif kind == "cool":
            held.cool(now, number, 0.5)
        else:
            held.scale(now, number / 20)
        assert [held(step) for step in range(now + 1)] == before
        assert 0 <= held.clock(now) <= now
        assert all(0 <= held(step) <= 1 for step in range(now, now + 60))
    other = Held(COSINE)
    other.load(json.loads(json.dumps(held.state())))
    assert [other(step) for step in range(200)] == [held(step) for step in range(200)]
    assert other.state() == held.state()


def test_an_optimizer_follows_it_through_a_decision() -> None:
    import steepest

    held, weight = Held(COSINE), torch.nn.Parameter(torch.ones(3))
    optimizer = steepest.SGD([weight], lr=held)
    rates = []
    for step in range(30):
        rates.append(optimizer.param_groups[0]["lr"])
        weight.grad = torch.ones(3)
        optimizer.step()
        if step == 9:
            held.hold(optimizer.committed, 5)
    assert rates == [held(step) for step in range(30)] and rates[10:16] == [COSINE(10)] * 6


def test_findings_hold_or_cool_as_configured() -> None:
    config = HoldConfig(on=("update_rms",), cool=("skip_rate",), steps=7, cool_steps=9, final=0.0)
    held = Held(COSINE)
    assert held.react(5, [finding("loss_spike"), finding("update_rms", "warn")], config) == ""
    assert "held for 7" in held.react(5, [finding("update_rms")], config) and held.holds == [(5, 7)]
    words = held.react(30, [finding("update_rms"), finding("skip_rate")], config)
    assert "cools down over 9" in words and held.cooldown == (30, 9, 0.0)
    assert held.react(35, [finding("update_rms"), finding("skip_rate")], config) == ""
    assert held.holds == [(5, 7)]
    assert Held(COSINE).react(5, [finding("update_rms", "warn")], HoldConfig(level="warn")) != ""


def test_the_config_names_indicators_that_there_are() -> None:
    assert ControllerConfig(rate={}, kl={}, hold={}).hold == HoldConfig()
    for wrong in (
        {"hold": {"on": ("update_rsm",)}},
        {"hold": {"level": "warning"}},
        {"rate": {"updates": 3}},
    ):
        with pytest.raises(ValidationError):
            ControllerConfig(**wrong)
    with pytest.raises(ValidationError, match="did you mean 'update_rms'"):
        HoldConfig(cool=("update_rsm",))
