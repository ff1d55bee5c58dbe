"""What a series of numbers has been like: the memory behind "far above its own history"; norms to fill it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

LARGE = 1e100
"""Counts for every larger number; squares stay finite, and no float32 is larger."""


@dataclass(slots=True)
class Spread:
    """A mean and a variance of `count` values. A deviation below `floor` times the mean counts as that: a
    series that hardly moves does not make every move a spike."""

    floor: float = 0.01
    count: int = 0
    mean: float = 0.0
    variance: float = 0.0

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


@dataclass(slots=True)
class Window(Spread):
    """Of the last `size` values. One that is not finite never enters."""

    size: int = 128
    values: list[float] = field(default_factory=list)

    def add(self, value: float) -> None:
        if math.isfinite(value):
            self.load([*self.values, bounded(value)])

    def state(self) -> list[float]:
        return self.values

    def load(self, state: Sequence[float]) -> None:
        self.values = list(state[-self.size :])
        self.count = n = len(self.values)
        self.mean = sum(self.values) / max(n, 1)
        self.variance = math.dist(self.values, [self.mean] * n) ** 2 / max(n, 1)


@dataclass(slots=True)
class History(Spread):
    """Of about the last `size` values, as moving averages of three numbers; plain ones until they fill. One
    that is not finite never enters."""

    size: int = 128

    def add(self, value: float) -> None:
        if not math.isfinite(value):
            return
        self.count += 1
        weight = max(1 / self.count, 2 / (self.size + 1))
        away = bounded(value) - self.mean
        self.mean += weight * away
        self.variance = (1 - weight) * (self.variance + weight * away * away)

    def state(self) -> list[float]:
        return [self.count, self.mean, self.variance]

    def load(self, state: Sequence[float]) -> None:
        self.count, self.mean, self.variance = int(state[0]), state[1], state[2]


def bounded(value: float) -> float:
    """A finite number, not larger than LARGE."""
    return min(max(value, -LARGE), LARGE)


@torch.no_grad()
def norms(tensors: Sequence[Tensor], order: int = 2) -> list[float]:
    """The norm of every tensor, summed in float32 at least; one synchronization for all of a device."""
    wide = torch.float64 if any(x.dtype == torch.float64 for x in tensors) else torch.float32
    return torch.stack([n.double() for n in torch._foreach_norm(list(tensors), order, wide)]).tolist()
