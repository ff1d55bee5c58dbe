"""The shapes. Each is a formula from the steps done after warm-up to a fraction of the peak."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from steepest.contract import unknown
from steepest.schedules.schedule import Schedule, half_cosine, mix, progress


@dataclass(frozen=True)
class Constant(Schedule):
    """The peak, throughout."""

    name: ClassVar[str] = "constant"

    def factor(self, done: int) -> float:
        return 1.0


@dataclass(frozen=True, kw_only=True)
class Linear(Schedule):
    """A straight line from the peak to `final`."""

    name: ClassVar[str] = "linear"
    final: float = 0.0

    def factor(self, done: int) -> float:
        return mix(1.0, self.final, 1.0 - progress(done, self.length))


@dataclass(frozen=True, kw_only=True)
class Cosine(Schedule):
    """Half a cosine from the peak to `final` (arXiv:1608.03983, one cycle)."""

    name: ClassVar[str] = "cosine"
    final: float = 0.0

    def factor(self, done: int) -> float:
        return mix(1.0, self.final, half_cosine(progress(done, self.length)))


COOLDOWNS: dict[str, Callable[[float], float]] = {
    "linear": lambda x: 1.0 - x,
    "sqrt": lambda x: 1.0 - math.sqrt(x),
    "cosine": half_cosine,
}
"""From 1 at the start of the cooldown to 0 at its end."""


@dataclass(frozen=True, kw_only=True)
class WSD(Schedule):
    """Warm-up, stable, decay: the peak, then a cooldown to `final` (arXiv:2404.06395, arXiv:2405.18392).

    cooldown: its length as a fraction of all `steps`, rounded to whole steps.
    shape:    "linear", "sqrt" (1 - sqrt(x), the steepest at first) or "cosine".
    """

    name: ClassVar[str] = "wsd"
    final: float = 0.0
    cooldown: float = 0.2
    shape: str = "linear"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.shape not in COOLDOWNS:
            raise unknown("cooldown shape", self.shape, COOLDOWNS)
        if self.cooldown_steps > self.length:
            raise self._error(
                f"{self.warmup} steps of warm-up and {self.cooldown_steps} of cooldown do not fit in "
                f"{self.steps}; shorten one"
            )

    @property
    def cooldown_steps(self) -> int:
        """Steps of cooldown, at the end of the run."""
        return round(self.cooldown * self.steps)

    def factor(self, done: int) -> float:
        cooled = done - (self.length - self.cooldown_steps)
        if cooled < 0:
            return 1.0
        return mix(1.0, self.final, COOLDOWNS[self.shape](progress(cooled, self.cooldown_steps)))


@dataclass(frozen=True, kw_only=True)
class InverseSqrt(Schedule):
    """sqrt(timescale / (timescale + done)): halves every time the run is four times as long.

    timescale: steps; the warm-up's length if not given (which is Noam's schedule, arXiv:1706.03762),
               or 10,000 without a warm-up.
    """

    name: ClassVar[str] = "inverse_sqrt"
    timescale: int | None = None

    def factor(self, done: int) -> float:
        scale = self.timescale or self.warmup or 10_000
        return math.sqrt(scale / (scale + done))


@dataclass(frozen=True, kw_only=True)
class Polynomial(Schedule):
    """(1 - x) ** power from the peak to `final`; power 1 is `linear`."""

    name: ClassVar[str] = "polynomial"
    final: float = 0.0
    power: float = 1.0

    def factor(self, done: int) -> float:
        x = progress(done, self.length)
        return mix(1.0, self.final, (1.0 - x) ** self.power if x < 1.0 else 0.0)


@dataclass(frozen=True, kw_only=True)
class OneCycle(Schedule):
    """A cosine up from `start` to the peak, then a cosine down to `final` (arXiv:1708.07120, torch's form).

    rise:  the fraction of the steps, after any warm-up, that climb.
    start: the first value as a fraction of the peak; a warm-up leads to it, not to the peak.
    """

    name: ClassVar[str] = "one_cycle"
    final: float = 1 / 250_000
    start: float = 1 / 25
    rise: float = 0.3

    def factor(self, done: int) -> float:
        top = self.rise * self.length
        if done < top:
            return mix(self.start, 1.0, half_cosine(done / top))
        return mix(1.0, self.final, half_cosine(progress(done - top, self.length - top)))


@dataclass(frozen=True, kw_only=True)
class CosineRestarts(Schedule):
    """Cosines from the peak to `final`, one after another (SGDR, arXiv:1608.03983).

    period:     steps of the first cycle; a quarter of the steps after warm-up if not given.
    multiplier: each cycle is this many times as long as the one before.

    The end of the run closes a cycle, it never opens one: what holds past the end is not a restart.
    """

    name: ClassVar[str] = "cosine_restarts"
    final: float = 0.0
    period: int | None = None
    multiplier: int = 1

    def factor(self, done: int) -> float:
        position, period = done, self.period or math.ceil(self.length / 4) or 1
        if self.multiplier == 1:
            position %= period
        else:
            while position >= period:
                position -= period
                period *= self.multiplier
        closing = position == 0 and done == self.length
        return mix(1.0, self.final, 0.0 if closing else half_cosine(position / period))
