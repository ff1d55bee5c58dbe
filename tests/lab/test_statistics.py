"""Intervals against scipy.stats and hand computations, Holm's properties, basins."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from steepest.lab.statistics import basin, holm, mean_interval, paired_difference, vertex

losses = st.floats(0.5, 10.0)
samples = st.lists(losses, min_size=2, max_size=12)
p_values = st.lists(st.floats(0.0, 1.0), max_size=12)


def test_interval_by_hand() -> None:
    # mean 2, sd 1, t(0.975; 2) = 4.302653 (any t-table), so half = 4.302653 / sqrt(3).
    estimate = mean_interval([1.0, 2.0, 3.0])
    assert estimate.mean == 2.0
    assert estimate.half_width == pytest.approx(4.302652729911275 / math.sqrt(3), rel=1e-9)
    assert (estimate.low, estimate.high, estimate.n) == (
        pytest.approx(-0.4841377),
        pytest.approx(4.4841377),
        3,
    )


@given(samples)
def test_interval_agrees_with_scipy(values: list[float]) -> None:
    error = stats.sem(values)
    if error < 1e-9:
        return
    low, high = stats.t.interval(0.95, len(values) - 1, loc=sum(values) / len(values), scale=error)
    estimate = mean_interval(values)
    assert estimate.low == pytest.approx(low, rel=1e-9, abs=1e-9)
    assert estimate.high == pytest.approx(high, rel=1e-9, abs=1e-9)


@given(st.lists(st.tuples(losses, losses), min_size=2, max_size=12))
def test_paired_difference_agrees_with_scipy(pairs: list[tuple[float, float]]) -> None:
    ours, theirs = [a for a, _ in pairs], [b for _, b in pairs]
    if stats.sem([a - b for a, b in pairs]) < 1e-6:
        return
    found, peer = paired_difference(ours, theirs), stats.ttest_rel(ours, theirs)
    interval = peer.confidence_interval(0.95)
    assert found.p == pytest.approx(peer.pvalue, rel=1e-7, abs=1e-12)
    assert found.low == pytest.approx(interval.low, rel=1e-7, abs=1e-7)
    assert found.high == pytest.approx(interval.high, rel=1e-7, abs=1e-7)
    assert found.excludes_zero == (found.p < 0.05) or found.p == pytest.approx(0.05, rel=1e-6)


@given(st.lists(st.tuples(losses, losses), min_size=2, max_size=8))
def test_paired_difference_is_antisymmetric(pairs: list[tuple[float, float]]) -> None:
    ours, theirs = [a for a, _ in pairs], [b for _, b in pairs]
    there, back = paired_difference(ours, theirs), paired_difference(theirs, ours)
    assert there.mean == pytest.approx(-back.mean, abs=1e-12)
    assert there.p == pytest.approx(back.p)


def test_pairing_removes_what_the_seeds_share() -> None:
    seeds = [0.0, 0.5, -0.4, 0.3, -0.2]
    ours = [2.0 + s + e for s, e in zip(seeds, (0.001, -0.001, 0.0, 0.002, -0.002), strict=True)]
    found = paired_difference(ours, [2.02 + s for s in seeds])
    assert found.mean == pytest.approx(-0.02)
    assert found.excludes_zero
    assert found.p is not None and found.p < 1e-4


def test_one_value_has_no_interval() -> None:
    estimate, difference = mean_interval([2.5]), paired_difference([2.5], [2.0])
    assert (estimate.mean, estimate.low, estimate.high, estimate.half_width, estimate.n) == (
        2.5,
        None,
        None,
        None,
        1,
    )
    assert (difference.mean, difference.p, difference.excludes_zero) == (0.5, None, False)


def test_differences_without_spread() -> None:
    assert paired_difference([2.0, 3.0], [2.0, 3.0]).p == 1.0
    constant = paired_difference([2.5, 3.5], [2.0, 3.0])
    assert (constant.p, constant.low, constant.high) == (0.0, 0.5, 0.5)


@pytest.mark.parametrize("bad", [[], [1.0, math.nan], [math.inf]])
def test_no_values_or_not_finite(bad: list[float]) -> None:
    with pytest.raises(ValueError, match="finite"):
        mean_interval(bad)


def test_pairs_must_match() -> None:
    with pytest.raises(ValueError, match="differ in number"):
        paired_difference([1.0], [1.0, 2.0])


def test_holm_by_hand() -> None:
    # Sorted: .005*4=.02, .01*3=.03, .03*2=.06, .04*1=.04 raised to .06.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []
    assert holm([0.9, 0.8]) == [1.0, 1.0]


@given(p_values)
def test_holm_is_monotone_and_never_below_the_raw(raw: list[float]) -> None:
    adjusted = holm(raw)
    assert all(p <= q <= 1.0 for p, q in zip(raw, adjusted, strict=True))
    by_raw = [q for _, q in sorted(zip(raw, adjusted, strict=True))]
    assert by_raw == sorted(by_raw)
    assert all(q <= min(1.0, len(raw) * p) for p, q in zip(raw, adjusted, strict=True) if p == min(raw))


@given(p_values, st.randoms())
def test_holm_does_not_depend_on_order(raw: list[float], rng: random.Random) -> None:
    order = list(range(len(raw)))
    rng.shuffle(order)
    assert holm([raw[i] for i in order]) == [holm(raw)[i] for i in order]


@given(p_values)
def test_holm_rejects_exactly_what_step_down_rejects(raw: list[float]) -> None:
    rejected = set()
    for rank, index in enumerate(sorted(range(len(raw)), key=raw.__getitem__)):
        if raw[index] * (len(raw) - rank) >= 0.05:
            break
        rejected.add(index)
    assert {i for i, q in enumerate(holm(raw)) if q < 0.05} == rejected


def parabola(lr: float, centre: float, curvature: float = 0.02) -> float:
    return 2.0 + curvature * math.log2(lr / centre) ** 2


@given(st.floats(1e-4, 1e-1), st.floats(-0.49, 0.49))
def test_vertex_of_a_parabola_is_exact(centre: float, off: float) -> None:
    grid = [centre * 2 ** (off + k) for k in range(-2, 3)]
    found = vertex({lr: parabola(lr, centre) for lr in grid})
    assert found == pytest.approx(centre, rel=1e-6)


@given(st.lists(losses, min_size=1, max_size=7), st.floats(0.001, 0.5))
def test_basin_holds_the_best_and_stays_in_the_grid(values: list[float], tolerance: float) -> None:
    points: dict[float, float | None] = {1e-3 * 2**k: loss for k, loss in enumerate(values)}
    found = basin(points, tolerance)
    best = min(points, key=lambda lr: (points[lr], lr))
    assert found is not None
    assert min(points) * 0.999 <= found.low <= best <= found.high <= max(points) * 1.001
    wider = basin(points, tolerance * 2)
    assert wider is not None and wider.factor >= found.factor * 0.999
    middle = vertex(points)
    if middle is not None:
        assert best / 2.001 <= middle <= best * 2.001


def test_basin_by_hand() -> None:
    # 0.01 above 2.00 is a quarter of the way to 2.04, in log lr, on both sides: 2 ** (1/4 + 1/4).
    found = basin({1e-3: 2.04, 2e-3: 2.00, 4e-3: 2.04})
    assert found is not None
    assert found.factor == pytest.approx(math.sqrt(2))
    assert not found.open_low and not found.open_high


def test_basin_ends_at_a_diverged_rate_and_is_open_at_the_grids_end() -> None:
    found = basin({1e-3: 2.005, 2e-3: 2.0, 4e-3: 2.002, 8e-3: None})
    assert found is not None
    assert (found.low, found.high, found.open_low, found.open_high) == (1e-3, 4e-3, True, False)
    assert found.factor == pytest.approx(4)


def test_nothing_finished_has_no_basin() -> None:
    assert basin({1e-3: None}) is None
    assert basin({}) is None


@pytest.mark.parametrize(
    "points",
    [{1e-3: 2.0, 2e-3: 2.1, 4e-3: 2.3}, {1e-3: 2.1, 2e-3: 2.0, 4e-3: None}, {1e-3: 2.0}, {}],
)
def test_no_vertex_without_two_finished_neighbours(points: dict[float, float | None]) -> None:
    assert vertex(points) is None


def test_vertex_of_a_flat_line_is_its_best_rate() -> None:
    assert vertex({1e-3: 2.0, 2e-3: 2.0, 4e-3: 2.0}) is None
    assert vertex({5e-4: 2.1, 1e-3: 2.0, 2e-3: 2.0, 4e-3: 2.0}) == pytest.approx(math.sqrt(2e-6), rel=0.01)
