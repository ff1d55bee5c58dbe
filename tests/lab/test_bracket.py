"""The grid of learning rates: where it grows, where it stops, and that order does not matter."""

from __future__ import annotations

from hypothesis import assume, given
from hypothesis import strategies as st

from steepest.lab.bracket import best_point, wanted
from steepest.lab.question import LARGEST_GRID, START

REACH = range(-LARGEST_GRID - 2, LARGEST_GRID + 3)
losses = st.one_of(st.none(), st.floats(0, 20), st.integers(0, 3).map(float))
landscapes = st.fixed_dictionaries(dict.fromkeys(REACH, losses))
"""What every grid point would come to; None where it diverges. Ties are frequent."""


def search(landscape: dict[int, float | None], pick: int = 0) -> dict[int, float | None]:
    """Run what is wanted, one point at a time, until nothing is."""
    found: dict[int, float | None] = {}
    while points := wanted(found):
        k = points[pick % len(points)]
        assert k not in found, "a point is never wanted twice"
        found[k] = landscape[k]
    return found


@given(landscapes)
def test_the_best_point_is_interior_or_the_grid_is_full(landscape: dict[int, float | None]) -> None:
    found = search(landscape)
    assert sorted(found) == list(range(min(found), max(found) + 1)), "no holes"
    assert set(START) <= set(found)
    assert len(found) <= LARGEST_GRID
    best = best_point(found)
    if len(found) < LARGEST_GRID:
        assert best is not None and min(found) < best < max(found)
    if best is not None:
        loss = found[best]
        assert loss is not None
        assert all(other is None or loss <= other for other in found.values())


@given(landscapes, st.integers(0, 5))
def test_the_grid_does_not_depend_on_the_order_of_running(
    landscape: dict[int, float | None], pick: int
) -> None:
    assert search(landscape, pick) == search(landscape)


@given(st.integers(-3, 3))
def test_a_basin_is_bracketed_in_as_few_points_as_it_takes(bottom: int) -> None:
    found = search({k: float(abs(k - bottom)) for k in REACH})
    assert best_point(found) == bottom
    assert min(found) == min(-1, bottom - 1) and max(found) == max(1, bottom + 1)


@given(st.integers(-4, 0))
def test_diverged_points_bound_the_grid_above(wall: int) -> None:
    """Loss falls towards the wall and everything from the wall on diverges."""
    found = search({k: None if k >= wall else float(-k + 10) for k in REACH})
    assert best_point(found) == wall - 1
    assert max(found) == max(wall, max(START)), "nothing beyond the first wall is tried"


def test_where_all_diverges_the_grid_goes_down_until_it_is_full() -> None:
    found = search(dict.fromkeys(REACH))
    assert sorted(found) == list(range(max(START) - LARGEST_GRID + 1, max(START) + 1))
    assert best_point(found) is None


@given(st.dictionaries(st.sampled_from(list(REACH)), st.floats(0, 20), min_size=2))
def test_of_equal_losses_the_smaller_rate_is_best(found: dict[int, float]) -> None:
    level = dict.fromkeys(found, 1.0)
    assume(len(level) > 1)
    assert best_point(level) == min(level)
