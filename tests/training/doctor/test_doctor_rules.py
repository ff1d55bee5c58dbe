"""Every rule: a run that trips it, and one that does not. On a healthy run the whole table is silent."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from steepest.training.doctor import RULES, Cause, Series
from steepest.training.doctor.diagnosis import examine
from training.doctor.simulated import (
    PEAK,
    STEPS,
    WARMUP,
    Rows,
    always,
    change,
    healthy,
    policy,
    series,
    with_layers,
)


def causes(s: Series) -> dict[str, Cause]:
    return {cause.rule: cause for cause in examine(s, {}, {})}


def serious(s: Series) -> dict[str, Cause]:
    return {name: cause for name, cause in causes(s).items() if cause.level != "note"}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("shape", ["cosine", "linear", "wsd", "constant", "inverse_sqrt"])
@pytest.mark.parametrize("steps", [200, STEPS])
def test_a_healthy_run_is_told_so(shape: str, steps: int, seed: int) -> None:
    assert serious(series(healthy(steps, seed, shape), clip=1.0, steps=steps)) == {}


@pytest.mark.parametrize("seed", range(8))
def test_a_healthy_policy_is_told_so(seed: int) -> None:
    assert serious(series(policy(seed=seed))) == {}


# ------------------------------------------------------------------ what goes wrong, one by one


def bump(at: int, length: int, height: float) -> Callable[[int, float], float]:
    return lambda step, value: value + height * math.exp(-(step - at) / length) * (step >= at)


def times(factor: float) -> Callable[[int, float], float]:
    return lambda step, value: value * factor


def rising_from(at: int, slope: float) -> Callable[[int, float], float]:
    return lambda step, value: value + slope * max(0, step - at)


def near(at: int, before: int, after: int) -> Callable[[int], bool]:
    return lambda step: at - before <= step <= at + after


def rate_too_high() -> Series:
    rows = change(healthy(), always, loss=rising_from(150, 0.004), update_norm=times(30))
    return series(change(rows, always, grad_norm=lambda step, g: g * (1 + step / 40)))


def stalls_at_the_peak() -> Series:
    """What a rate ten times too high really looks like: no rise, large updates, weights that grow."""
    rows = change(healthy(), lambda step: 30 < step < 330, loss=lambda step, loss: 3.1 + loss - curve(step))
    return series(
        change(rows, always, update_norm=times(30), param_norm=lambda step, p: p * (1 + step / 200))
    )


def weights_grow(times: float) -> Series:
    """What a rate thirty times too high may look like: the weights grew, a step is a smaller part of them."""
    rows = change(healthy(), always, param_norm=lambda step, _: 60.0 * times ** (step / STEPS))
    return series([{**row, "update_norm": 0.012 * row["param_norm"]} for row in rows])


def curve(step: int) -> float:
    return float(healthy_means[step - 1])


healthy_means = [row["loss"] for row in healthy(seed=99)]


def rate_too_low() -> Series:
    rows = change(healthy(), always, loss=lambda step, _: 5.5 - 5e-4 * step + 0.01 * math.sin(7.0 * step))
    return series(change(rows, always, update_norm=times(1e-3), param_norm=lambda step, p: 60.0))


def rate_a_tenth() -> Series:
    """What a tenth of a good rate really looks like: an ordinary curve, but most of it is still to come."""
    rows = change(
        healthy(), always, loss=lambda step, loss: 5.5 - 2.4 * (step / STEPS) ** 0.5 + loss - curve(step)
    )
    return series(change(rows, always, update_norm=times(0.1)))


def fine_tuned(rate: float = 0.05) -> Series:
    """Steps that are short for the weights, and a loss that falls at the start, then slowly: all is well."""
    rows = change(healthy(), always, loss=lambda step, loss: 2.2 - 0.12 * math.log(step) + loss - curve(step))
    return series(change(rows, always, update_norm=times(rate)))


def late_start() -> Series:
    """Straight, but after a steep fall at the start: that is no rate that is too low."""
    rows = change(healthy(), always, loss=lambda step, _: 3.0 + 2.5 * math.exp(-step / 10) - 2e-4 * step)
    return series([{k: v for k, v in row.items() if k != "update_norm"} for row in rows])


def warmup_too_short() -> Series:
    return series(change(healthy(), always, loss=bump(WARMUP + 5, 10, 2.0)))


def spike(leader: str = "update_norm", at: int = 300, stays: bool = False) -> Series:
    rows = change(healthy(), always, loss=bump(at, 1e9 if stays else 12, 1.5))
    rows = change(rows, near(at, 3, 6), update_norm=times(5 if leader == "update_norm" else 1))
    return series(change(rows, near(at, -1 if leader == "update_norm" else 2, 6), grad_norm=times(6)))


def hard_batch() -> Series:
    return series(change(healthy(), lambda step: step in (250, 400), loss=lambda step, loss: loss + 0.8))


def does_not_fall() -> Series:
    flat = change(healthy(), always, loss=lambda step, _: 5.5 + 0.01 * math.sin(7.0 * step))
    return series([{k: v for k, v in row.items() if k != "update_norm"} for row in flat])


def not_finite(steps: range, **plan: Any) -> Series:
    rows: Rows = healthy()
    for row in rows:
        if row["step"] in steps:
            row |= {"loss": None, "nonfinite": ["loss"]}
    events = tuple(
        {"kind": "veto", "step": s, "why": "non-finite gradient", "culprits": ["wte"]} for s in steps
    )
    return series(rows, events, **plan)


def clipped(share: float, steps: int = STEPS) -> Series:
    rows = change(healthy(steps), always, clipped=lambda step, _: step % 1000 < 1000 * share)
    for i, row in enumerate(rows):
        row["clipped"] = (i * 0.618034) % 1 < share
    return series(rows, clip=1.0)


def rate(f: Callable[[int], float], **plan: Any) -> Series:
    return series(change(healthy(), always, lr=lambda step, _: f(step)), **plan)


def stairs(height: float) -> Series:
    rows = healthy()
    for row in rows:
        epoch = math.ceil(row["step"] / 200)
        row |= {"epoch": row["step"] / 200, "loss": row["loss"] + height * (epoch - 1)}
    return series(rows)


def restart(height: float) -> Series:
    resumed = ({"kind": "resume", "step": 300},)
    return series(change(healthy(), lambda step: step > 300, loss=lambda step, loss: loss + height), resumed)


def overfit() -> Series:
    return series(change(healthy(), always, validation=rising_from(250, 0.003)))


def slow(factor: float, share: float = 0.0) -> Series:
    rows = change(healthy(), lambda step: step > 400, step_ms=times(factor))
    return series(change(rows, lambda step: bool(share) and step % round(1 / share) == 0, step_ms=times(20)))


def on_policy(**columns: Callable[[int, float], float]) -> Series:
    return series(change(policy(), always, **columns))


def tiny_steps() -> Series:
    return series(change(healthy(), always, loss=lambda step, _: 2.0, update_norm=times(1e-3)))


TRIPS: list[tuple[str, Callable[[], Series], Mapping[str, Any]]] = [
    ("rate-too-high", rate_too_high, {"level": "act", "optimizer": "yes"}),
    ("rate-too-high", stalls_at_the_peak, {"level": "act", "optimizer": "yes"}),
    ("rate-too-high", lambda: weights_grow(6.0), {"level": "act", "optimizer": "yes"}),
    ("rate-too-high", lambda: weights_grow(2.4), {"level": "warn", "optimizer": "perhaps"}),
    ("rate-too-low", rate_too_low, {"level": "act", "optimizer": "yes"}),
    ("rate-too-low", rate_a_tenth, {"level": "warn", "optimizer": "perhaps"}),
    ("warmup", warmup_too_short, {"level": "warn", "optimizer": "yes"}),
    ("spikes", spike, {"level": "warn", "optimizer": "yes"}),
    ("spikes", lambda: spike("grad_norm"), {"level": "warn", "optimizer": "perhaps"}),
    ("spikes", lambda: spike(stays=True), {"level": "act"}),
    ("flat", does_not_fall, {"level": "act", "optimizer": "perhaps"}),
    ("not-finite", lambda: not_finite(range(100, 120)), {"level": "act", "optimizer": "perhaps"}),
    ("not-finite", lambda: not_finite(range(3, 5), precision="fp16"), {"level": "note", "optimizer": "no"}),
    ("clipping", lambda: clipped(0.5), {"level": "note"}),
    ("clipping", lambda: clipped(1.0), {"level": "note", "optimizer": "perhaps"}),
    ("clipping", lambda: clipped(0.0, 1200), {"level": "note", "optimizer": "no"}),
    ("schedule", lambda: rate(lambda step: PEAK * max(0.0, 1 - step / 400)), {"level": "warn"}),
    ("schedule", lambda: rate(lambda step: PEAK * (1 - step / 2400), steps=2400), {"level": "note"}),
    ("schedule", lambda: rate(lambda step: PEAK * (1 - step / 1200), steps=STEPS), {"level": "note"}),
    ("balance", lambda: series(with_layers(healthy(), balance=3.0)), {"level": "note"}),
    ("lost-updates", lambda: series(with_layers(healthy(), lost=0.4)), {"level": "act", "optimizer": "yes"}),
    ("dead-tensors", lambda: series(with_layers(healthy(), dead=1.0)), {"level": "warn", "optimizer": "no"}),
    ("dead-tensors", lambda: series(with_layers(healthy(), update_ratio=0.0)), {"optimizer": "yes"}),
    ("restarts", lambda: restart(0.5), {"level": "act", "optimizer": "perhaps"}),
    ("overfitting", overfit, {"optimizer": "no"}),
    ("epochs", lambda: stairs(-0.3), {"level": "note", "optimizer": "no"}),
    ("epochs", lambda: stairs(0.3), {"level": "warn", "optimizer": "no"}),
    ("throughput", lambda: slow(1.8), {"level": "warn", "optimizer": "no"}),
    ("throughput", lambda: slow(1.0, 0.02), {"level": "warn", "optimizer": "no"}),
    ("collapse", lambda: on_policy(reward=lambda s, r: r * (1 - max(0, s - 100) / 110)), {"level": "act"}),
    (
        "reward-gamed",
        lambda: on_policy(validation=rising_from(80, -0.004), kl=lambda s, kl: kl * (1 + s / 20)),
        {"level": "act", "optimizer": "no"},
    ),
    ("policy-step", lambda: on_policy(clip_fraction=times(5)), {"level": "warn", "optimizer": "yes"}),
    (
        "policy-step",
        lambda: on_policy(clip_fraction=times(5), kl_old=lambda s, kl: 0.1),
        {"level": "act", "optimizer": "yes"},
    ),
    ("policy-drift", lambda: on_policy(kl=lambda s, kl: math.exp((s - 180) / 20)), {"optimizer": "perhaps"}),
    (
        "entropy",
        lambda: on_policy(entropy=lambda s, h: 1.2 * math.exp(-s / 20), reward=lambda s, r: 0.3),
        {"level": "warn"},
    ),
    ("entropy", lambda: on_policy(entropy=lambda s, h: 1.2 * math.exp(-s / 20)), {"level": "note"}),
    ("contrast", lambda: on_policy(zero_variance_groups=lambda s, z: 0.8), {"optimizer": "no"}),
    ("reward-flat", lambda: on_policy(reward=lambda s, r: 0.2 + 0.05 * math.sin(7 * s)), {"level": "warn"}),
]

SILENT: list[tuple[str, Callable[[], Series]]] = [
    ("rate-too-low", fine_tuned),
    ("rate-too-low", late_start),
    ("rate-too-high", late_start),
    ("rate-too-high", lambda: weights_grow(1.6)),
    ("spikes", hard_batch),
    ("spikes", warmup_too_short),
    ("warmup", spike),
    ("clipping", lambda: clipped(0.1, 1200)),
    ("balance", lambda: series(with_layers(healthy(), balance=1.5))),
    ("balance", lambda: series(with_layers(healthy(), balance=3.0, decay_share=0.01))),
    ("lost-updates", lambda: series(with_layers(healthy(), lost=0.1))),
    ("dead-tensors", lambda: series(with_layers(healthy(), update_ratio=1e-5))),
    ("restarts", lambda: restart(0.0)),
    ("restarts", lambda: restart(-0.3)),
    ("epochs", lambda: stairs(0.0)),
    ("throughput", lambda: slow(1.1)),
    ("flat", rate_too_low),
    ("flat", rate_too_high),
    ("reward-gamed", lambda: on_policy(kl=lambda s, kl: kl * (1 + s / 20))),
    ("overfitting", lambda: series(policy())),
    ("policy-drift", lambda: on_policy(kl=lambda s, kl: 2.0)),
    ("entropy", lambda: on_policy(entropy=lambda s, h: 0.5 * h)),
    ("reward-flat", lambda: on_policy(reward=lambda s, r: r * (1 - max(0, s - 100) / 110))),
]


@pytest.mark.parametrize(
    ("rule", "make", "expected"), TRIPS, ids=[f"{t[0]}-{i}" for i, t in enumerate(TRIPS)]
)
def test_a_rule_finds_what_it_is_for(
    rule: str, make: Callable[[], Series], expected: Mapping[str, Any]
) -> None:
    found = causes(make())
    assert rule in found
    cause = found[rule]
    assert {key: getattr(cause, key) for key in expected} == expected
    assert all(any(c.isdigit() for c in text) for text in cause.evidence), "evidence is numbers"
    assert cause.evidence and cause.change


@pytest.mark.parametrize(("rule", "make"), SILENT, ids=[f"{t[0]}-{i}" for i, t in enumerate(SILENT)])
def test_a_rule_is_silent_about_what_it_is_not_for(rule: str, make: Callable[[], Series]) -> None:
    assert rule not in causes(make())


def test_every_rule_is_tried() -> None:
    names = [rule.name for rule in RULES]
    assert len(names) == len(set(names)) >= 20
    assert {rule for rule, _, _ in TRIPS} == set(names)
    for rule in RULES:
        assert set(rule.unless) < set(names)


def test_who_led_a_spike_is_said_with_its_step() -> None:
    own = causes(spike("update_norm"))["spikes"]
    assert "the update norm rose" in own.evidence[1] and "3 steps before" in own.evidence[1]
    given = causes(spike("grad_norm"))["spikes"]
    assert "the gradient norm rose" in given.evidence[1]


def test_the_culprits_of_vetoes_are_named_with_their_count() -> None:
    evidence = causes(not_finite(range(100, 120)))["not-finite"].evidence
    assert "20 steps of 600" in evidence[0] and "wte (20)" in evidence[1]


def test_the_change_is_a_line_of_the_config_with_a_number_of_this_run() -> None:
    assert causes(rate_too_high())["rate-too-high"].change == "optimizer: {lr: 0.001}"
    assert causes(clipped(1.0))["clipping"].change.startswith("clip: 0.")
