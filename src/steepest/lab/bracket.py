"""Where to look next: a learning rate's bracket, grown until its best point lies inside."""

from __future__ import annotations

from collections.abc import Mapping

from steepest.lab.question import LARGEST_GRID, START


def wanted(losses: Mapping[int, float | None]) -> list[int]:
    """Grid points to run next, given those that have finished (None where the trial diverged).

    First all starting points. Then, as long as the best one lies on an edge, the point beyond it; if
    everything diverged, the point below. Empty when the best point is interior, or the grid is as
    large as it may become. Depends on finished trials alone, so any order of running gives one grid.
    """
    missing = [k for k in START if k not in losses]
    if missing:
        return missing
    low, high = min(losses), max(losses)
    if len(losses) >= LARGEST_GRID:
        return []
    best = best_point(losses)
    if best is None or best == low:
        return [low - 1]
    return [high + 1] if best == high else []


def best_point(losses: Mapping[int, float | None]) -> int | None:
    """The grid point of the lowest loss, the smaller rate where two are equal; None if all diverged."""
    finished = [(loss, k) for k, loss in losses.items() if loss is not None]
    return min(finished)[1] if finished else None
