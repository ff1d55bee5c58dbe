"""The guard: what it sees, what it does where asked to, and that nothing can poison it."""

from __future__ import annotations

import json
import math
import random
import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from steepest.training.clipping import AdaGC, AdaGCConfig, ZClip, ZClipConfig
from steepest.training.guard import Guard, GuardConfig
from steepest.training.history import History, Window

NUMBERS = st.floats(allow_nan=True, allow_infinity=True)
STREAM = st.lists(st.tuples(NUMBERS, NUMBERS, st.none() | NUMBERS, st.booleans()), max_size=40)
EAGER = {"minimum": 4, "window": 8, "skip": True, "zclip": {"warmup": 3}, "update_clip": True}
EAGER |= {"adagc": True, "rollback": {"patience": 4}}


def calm(seed: int = 0) -> float:
    return 1.0 + 0.05 * random.Random(seed).gauss(0, 1)


def trained(steps: int = 100, **config: object) -> Guard:
    """A guard that has seen a quiet run: losses about 3, gradients about 1, updates about 0.1."""
    guard = Guard(GuardConfig(**config))
    for step in range(steps):
        guard.observe(3 * calm(step), calm(1000 + step), 0.1 * calm(2000 + step), True)
    return guard


def remembered(guard: Guard) -> str:
    return json.dumps(guard.state(), allow_nan=False)


# ---------------------------------------------------------------- history


@pytest.mark.parametrize("history", [Window, History])
def test_a_history_is_plain_mean_and_deviation_until_it_fills(history: type) -> None:
    values = [calm(i) for i in range(40)]
    seen = history(size=128)
    for value in values:
        seen.add(value)
    assert seen.mean == pytest.approx(statistics.fmean(values), rel=1e-12)
    assert seen.deviation == pytest.approx(statistics.pstdev(values), rel=1e-9)


@pytest.mark.parametrize("history", [Window, History])
def test_a_history_forgets(history: type) -> None:
    seen = history(size=16)
    for value in [5.0] * 100 + [1.0] * 100:
        seen.add(value)
    assert seen.mean == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("history", [Window, History])
@given(values=st.lists(NUMBERS, max_size=60))
def test_nothing_makes_a_history_other_than_finite(values: list[float], history: type) -> None:
    seen = history(size=8)
    for value in values:
        seen.add(value)
        assert all(map(math.isfinite, (seen.mean, seen.variance, seen.limit(6.0))))
        assert seen.variance >= 0
        assert not math.isnan(seen.sigmas(1.0))


# ---------------------------------------------------------------- detectors


def test_a_quiet_run_is_not_told_of() -> None:
    guard = Guard(GuardConfig())
    told = 0
    for step in range(400):
        guard.observe(3 * calm(step), calm(1000 + step), 0.1 * calm(2000 + step), True)
        told += sum(finding.level == "act" for finding in guard.warnings)
    assert told == 0


@pytest.mark.parametrize("place", range(3))
@pytest.mark.parametrize(("jump", "level"), [(1.25, "warn"), (2.0, "act")])
def test_a_spike_is_told_of_by_name_and_level(place: int, jump: float, level: str) -> None:
    guard = trained()
    values = [3.0, 1.0, 0.1]
    values[place] *= jump
    guard.observe(*values, True)
    (finding,) = guard.warnings
    assert finding.indicator == ("loss_spike", "grad_norm_spike", "update_norm_spike")[place]
    assert (finding.level, finding.step, finding.where) == (level, 101, "the run")
    assert finding.value > finding.limit == {"warn": 3.0, "act": 6.0}[level]
    assert guard.early_warning == (place == 2 and level == "act")


def test_nothing_is_told_before_there_is_a_history() -> None:
    guard = trained(63)
    guard.observe(1e6, 1e6, 1e6, True)
    assert guard.warnings == []


def test_one_spike_is_told_once_and_once_more_when_it_gets_worse() -> None:
    guard, told = trained(), []
    for factor in (1.25, 1.25, 3.0, 3.0, 1.25):
        guard.observe(3 * factor, 1.0, 0.1, True)
        told += [finding.level for finding in guard.warnings]
    assert told == ["warn", "act"]
    for step in range(300):
        guard.observe(3 * calm(step), calm(1000 + step), 0.1, True)
    guard.observe(9.0, 1.0, 0.1, True)
    assert [finding.level for finding in guard.warnings] == ["act"]


def test_a_spike_does_not_hide_the_next_one() -> None:
    guard = trained()
    guard.observe(1e6, 1.0, 0.1, True)
    assert guard.history["loss"].limit(6.0) < 12


def test_a_lasting_shift_becomes_the_new_history() -> None:
    guard = trained()
    for step in range(300):
        guard.observe(6 * calm(step), 1.0, 0.1, True)
    assert guard.history["loss"].mean == pytest.approx(6.0, rel=0.05)


def test_the_caller_may_number_the_steps() -> None:
    guard = trained()
    guard.observe(30.0, 1.0, 0.1, True, step=777)
    assert {finding.step for finding in guard.warnings} == {777}


# ---------------------------------------------------------------- vetoes


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_vetoed_in_words(bad: float) -> None:
    guard = Guard(GuardConfig())
    loss, norm = guard.judge(bad, 1.0), guard.judge(1.0, bad)
    assert not loss.commit and loss.why == f"the loss is {bad}"
    assert not norm.commit and norm.why == f"the gradient norm is {bad}"


def test_detectors_alone_change_no_step() -> None:
    guard = trained()
    assert not guard.judges
    said = guard.judge(1e3, 1e3)
    assert said.commit and said.max_norm is None and said.rate == 1.0


@pytest.mark.parametrize(
    ("loss", "norm", "commit"), [(3, 1, True), (3.5, 1, True), (9, 1, False), (3, 5, False)]
)
def test_skip_vetoes_a_spike_of_loss_or_gradient(loss: float, norm: float, commit: bool) -> None:
    guard = trained(skip=True)
    said = guard.judge(loss, norm)
    assert guard.judges and said.commit == commit
    assert commit or ("sigma" in said.why and ("loss" in said.why) == (loss == 9))


def test_a_vetoed_step_enters_no_statistic() -> None:
    guard = trained(skip=True, zclip=True, rollback=True)
    before = guard.state()
    guard.observe(9.0, 5.0, None, False)
    after = guard.state()
    changed = {key for key in before if before[key] != after[key]}
    assert changed == {"step", "told"}


@pytest.mark.parametrize("name", ["skip", "zclip", "adagc", "update_clip"])
def test_every_intervention_makes_the_guard_be_asked(name: str) -> None:
    assert Guard(GuardConfig(**{name: True})).judges
    assert not Guard(GuardConfig(**{name: False})).judges


# ---------------------------------------------------------------- zclip


def zclip_reference(norms: list[float]) -> list[float]:
    """As published, one number after another: numpy-free, with the deviation's floor left out."""
    seen, clipped, mean, variance = [], [], 0.0, 0.0
    for g in norms:
        if len(seen) < 25:
            seen.append(g)
            clipped.append(g)
            mean, variance = statistics.fmean(seen), statistics.pvariance(seen)
            continue
        sigma = math.sqrt(variance) + 1e-6
        z = (g - mean) / sigma
        x = mean + 2.5 * sigma / (z / 2.5) if z > 2.5 else g
        clipped.append(x)
        mean = 0.97 * mean + 0.03 * x
        variance = 0.97 * variance + 0.03 * (x - mean) ** 2
    return clipped


def test_zclip_is_as_published() -> None:
    norms = [calm(i) * (4.0 if i % 37 == 36 else 1.0) for i in range(300)]
    zclip, clipped = ZClip(ZClipConfig(floor=1e-9)), []
    for norm in norms:
        limit = zclip.limit(norm)
        clipped.append(norm if limit is None else limit)
        zclip.observe(norm)
    assert clipped == pytest.approx(zclip_reference(norms), rel=1e-9)
    assert sum(a < b for a, b in zip(clipped, norms, strict=True)) >= 8


def test_zclip_lowers_the_threshold_of_that_step_only() -> None:
    guard = trained(zclip=True)
    assert guard.judge(3.0, 1.0).max_norm is None
    limit = guard.judge(3.0, 10.0).max_norm
    assert limit is not None and 0.9 < limit < 1.1
    assert guard.judge(3.0, 100.0).max_norm < limit


def test_zclip_survives_a_nan() -> None:
    zclip = ZClip(ZClipConfig())
    for i in range(60):
        zclip.observe(math.nan if i % 7 == 0 else calm(i))
    assert zclip.limit(1e6) < 2.0


# ---------------------------------------------------------------- adagc


def grads(*sizes: float) -> list[tuple[str, torch.Tensor]]:
    return [(f"p{i}", torch.full((4,), size / 2, dtype=torch.float64)) for i, size in enumerate(sizes)]


def test_adagc_is_as_published() -> None:
    adagc = AdaGC(AdaGCConfig(warmup=3, absolute=1.0))
    gamma: dict[str, float] = {}
    for t in range(12):
        sizes = (calm(t), 0.5 * calm(50 + t) * (10 if t == 8 else 1))
        whole, expected = math.hypot(*sizes), {}
        for name, size in zip(("p0", "p1"), sizes, strict=True):
            if t < 3:
                expected[name] = min(1.0, 1.0 / whole) * size
                gamma[name] = min(gamma.get(name, math.inf), expected[name])
            else:
                expected[name] = min(1.0, 1.05 * gamma[name] / size) * size
                gamma[name] = 0.98 * gamma[name] + 0.02 * expected[name]
        named = grads(*sizes)
        adagc.prepare(named)
        adagc.observe()
        assert {name: float(g.norm()) for name, g in named} == pytest.approx(expected, rel=1e-6)
        assert adagc.gamma == pytest.approx(gamma, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_adagc_knows_what_gradients_are_to_be_divided_by(dtype: torch.dtype) -> None:
    plain, scaled = AdaGC(AdaGCConfig(warmup=1)), AdaGC(AdaGCConfig(warmup=1))
    for size in (1.0, 8.0):
        own, other = grads(size, 0.5), [(name, (64 * g).to(dtype)) for name, g in grads(size, 0.5)]
        plain.prepare(own)
        scaled.prepare(other, scale=64.0)
        for a, b in ((plain, own), (scaled, other)):
            a.observe()
            assert a.gamma.keys() == {name for name, _ in b}
    assert scaled.gamma == pytest.approx(plain.gamma, rel=1e-2)
    assert float(other[0][1].double().norm()) == pytest.approx(64 * float(own[0][1].norm()), rel=1e-2)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_adagc_touches_nothing_where_one_gradient_is_not_finite(bad: float) -> None:
    adagc = AdaGC(AdaGCConfig(warmup=1))
    adagc.prepare(grads(1.0, 1.0))
    adagc.observe()
    before, named = adagc.state(), grads(50.0, 1.0)
    named[1][1][2] = bad
    copies = [g.clone() for _, g in named]
    adagc.prepare(named)
    assert all(
        torch.equal(
            g,
            c,
        )
        or g.isnan().any()
        for (_, g), c in zip(named, copies, strict=True)
    )
    assert torch.equal(named[0][1], copies[0]) and adagc.state() == before


def test_adagc_forgets_a_step_that_was_not_taken() -> None:
    guard = Guard(GuardConfig(adagc={"warmup": 2}))
    guard.prepare(grads(1.0))
    guard.observe(1.0, 1.0, None, False)
    assert guard.adagc is not None and guard.adagc.gamma == {} and guard.adagc.taken == 0
    guard.prepare(grads(1.0))
    guard.observe(1.0, 1.0, None, True)
    assert guard.adagc.gamma == {"p0": 1.0} and guard.adagc.taken == 1


def test_adagc_a_tensor_without_gradient_at_first_is_not_held_at_zero() -> None:
    adagc = AdaGC(AdaGCConfig(warmup=2))
    for size in (0.0, 0.0, 0.0, 0.3, 0.3):
        named = grads(0.5, size)
        adagc.prepare(named)
        adagc.observe()
    assert float(named[1][1].norm()) == pytest.approx(0.3, rel=1e-6)
    adagc.prepare([])


# ---------------------------------------------------------------- update clip, rollback


def test_update_clip_shortens_a_step_to_its_limit_and_remembers_it_unclipped() -> None:
    guard, other = trained(update_clip=True), trained()
    assert guard.judge(3.0, 1.0, lambda: 0.1).rate == 1.0
    limit = guard.history["update_norm"].limit(3.0)
    said = guard.judge(3.0, 1.0, lambda: 0.4)
    assert said.commit and said.rate * 0.4 == pytest.approx(limit, rel=1e-12)
    guard.observe(3.0, 1.0, 0.4 * said.rate, True)
    other.observe(3.0, 1.0, 0.4, True)
    assert guard.history["update_norm"].mean == pytest.approx(other.history["update_norm"].mean, rel=1e-12)
    assert guard.judge(3.0, 1.0, lambda: 0.1).rate == 1.0


def test_update_clip_asks_only_when_there_is_a_history() -> None:
    def never() -> float:
        raise AssertionError("asked")

    assert trained(10, update_clip=True).judge(3.0, 1.0, never).rate == 1.0
    assert trained().judge(3.0, 1.0, never).rate == 1.0


def test_an_update_that_would_not_be_finite_is_vetoed() -> None:
    said = trained(update_clip=2.5).judge(3.0, 1.0, lambda: math.inf)
    assert not said.commit and "inf" in said.why


def spiked(after: float, **config: object) -> Guard:
    guard = trained(200, rollback={"patience": 40, **config})
    guard.observe(9.0, 1.0, 0.1, True)
    for step in range(60):
        guard.observe(after * calm(step), 1.0, 0.1, True)
    return guard


def test_a_spike_that_does_not_heal_asks_for_a_rollback() -> None:
    guard = spiked(3.5)
    assert guard.rollback is not None
    assert guard.rollback.spike == 201 and guard.rollback.now > guard.rollback.before + 0.05
    guard.rearm()
    assert guard.rollback is None


@pytest.mark.parametrize(("after", "config"), [(3.0, {}), (2.0, {}), (3.5, {"margin": 1.0})])
def test_a_spike_that_heals_does_not(after: float, config: dict) -> None:
    assert spiked(after, **config).rollback is None


def test_without_a_spike_a_rising_loss_is_no_reason_to_roll_back() -> None:
    guard = trained(200, rollback={"patience": 10})
    for step in range(600):
        guard.observe((3 + step / 300) * calm(step), 1.0, 0.1, True)
    assert guard.rollback is None


# ---------------------------------------------------------------- state


@given(STREAM)
@settings(max_examples=60)
def test_no_stream_poisons_a_guard(stream: list) -> None:
    guard = Guard(GuardConfig(**EAGER))
    for loss, norm, update, committed in stream:
        said = guard.judge(loss, norm, lambda update=update: update or 0.0)
        assert said.commit or said.why
        assert math.isfinite(said.rate) and 0 <= said.rate <= 1
        assert said.max_norm is None or (math.isfinite(said.max_norm) and said.max_norm > 0)
        guard.observe(loss, norm, update, committed)
        remembered(guard)
    for step in range(300):
        guard.observe(calm(step), calm(1000 + step), calm(2000 + step), True)
    assert guard.history["loss"].mean == pytest.approx(1.0, abs=0.1)


@given(STREAM, STREAM)
@settings(max_examples=60)
def test_a_restored_guard_goes_on_bitwise(before: list, after: list) -> None:
    guard, other = Guard(GuardConfig(**EAGER)), Guard(GuardConfig(**EAGER))
    for loss, norm, update, committed in before:
        guard.observe(loss, norm, update, committed)
    other.load(json.loads(remembered(guard)))
    assert remembered(other) == remembered(guard)
    for loss, norm, update, committed in after:
        own, theirs = ([g.judge(loss, norm, lambda: 1.0), g.prepare(grads(1.0, 2.0))] for g in (guard, other))
        assert str(own) == str(theirs)
        for g in (guard, other):
            g.observe(loss, norm, update, committed)
        assert str(guard.warnings) == str(other.warnings) and remembered(other) == remembered(guard)


def test_a_guard_takes_over_what_its_config_still_has() -> None:
    old = trained(zclip=True, rollback=True)
    new = Guard(GuardConfig(adagc=True))
    new.load(json.loads(remembered(old)))
    assert new.history["loss"].mean == old.history["loss"].mean and new.step == 100
    again = Guard(GuardConfig(zclip=True))
    again.load(json.loads(remembered(new)))
    assert again.zclip is not None and again.zclip.count == 0


def test_rearming_forgets_all_but_the_step() -> None:
    guard = trained(skip=True, zclip=True, adagc=True, rollback=True)
    guard.rearm()
    fresh = Guard(guard.config)
    fresh.step = 100
    assert remembered(guard) == remembered(fresh)
    assert guard.judge(1e6, 1e6).commit


# ---------------------------------------------------------------- config


def test_true_stands_for_the_defaults_and_false_for_none() -> None:
    on = GuardConfig(zclip=True, adagc=True, rollback=True, update_clip=True)
    assert on.zclip == ZClipConfig() and on.adagc == AdaGCConfig() and on.update_clip == 3.0
    assert on.rollback is not None and on.rollback.patience == 500
    off = GuardConfig(zclip=False, adagc=False, rollback=False, update_clip=False)
    assert off == GuardConfig() and GuardConfig(update_clip=1).update_clip == 1.0


@pytest.mark.parametrize(
    "wrong",
    [
        {"wind": 1},
        {"warn": 7.0},
        {"minimum": 1},
        {"act": math.nan},
        {"zclip": {"alpha": 1.0}},
        {"update_clip": -1},
    ],
)
def test_a_wrong_config_is_refused(wrong: dict) -> None:
    with pytest.raises(ValidationError):
        GuardConfig(**wrong)
