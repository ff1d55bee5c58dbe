"""Schedules: what holds for every shape, agreement with peers, and the errors."""

from __future__ import annotations

import json
import math
import pickle
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts, OneCycleLR, PolynomialLR
from transformers import optimization as hf

from steepest import schedules
from steepest.contract import SteepestError

NAMES = schedules.names()
FALLING = sorted(set(NAMES) - {"one_cycle", "cosine_restarts"})
ENDING = sorted(set(NAMES) - {"constant", "inverse_sqrt", "cosine_restarts"})
peaks = st.floats(1e-8, 1e3)


def test_the_sets_under_test():
    assert len(NAMES) == 8 and len(FALLING) == 6 and len(ENDING) == 5
    assert all(callable(getattr(schedules, name)) for name in NAMES)


fractions = st.floats(0, 1)


@st.composite
def any_schedule(draw, names=NAMES, finals=fractions):
    name = draw(st.sampled_from(names))
    steps = draw(st.integers(1, 400))
    options = {"warmup": draw(st.integers(0, steps))}
    if name not in ("constant", "inverse_sqrt"):
        options["final"] = draw(finals)
    if name == "wsd":
        options["shape"] = draw(st.sampled_from(["linear", "sqrt", "cosine"]))
        options["cooldown"] = draw(st.floats(0, 1))
        options["warmup"] = min(options["warmup"], steps - round(options["cooldown"] * steps))
    if name == "polynomial":
        options["power"] = draw(st.floats(0, 8))
    if name == "inverse_sqrt":
        options["timescale"] = draw(st.none() | st.integers(1, 1000))
    if name == "one_cycle":
        options["start"], options["rise"] = draw(st.floats(0, 1)), draw(st.floats(0, 1))
    if name == "cosine_restarts":
        options["period"] = draw(st.none() | st.integers(1, 200))
        options["multiplier"] = draw(st.integers(1, 3))
    return schedules.make(name, draw(peaks), steps, **options)


@given(any_schedule())
def test_stays_between_zero_and_the_peak(s):
    values = [s(step) for step in range(s.steps + 3)]
    assert all(math.isfinite(v) and 0 <= v <= s.peak for v in values)


@given(any_schedule(), st.integers(0, 10**9))
def test_holds_past_the_end(s, beyond):
    assert s(s.steps + beyond) == s(s.steps)


@given(any_schedule(ENDING))
def test_arrives_at_final(s):
    assert s(s.steps) == s.peak * s.final


@given(any_schedule(FALLING))
def test_never_rises_after_warmup(s):
    values = [s(step) for step in range(s.warmup, s.steps + 1)]
    assert all(b <= a * (1 + 1e-12) for a, b in pairwise(values))


@given(any_schedule(["linear", "cosine", "polynomial"], finals=st.floats(1, 100)))
def test_may_rise_above_the_peak(s):
    values = [s(step) for step in range(s.warmup, s.steps + 1)]
    assert all(b >= a * (1 - 1e-12) for a, b in pairwise(values))
    assert s(s.steps) == s.peak * s.final


@given(any_schedule())
def test_warmup_is_a_line_that_ends_where_the_shape_starts(s):
    full = s.peak * s.factor(0)
    for step in range(s.warmup):
        assert s(step) == pytest.approx(full * (step + 1) / s.warmup, rel=1e-12)
    if s.warmup:
        assert s(s.warmup - 1) == full
    if s.length:
        assert s(s.warmup) == full


@given(any_schedule(), st.lists(st.integers(0, 500), min_size=1, max_size=20))
def test_is_pure_hashable_and_survives_json_and_pickle(s, steps):
    copies = (
        schedules.from_config(json.loads(json.dumps(s.to_config()))),
        pickle.loads(pickle.dumps(s)),
    )
    forward = [s(step) for step in steps]
    for copy in copies:
        assert copy == s and hash(copy) == hash(s)
        assert [copy(step) for step in reversed(steps)] == forward[::-1]


def test_different_shapes_are_different_values():
    assert schedules.linear(1.0, 10) != schedules.cosine(1.0, 10)
    assert schedules.linear(1.0, 10) != schedules.linear(1.0, 10, warmup=1)
    assert len({schedules.make(name, 1.0, 10) for name in NAMES}) == len(NAMES)


def test_known_values():
    linear = schedules.linear(1.0, 10, warmup=2, final=0.2)
    assert [linear(i) for i in (0, 1, 2, 6, 10, 99)] == pytest.approx([0.5, 1.0, 1.0, 0.6, 0.2, 0.2])
    wsd = schedules.wsd(2.0, 100, cooldown=0.16, shape="sqrt")
    assert [wsd(i) for i in (0, 84, 88, 100)] == pytest.approx([2.0, 2.0, 1.0, 0.0])
    assert schedules.inverse_sqrt(1.0, 10**6, warmup=100)(400) == pytest.approx(0.5)
    restarts = schedules.cosine_restarts(1.0, 30, period=10, multiplier=2)
    assert [restarts(i) for i in (0, 5, 10, 20, 30)] == pytest.approx([1.0, 0.5, 1.0, 0.5, 0.0])


STEPS, WARMUP, PEAK = 120, 12, 0.7


def optimizer():
    return torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=PEAK)


def trajectory(peer, length):
    """The peer's learning rate at steps 0, 1, ..., length."""
    rates = [peer.get_last_lr()[0]]
    for _ in range(length):
        peer.optimizer.step()
        peer.step()
        rates.append(peer.get_last_lr()[0])
    return rates


TRANSFORMERS = {
    "constant": (hf.get_constant_schedule_with_warmup, {}, {}),
    "linear": (hf.get_linear_schedule_with_warmup, {"num_training_steps": STEPS}, {}),
    "cosine": (hf.get_cosine_schedule_with_warmup, {"num_training_steps": STEPS}, {}),
    "cosine to a floor": (
        hf.get_cosine_with_min_lr_schedule_with_warmup,
        {"num_training_steps": STEPS, "min_lr_rate": 0.1},
        {"final": 0.1},
    ),
    "polynomial": (
        hf.get_polynomial_decay_schedule_with_warmup,
        {"num_training_steps": STEPS, "power": 2.5, "lr_end": PEAK / 50},
        {"final": 1 / 50, "power": 2.5},
    ),
    "inverse_sqrt": (hf.get_inverse_sqrt_schedule, {}, {}),
    "inverse_sqrt with a timescale": (hf.get_inverse_sqrt_schedule, {"timescale": 40}, {"timescale": 40}),
    **{
        f"wsd {shape}": (
            hf.get_wsd_schedule,
            {"num_decay_steps": 30, "num_training_steps": STEPS, "decay_type": theirs},
            {"cooldown": 0.25, "shape": shape},
        )
        for shape, theirs in {"linear": "linear", "sqrt": "1-sqrt", "cosine": "cosine"}.items()
    },
}


@pytest.mark.parametrize("warmup", [0, WARMUP])
@pytest.mark.parametrize("case", TRANSFORMERS)
def test_agrees_with_transformers(case, warmup):
    """From the end of warm-up on, equal; within it, transformers is one step late (it starts at zero)."""
    peer, theirs, ours = TRANSFORMERS[case]
    if peer is hf.get_inverse_sqrt_schedule and warmup == 0 and not theirs:
        theirs = {"timescale": 10_000}
    expected = trajectory(peer(optimizer(), num_warmup_steps=warmup, **theirs), STEPS)
    mine = schedules.make(case.split()[0], PEAK, STEPS, warmup=warmup, **ours)
    assert [mine(i) for i in range(warmup, STEPS + 1)] == pytest.approx(
        expected[warmup:], rel=1e-12, abs=1e-19
    )
    assert [mine(i) for i in range(warmup)] == pytest.approx(expected[1 : warmup + 1], rel=1e-12)


def test_wsd_to_a_floor_agrees_with_transformers():
    """Without warm-up: transformers starts its warm-up from the floor."""
    peer = hf.get_wsd_schedule(optimizer(), 0, 30, STEPS, min_lr_ratio=0.05, decay_type="1-sqrt")
    mine = schedules.wsd(PEAK, STEPS, cooldown=0.25, shape="sqrt", final=0.05)
    assert [mine(i) for i in range(STEPS + 1)] == pytest.approx(trajectory(peer, STEPS), rel=1e-12)


def test_one_cycle_agrees_with_torch():
    """torch arrives at its last step, so its run of STEPS + 1 is this run of STEPS, and its rise too."""
    rise = (0.3 * STEPS + 1) / (STEPS + 1)
    peer = OneCycleLR(optimizer(), max_lr=PEAK, total_steps=STEPS + 1, pct_start=rise)
    expected = trajectory(peer, STEPS)
    mine = schedules.one_cycle(PEAK, STEPS)
    assert [mine(i) for i in range(STEPS + 1)] == pytest.approx(expected, rel=1e-9)
    assert max(expected) == pytest.approx(PEAK)


@pytest.mark.parametrize("multiplier", [1, 2, 3])
def test_restarts_agree_with_torch(multiplier):
    peer = CosineAnnealingWarmRestarts(optimizer(), T_0=11, T_mult=multiplier, eta_min=PEAK / 20)
    mine = schedules.cosine_restarts(PEAK, STEPS, period=11, multiplier=multiplier, final=1 / 20)
    assert [mine(i) for i in range(STEPS + 1)] == pytest.approx(trajectory(peer, STEPS), rel=1e-9)


def test_polynomial_agrees_with_torch():
    peer = PolynomialLR(optimizer(), total_iters=STEPS, power=1.7)
    mine = schedules.polynomial(PEAK, STEPS, power=1.7)
    assert [mine(i) for i in range(STEPS + 1)] == pytest.approx(trajectory(peer, STEPS), rel=1e-9)


BAD = {
    "misspelt name": (("cosin", 1.0, 10), {}, "did you mean 'cosine'"),
    "misspelt option": (("cosine", 1.0, 10), {"warm_up": 2}, "did you mean 'warmup'"),
    "option of another": (("cosine", 1.0, 10), {"power": 2}, "unknown option of the cosine schedule"),
    "warm-up too long": (("cosine", 1.0, 10), {"warmup": 11}, "lower it to steps=10"),
    "warm-up negative": (("cosine", 1.0, 10), {"warmup": -1}, "warmup=-1 must be finite and 0 or more"),
    "warm-up a fraction": (("cosine", 1.0, 10), {"warmup": 0.1}, "warmup must be a whole number"),
    "no steps": (("cosine", 1.0, 0), {}, "steps=0 must be finite and 1 or more"),
    "steps a float": (("cosine", 1.0, 1e4), {}, "steps must be a whole number"),
    "peak NaN": (("cosine", math.nan, 10), {}, "peak=nan"),
    "peak infinite": (("cosine", math.inf, 10), {}, "peak=inf"),
    "peak negative": (("cosine", -1.0, 10), {}, "peak=-1.0"),
    "peak text": (("cosine", "3e-4", 10), {}, "peak must be a number, got '3e-4'"),
    "final NaN": (("linear", 1.0, 10), {"final": math.nan}, "final=nan"),
    "cooldown over 1": (
        ("wsd", 1.0, 10),
        {"cooldown": 2.0},
        "must be finite and between 0 and 1",
    ),
    "cooldown shape": (("wsd", 1.0, 10), {"shape": "sqroot"}, "did you mean 'sqrt'"),
    "no room": (
        ("wsd", 1.0, 100),
        {"warmup": 90},
        "90 steps of warm-up and 20 of cooldown",
    ),
    "period": (("cosine_restarts", 1.0, 10), {"period": 0}, "period=0 must be finite and 1 or more"),
    "not optional": (("cosine", 1.0, 10), {"final": None}, "final must be a number"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_sentence(case):
    arguments, options, message = BAD[case]
    with pytest.raises(SteepestError) as error:
        schedules.make(*arguments, **options)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_bad_config_and_bad_step():
    with pytest.raises(SteepestError, match="needs 'peak'"):
        schedules.from_config({"name": "linear", "steps": 3})
    with pytest.raises(SteepestError, match="the first step is 0"):
        schedules.linear(1.0, 10)(-1)


def test_every_shape_is_documented():
    page = (Path(__file__).parents[2] / "docs" / "schedules.md").read_text()
    assert not [name for name in NAMES if f"`{name}`" not in page]
