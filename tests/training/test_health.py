"""Indicators: each trips on a series that it is for, and not on its healthy neighbour."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import steepest
from steepest.contract import SteepestError
from steepest.placements import Placement
from steepest.training.health import RATES, RUN, TABLE, Finding, Health, NoiseScale, square_norm
from steepest.training.indicators import ANY, INDICATORS

PAGE = Path(__file__).parents[2] / "docs" / "health.md"
BY_GUARD = {"loss_spike", "grad_norm_spike", "update_norm_spike"}
N, RATE, DECAY = 10_000, 1e-3, 0.1
HEALTHY = {"grad_norm": 1.0, "update_norm": 0.02, "param_norm": 20.0, "lost": 0}


class Stub:
    """What health reads of an optimizer, with one matrix `w` and one vector `b`."""

    def __init__(self, **group: object) -> None:
        w, b = nn.Parameter(torch.empty(100, 100)), nn.Parameter(torch.empty(100))
        own = {"lr": RATE, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": DECAY, "amsgrad": False}
        own |= {"rule": "adamw", "param_names": ["w", "b"], "params": [w, b]}
        self.param_groups = [own | group]
        self.state = {w: {"step": 50, "v": torch.full((100, 100), 1.0 / N)}, b: {}}
        self.rows = {"w": dict(HEALTHY), "b": {**HEALTHY, "update_norm": 0.002, "param_norm": 2.0}}
        self.last_verdict, self.placement = SimpleNamespace(commit=True), Placement()

    def telemetry(self) -> dict:
        return self.rows


def calm(seed: int, spread: float = 0.02) -> float:
    return 1.0 + spread * random.Random(seed).gauss(0, 1)


def looks(
    health: Health, stub: Stub, count: int, facts: dict | None = None, since: int = 1000
) -> list[Finding]:
    """So many looks, ten steps apart, with the stub's numbers a little noisy."""
    found = []
    base = stub.rows
    for i in range(count):
        stub.rows = {
            name: {k: v * calm(1000 * i + j) if k != "lost" else v for j, (k, v) in enumerate(row.items())}
            for name, row in base.items()
        }
        found += health.look(since + 10 * i, stub, since + 10 * i, 100_000, facts)[0]
    stub.rows = base
    return found


def named(found: list[Finding]) -> set[tuple[str, str, str]]:
    return {(finding.indicator, finding.where, finding.level) for finding in found}


# ---------------------------------------------------------------- each indicator, out and in


def test_a_healthy_run_has_no_finding() -> None:
    health, stub = Health(), Stub()
    for _ in range(RATES):
        health.count(committed=True, clipped=random.Random(_).random() < 0.05)
    assert looks(health, stub, 200, {"clip_fraction": 0.1, "entropy": 1.0, "zero_variance_groups": 0.3}) == []


TRIPS = [
    ("update_ratio", "warn", {"update_norm": 0.5}),
    ("update_ratio", "act", {"update_norm": 5.0}),
    ("update_ratio", "warn", {"update_norm": 1e-4, "param_norm": 40.0}),
    ("decay_share", "warn", {"update_norm": 3e-3}),
    ("decay_share", "act", {"update_norm": 2e-3}),
    ("lost", "warn", {"lost": 0.3 * N}),
    ("lost", "act", {"lost": 0.6 * N}),
    ("dead", "warn", {"grad_norm": 0.0}),
]


@pytest.mark.parametrize(("indicator", "level", "row"), TRIPS)
def test_a_tensor_s_indicator_trips(indicator: str, level: str, row: dict) -> None:
    stub = Stub()
    stub.rows["w"] |= row
    found = looks(Health(), stub, 5)
    assert (indicator, "w", level) in named(found)
    assert all(finding.means and finding.do for finding in found)


@pytest.mark.parametrize(
    ("indicator", "row"),
    [
        ("update_ratio", {"update_norm": 0.15}),
        ("update_ratio", {"update_norm": 3e-4}),
        ("decay_share", {"update_norm": 5e-3}),
        ("lost", {"lost": 0.15 * N}),
        ("dead", {"grad_norm": 1e-20}),
    ],
)
def test_it_does_not_trip_on_the_healthy_side(indicator: str, row: dict) -> None:
    stub = Stub()
    stub.rows["w"] |= row
    assert indicator not in {finding.indicator for finding in looks(Health(), stub, 5)}


def test_a_tensor_without_any_gradient_is_dead() -> None:
    stub = Stub()
    del stub.rows["b"]
    found = looks(Health(), stub, 2)
    assert found == []
    assert ("dead", "b", "warn") in named(looks(Health(), stub, 3))


def test_the_ratio_is_judged_only_where_it_means_something() -> None:
    loud = {"update_norm": 1.0}
    stub = Stub()
    stub.rows["b"] |= loud
    assert looks(Health(), stub, 5) == []  # vectors may start from zero
    stub.rows["w"] |= loud
    assert looks(Health(), stub, 5, since=10) == []  # and so may LoRA's matrices
    assert named(looks(Health(), stub, 5)) == {("update_ratio", "w", "warn")}


def test_a_small_ratio_is_no_finding_while_the_rate_rises_or_has_fallen() -> None:
    health, stub = Health(), Stub(weight_decay=0.0)
    stub.rows["w"]["update_norm"] = 1e-5
    for i in range(20):
        stub.param_groups[0]["lr"] = RATE * (i + 1) / 20
        assert looks(health, stub, 1, since=200 + 10 * i) == []
    stub.param_groups[0]["lr"] = 0.4 * RATE
    assert looks(health, stub, 5, since=500) == []
    assert looks(Health(), stub, 5, since=500) != []


@pytest.mark.parametrize("factor", [0.3, 1.0, 1.1])
def test_an_update_s_size_within_its_history_is_no_finding(factor: float) -> None:
    health, stub = Health(), Stub(weight_decay=0.0)
    looks(health, stub, 60)
    stub.rows["w"]["update_norm"] *= factor
    assert looks(health, stub, 3, since=2000) == []


@pytest.mark.parametrize(("jump", "level"), [(1.22, "warn"), (2.0, "act")])
def test_an_update_far_above_its_history_is_found(jump: float, level: str) -> None:
    health, stub = Health(), Stub(weight_decay=0.0)
    assert looks(health, stub, 60) == [] and not health.early_warning
    stub.rows["w"]["update_norm"] *= jump
    found = looks(health, stub, 1 if level == "act" else 2, since=2000)
    assert named(found) == {("update_rms", "w", level)}
    assert health.early_warning
    health.count(committed=True, clipped=False)
    assert not health.early_warning


def test_an_update_that_grows_with_its_rate_is_no_finding() -> None:
    health, stub = Health(), Stub(weight_decay=0.0)
    looks(health, stub, 60)
    stub.param_groups[0]["lr"] *= 3
    stub.rows["w"]["update_norm"] *= 3
    stub.rows["b"]["update_norm"] *= 3
    assert looks(health, stub, 3, since=2000) == []


def balanced(b: float) -> Stub:
    """A stub whose balance index is b."""
    stub, kappa = Stub(lr=0.01, weight_decay=0.1), 19.0
    size = 20.0
    stub.rows = {
        "w": {**HEALTHY, "param_norm": size, "update_norm": math.sqrt(2 * 0.1 * 0.01 * size**2 / (kappa * b))}
    }
    stub.rows["b"] = dict(stub.rows["w"])
    return stub


@pytest.mark.parametrize(("b", "trips"), [(0.3, True), (1.0, False), (3.0, True)])
def test_balance_trips_after_two_half_lives_only(b: float, trips: bool) -> None:
    half_life = math.log(2) / (2 * 0.01 * 0.1)
    for since, old in ((1, False), (int(2 * half_life) + 20, True)):
        found = looks(Health(), balanced(b), 5, since=since)
        assert ("balance" in {finding.indicator for finding in found}) == (trips and old)


def test_equilibrium_is_noted_where_weight_decay_cannot_act() -> None:
    stub = Stub(weight_decay=1e-5)
    (finding,) = looks(Health(), stub, 2)
    assert (finding.indicator, finding.where, finding.level) == ("equilibrium", "group 0", "note")
    assert finding.value == pytest.approx(1 / (2 * RATE * 1e-5) / 100_000)
    assert looks(Health(), Stub(weight_decay=0.0), 3) == []


@pytest.mark.parametrize(
    ("norm", "expected"),
    [(1.0, None), (2.1, None), (2.6, ("staleness", "warn")), (6.0, ("staleness", "act")), (0.5, None)],
)
def test_staleness_trips_where_the_gradient_outgrows_the_second_moment(
    norm: float, expected: tuple | None
) -> None:
    health, stub = Health(), Stub()
    stub.rows["w"]["grad_norm"] = norm * math.sqrt(1 / (1 - 0.95**50))
    found = looks(health, stub, 10)
    assert [(f.indicator, f.level) for f in found] == ([expected] if expected else [])
    assert health.early_warning == bool(expected)


@pytest.mark.parametrize(("norm", "trips"), [(0.25, True), (0.4, False)])
def test_a_second_moment_that_fades_is_found_after_some_readings(norm: float, trips: bool) -> None:
    stub = Stub()
    stub.rows["w"]["grad_norm"] = norm * math.sqrt(1 / (1 - 0.95**50))
    assert looks(Health(), stub, 40) == []
    assert [f.indicator for f in looks(Health(), stub, 50)] == ["faded"] * trips


@pytest.mark.parametrize(
    ("facts", "level"),
    [
        ({"clip_fraction": 0.4}, "warn"),
        ({"clip_fraction": 0.7}, "act"),
        ({"zero_variance_groups": 0.8}, "warn"),
        ({"zero_variance_groups": 0.96}, "act"),
        ({"entropy": 0.1}, "warn"),
        ({"entropy": 0.01}, "act"),
    ],
)
def test_a_policy_s_indicator_trips(facts: dict, level: str) -> None:
    health, stub = Health(), Stub()
    assert looks(health, stub, 5, {"entropy": 1.0, "clip_fraction": 0.2, "zero_variance_groups": 0.5}) == []
    found = looks(health, stub, 5, facts)
    assert named(found) == {(next(iter(facts)), RUN, level)}


def counted(skipped: int, clipped: int, of: int = RATES) -> Health:
    health = Health()
    for i in range(of):
        health.count(committed=i >= skipped, clipped=i < skipped + clipped)
    return health


@pytest.mark.parametrize(
    ("health", "expected"),
    [
        (counted(0, 100), None),
        (counted(2, 100), None),
        (counted(3, 100), ("skip_rate", "warn")),
        (counted(11, 100), ("skip_rate", "act")),
        (counted(11, 2, of=20), ("skip_rate", "act")),
        (counted(0, 350), ("clip_rate", "note")),
        (counted(0, 0), ("clip_rate", "note")),
        (counted(0, 0, of=RATES - 1), None),
    ],
)
def test_the_rates_of_clips_and_skips_trip(health: Health, expected: tuple | None) -> None:
    found = looks(health, Stub(), 1)
    assert [(f.indicator, f.level) for f in found] == ([expected] if expected else [])


def test_without_clipping_there_is_no_clip_rate() -> None:
    health = Health()
    for _ in range(RATES):
        health.count(committed=True, clipped=None)
    assert looks(health, Stub(), 1) == []


@pytest.mark.parametrize(("noise", "trips"), [(0.3, True), (2.0, False), (20.0, True)])
def test_the_noise_scale_is_noted_where_the_batch_does_not_fit(noise: float, trips: bool) -> None:
    health, big = Health(), 64.0
    for i in range(60):
        small_square, big_square = 1 + noise * big / 8, 1 + noise * big / big
        health.noise.add(small_square * calm(i), big_square * calm(i + 99), 8.0, big)
    found, _ = health.look(1000, Stub(), 1000, 100_000, batch=big)
    assert [(f.indicator, f.level) for f in found] == [("noise_scale", "note")] * trips


def test_every_indicator_has_been_tripped_here_or_by_the_guard() -> None:
    source = Path(__file__).read_text(encoding="utf-8")
    assert len(TABLE) == len(INDICATORS) >= 18
    assert all(f'"{name}"' in source for name in TABLE.keys() - BY_GUARD)
    guard = Path(__file__).with_name("test_guard.py").read_text(encoding="utf-8")
    assert all(f'"{name}"' in guard for name in BY_GUARD)


# ---------------------------------------------------------------- telling


def test_a_finding_is_told_at_first_and_then_at_every_doubling() -> None:
    stub = Stub()
    stub.rows["w"]["lost"] = 0.6 * N
    health = Health()
    told = [i for i in range(1, 40) if looks(health, stub, 1, since=1000 + 10 * i)]
    assert told == [1, 2, 4, 8, 16, 32]


def test_one_finding_speaks_for_many_tensors_and_names_the_worst() -> None:
    stub = Stub()
    stub.rows["w"]["lost"], stub.rows["b"]["lost"] = 0.9 * N, 60
    (finding,) = looks(Health(), stub, 1)
    assert finding.where == "w and 1 more" and finding.value == 0.9 and finding.limit == 0.5


def test_a_value_must_be_out_so_many_looks_in_a_row() -> None:
    health, stub = Health(), Stub()
    for i in range(12):
        stub.rows["w"]["lost"] = 0.3 * N if i % 2 else 0
        assert looks(health, stub, 1, since=1000 + 10 * i) == []


def test_a_step_that_moved_nothing_is_not_measured() -> None:
    health, stub = Health(), Stub()
    stub.last_verdict.commit = False
    stub.rows["w"]["lost"] = N
    assert health.look(1000, stub, 1000, 2000) == ([], {})
    stub.last_verdict = None
    assert health.look(1010, stub, 1000, 2000) == ([], {})


def test_when_to_look() -> None:
    assert [step for step in range(31) if Health(10).due(step)] == [0, 10, 20, 30]
    assert not any(Health(0).due(step) for step in range(31))


# ---------------------------------------------------------------- with a real optimizer


def trained(steps: int, rule: str = "AdamW", **options: object) -> tuple[nn.Module, steepest.Optimizer]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 4))
    optimizer = getattr(steepest, rule)(model.named_parameters(), lr=1e-2, telemetry=True, **options)
    for _ in range(steps):
        x = torch.randn(32, 64)
        nn.functional.mse_loss(model(x), x[:, :4]).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer


def test_the_values_are_those_of_their_formulas() -> None:
    model, optimizer = trained(20, weight_decay=0.1, betas=(0.9, 0.95))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    x = torch.randn(32, 64)
    nn.functional.mse_loss(model(x), x[:, :4]).backward()
    grads = {name: p.grad.clone() for name, p in model.named_parameters()}
    optimizer.step()
    health = Health()
    health._looks = 9
    _, values = health.look(21, optimizer, 21, 100)
    assert values.keys() == before.keys()
    for name, p in model.named_parameters():
        update, size = float((p.detach() - before[name]).norm()), float(p.detach().norm())
        v = optimizer.state[p]["v"].sum() / (1 - 0.95**21)
        assert values[name]["update_rms"] == pytest.approx(update / (1e-2 * p.numel() ** 0.5), rel=1e-3)
        assert values[name]["update_ratio"] == pytest.approx(update / size, rel=1e-3)
        assert values[name]["decay_share"] == pytest.approx(1e-2 * 0.1 * size / update, rel=1e-3)
        balance = 2 * 0.1 * size**2 / (1e-2 * 19 * (update / 1e-2) ** 2)
        assert values[name]["balance"] == pytest.approx(balance, rel=1e-3)
        assert values[name]["staleness"] == pytest.approx(float(grads[name].norm() / v.sqrt()), rel=1e-4)
        assert values[name]["lost"] == values[name]["dead"] == 0


@pytest.mark.parametrize(
    ("rule", "options", "second", "decay"),
    [
        ("AdamW", {}, True, True),
        ("AdamW", {"state": "int8"}, False, True),
        ("AdamW", {"state": {"v": "bf16"}}, True, True),
        ("Adam", {"weight_decay": 0.1}, True, False),
        ("Lion", {"weight_decay": 0.1}, False, True),
        ("SGD", {"momentum": 0.9}, False, False),
        ("RMSprop", {}, True, False),
        ("Adagrad", {}, False, False),
        ("Adafactor", {}, False, False),
        ("LAMB", {}, True, False),
    ],
)
def test_every_kind_of_rule_can_be_looked_at(rule: str, options: dict, second: bool, decay: bool) -> None:
    model, optimizer = trained(12, rule, **options)
    health = Health()
    for step in range(10):
        _, values = health.look(step, optimizer, step, 100)
    assert values.keys() == dict(model.named_parameters()).keys()
    assert ("staleness" in values["0.weight"]) == second
    assert ("balance" in values["0.weight"]) == decay
    assert all(math.isfinite(x) for row in values.values() for key, x in row.items() if key != "faded")


def test_health_goes_by_name_and_needs_telemetry() -> None:
    model = nn.Linear(2, 2)
    unnamed = steepest.AdamW(model.parameters(), telemetry=True)
    with pytest.raises(SteepestError, match="named_parameters"):
        Health().look(1, unnamed, 1, 10)
    silent = steepest.AdamW(model.named_parameters())
    model(torch.ones(1, 2)).sum().backward()
    silent.step()
    with pytest.raises(SteepestError, match="telemetry"):
        Health().look(1, silent, 1, 10)


# ---------------------------------------------------------------- noise scale


def test_the_noise_scale_of_a_known_distribution_is_found() -> None:
    torch.manual_seed(0)
    mean, spread, small, big = torch.full((50,), 0.3), 2.0, 8, 64
    noise = NoiseScale()
    for _ in range(600):
        samples = mean + spread * torch.randn(big, 50)
        noise.add(square_norm([samples[:small].mean(0)]), square_norm([samples.sum(0)], big), small, big)
    true = 50 * spread**2 / float(mean.square().sum())
    assert noise.ready and noise.value == pytest.approx(true, rel=0.1)


def test_without_a_signal_there_is_no_noise_scale() -> None:
    noise = NoiseScale()
    for _ in range(100):
        noise.add(8.0, 0.5, 1.0, 8.0)
    assert not noise.ready
    for args in (
        (1.0, 1.0, 8.0, 8.0),
        (1.0, 1.0, 0.0, 8.0),
        (math.nan, 1.0, 1.0, 8.0),
        (1.0, math.inf, 1.0, 8.0),
    ):
        before = noise.state()
        noise.add(*args)
        assert noise.state() == before


# ---------------------------------------------------------------- state


NUMBERS = st.floats(min_value=0, allow_nan=False) | st.just(math.nan) | st.just(math.inf)
ROWS = st.lists(
    st.fixed_dictionaries(
        {"g": NUMBERS, "u": NUMBERS, "p": NUMBERS, "lost": st.integers(0, N), "entropy": NUMBERS}
    ),
    max_size=25,
)


def feed(health: Health, rows: list, since: int) -> list[str]:
    stub, out = Stub(), []
    for i, row in enumerate(rows):
        stub.rows["w"] = {
            "grad_norm": row["g"],
            "update_norm": row["u"],
            "param_norm": row["p"],
            "lost": row["lost"],
        }
        health.count(committed=i % 7 != 0, clipped=bool(i % 2))
        health.noise.add(row["g"], row["u"], 1.0, 4.0)
        found, values = health.look(since + i, stub, since + i, 2000, {"entropy": row["entropy"]}, batch=4.0)
        out.append(str(found) + str(values))
    return out


@given(ROWS, ROWS)
@settings(max_examples=50)
def test_nothing_poisons_health_and_what_is_restored_goes_on_bitwise(before: list, after: list) -> None:
    own, other = Health(), Health()
    feed(own, before, 1000)
    other.load(json.loads(json.dumps(own.state(), allow_nan=False)))
    assert feed(own, after, 1100) == feed(other, after, 1100)
    assert json.dumps(own.state(), allow_nan=False) == json.dumps(other.state(), allow_nan=False)


# ---------------------------------------------------------------- the table and its page


@given(st.sampled_from(INDICATORS), st.floats())
def test_a_value_is_judged_by_its_ranges(indicator: object, value: float) -> None:
    found = indicator.judge(value)
    if math.isfinite(value) and not (indicator.warn[0] <= value <= indicator.warn[1]):
        level, limit = found
        finding = indicator.finding(1, RUN, value, limit, level)
        assert limit in indicator.act + indicator.warn and math.isfinite(limit)
        assert finding.means and finding.do and finding.level in ("note", "warn", "act")
    else:
        assert found is None


def test_what_is_acted_on_lies_beyond_what_is_told() -> None:
    for indicator in INDICATORS:
        assert indicator.act[0] <= indicator.warn[0] <= indicator.warn[1] <= indicator.act[1]
        assert indicator.warn != ANY


def limits(low: float, high: float, unit: str) -> str:
    """A range, as the page says when it is left."""
    parts = [f"below {low:g}"] * (low > -math.inf) + [f"above {high:g}{unit}"] * (high < math.inf)
    return " or ".join(parts) or "-"


def test_the_page_s_table_is_the_code_s() -> None:
    page = PAGE.read_text(encoding="utf-8")
    rows = [line for line in page.split("## The guard")[0].splitlines() if line.startswith("| `")]
    expected = []
    for i in INDICATORS:
        unit = " σ" if i.spread else ""
        told = limits(*i.warn, unit) + (" (note)" if i.level == "note" else "")
        expected.append(f"| `{i.name}` | {i.formula} | {told} | {limits(*i.act, unit)} |")
    assert rows == expected
