"""What a series of numbers has been like: the memory behind "far above its own history"."""

from __future__ import annotations

import math
from dataclasses import dataclass

LARGE = 1e100
"""Counts for every larger number; squares stay finite, and no float32 is larger."""


@dataclass(slots=True)
class History:
    """Mean and variance of about the last `window` values, as moving averages; plain ones until they fill.

    A value that is not finite never enters. A deviation below `floor` times the mean counts as that: a
    series that hardly moves does not make every move a spike.
    """

    window: int
    floor: float = 0.01
    count: int = 0
    mean: float = 0.0
    variance: float = 0.0

    def add(self, value: float) -> None:
        if not math.isfinite(value):
            return
        self.count += 1
        weight = max(1 / self.count, 2 / (self.window + 1))
        away = min(max(value, -LARGE), LARGE) - self.mean
        self.mean += weight * away
        self.variance = (1 - weight) * (self.variance + weight * away * away)

    @property
    def deviation(self) -> float:
        """The standard deviation, not below its floor."""
        return max(math.sqrt(self.variance), self.floor * abs(self.mean), 1e-30)

    def limit(self, sigmas: float) -> float:
        """The value that lies so many standard deviations above the mean."""
        return self.mean + sigmas * self.deviation

    def sigmas(self, value: float) -> float:
        """How many standard deviations `value` lies above the mean; NaN for one that is not finite."""
        return (value - self.mean) / self.deviation if math.isfinite(value) else math.nan

    def state(self) -> list[float]:
        return [self.count, self.mean, self.variance]

    def load(self, state: list[float]) -> None:
        count, self.mean, self.variance = state
        self.count = int(count)
