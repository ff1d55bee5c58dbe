"""The statistics of a comparison: intervals, paired differences, Holm's correction, basins.

Everything is a pure function of plain numbers. Intervals and p-values are Student's t, two-sided;
one value has a mean but no interval, and the result says so with `None`.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

CONFIDENCE = 0.95
TOLERANCE = 0.01
"""Nats above the best loss that still count as inside the learning-rate basin."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over `n` values and its interval; `low` and `high` are None when one value allows none."""

    mean: float
    low: float | None
    high: float | None
    n: int

    @property
    def half_width(self) -> float | None:
        """Half the interval's width, the number after the plus-minus sign."""
        return None if self.low is None or self.high is None else (self.high - self.low) / 2


@dataclass(frozen=True, slots=True)
class Difference(Estimate):
    """A mean paired difference, its interval, and the two-sided p of "the true mean is zero"."""

    p: float | None

    @property
    def excludes_zero(self) -> bool:
        """Whether the whole interval lies on one side of zero."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


@dataclass(frozen=True, slots=True)
class Basin:
    """The learning rates whose loss lies within `tolerance` nats of the best.

    `open_low` and `open_high` say that the basin reaches the end of the tried rates, so that its
    true width is at least `factor`.
    """

    low: float
    high: float
    open_low: bool
    open_high: bool
    tolerance: float

    @property
    def factor(self) -> float:
        """Width as a ratio of rates: 8 means that the rate may be misset eightfold, end to end."""
        return self.high / self.low


def mean_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> Estimate:
    """Mean and t-interval of independent values. Raises ValueError on no values or a non-finite one."""
    mean, spread = _mean_and_error(values)
    half = _half_width(spread, len(values), confidence)
    if half is None:
        return Estimate(mean, None, None, len(values))
    return Estimate(mean, mean - half, mean + half, len(values))


def proportion_interval(share: float, n: int, confidence: float = CONFIDENCE) -> Estimate:
    """A share of `n` independent yes-or-no outcomes with Wilson's interval (J. Am. Stat. Assoc. 22, 1927),
    which holds near 0 and 1 too. Raises ValueError for a share outside [0, 1] or no outcomes."""
    if not 0 <= share <= 1 or n < 1:
        raise ValueError(f"{share} of {n} is no share")
    z = statistics.NormalDist().inv_cdf((1 + confidence) / 2)
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    low, high = 0.0 if share == 0 else centre - half, 1.0 if share == 1 else centre + half
    return Estimate(share, low, high, n)


def paired_difference(
    ours: Sequence[float], theirs: Sequence[float], confidence: float = CONFIDENCE
) -> Difference:
    """Mean of `ours - theirs`, pair by pair, with its t-interval and p.

    Pairs share a seed (initial weights, data order), so that what the seed does to both cancels.
    Differences that are all the same have no spread: p is 1 if they are zero, else 0.
    """
    if len(ours) != len(theirs):
        raise ValueError(f"paired values differ in number: {len(ours)} and {len(theirs)}")
    pairs = [a - b for a, b in zip(ours, theirs, strict=True)]
    mean, error = _mean_and_error(pairs)
    half = _half_width(error, len(pairs), confidence)
    if half is None or error is None:
        return Difference(mean, None, None, len(pairs), None)
    if error == 0:
        p = 1.0 if mean == 0 else 0.0
    else:
        from scipy.special import stdtr

        p = float(2 * stdtr(len(pairs) - 1, -abs(mean / error)))
    return Difference(mean, mean - half, mean + half, len(pairs), p)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction, in the order given (Holm 1979, Scand. J. Statist. 6:65).

    The smallest of m p-values is multiplied by m, the next by m - 1, and so on; each adjusted value
    is at least the one before it, and at most 1.
    """
    adjusted = [0.0] * len(p_values)
    floor = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        floor = max(floor, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = floor
    return adjusted


def basin(losses: Mapping[float, float | None], tolerance: float = TOLERANCE) -> Basin | None:
    """The basin of `lr -> loss` (None: diverged) around its best rate; None if nothing finished.

    Between two finished rates the edge is interpolated in log lr. The loss is convex there, so the
    straight line lies above it and the width errs to the narrow side. Towards a diverged rate the
    basin ends at the last one that finished.
    """
    finished = [lr for lr, loss in losses.items() if loss is not None]
    if not finished:
        return None
    rates = sorted(losses)
    best = min(sorted(finished), key=lambda lr: _loss(losses, lr))
    at = rates.index(best)
    low, open_low = _edge(losses, rates[at::-1], tolerance)
    high, open_high = _edge(losses, rates[at:], tolerance)
    return Basin(low, high, open_low, open_high, tolerance)


def vertex(losses: Mapping[float, float | None]) -> float | None:
    """The rate at the bottom of the parabola in log lr through the best rate and its neighbours.

    None unless the best has a finished neighbour on both sides. It always lies between them.
    """
    finished = sorted(lr for lr, loss in losses.items() if loss is not None)
    if len(finished) < 3:
        return None
    best = min(finished, key=lambda lr: _loss(losses, lr))
    rates = sorted(losses)
    at = rates.index(best)
    near = rates[at - 1 : at + 2] if at > 0 else []
    if len(near) < 3 or any(losses[lr] is None for lr in near):
        return None
    (x0, x1, x2), (y0, y1, y2) = map(math.log, near), (_loss(losses, lr) for lr in near)
    left, right = (y0 - y1) * (x2 - x1), (y2 - y1) * (x1 - x0)
    if left + right <= 0:
        return best
    return math.exp(x1 + (left * (x2 - x1) - right * (x1 - x0)) / (2 * (left + right)))


def _mean_and_error(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and standard error of the mean (None for one value)."""
    n = len(values)
    if n == 0 or not all(math.isfinite(value) for value in values):
        raise ValueError(f"need at least one value, all finite; got {list(values)}")
    if min(values) == max(values):
        return values[0], 0.0 if n > 1 else None
    mean = math.fsum(values) / n
    variance = math.fsum((value - mean) ** 2 for value in values) / (n - 1)
    return mean, math.sqrt(variance / n)


def _half_width(error: float | None, n: int, confidence: float) -> float | None:
    if error is None:
        return None
    from scipy.special import stdtrit

    return float(stdtrit(n - 1, 0.5 + confidence / 2)) * error


def _edge(
    losses: Mapping[float, float | None], path: Sequence[float], tolerance: float
) -> tuple[float, bool]:
    """Walk from the best rate along `path`: where the loss leaves the basin, and whether it never does."""
    limit = _loss(losses, path[0]) + tolerance
    for here, there in pairwise(path):
        loss = losses[there]
        if loss is None:
            return here, False
        if loss > limit:
            share = (limit - _loss(losses, here)) / (loss - _loss(losses, here))
            return math.exp(math.log(here) + share * math.log(there / here)), False
    return path[-1], True


def _loss(losses: Mapping[float, float | None], lr: float) -> float:
    loss = losses[lr]
    assert loss is not None
    return loss
