"""What every schedule shares: warm-up, the hold past the end, checked fields, the config form."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import KW_ONLY, asdict, dataclass, fields
from typing import Any, ClassVar

from steepest.contract import SteepestError

Kind = tuple[type, float, float]
RANGES: dict[str, Kind] = {
    "peak": (float, 0, math.inf),
    "steps": (int, 1, math.inf),
    "warmup": (int, 0, math.inf),
    "final": (float, 0, math.inf),
    "start": (float, 0, 1),
    "cooldown": (float, 0, 1),
    "rise": (float, 0, 1),
    "power": (float, 0, math.inf),
    "period": (int, 1, math.inf),
    "multiplier": (int, 1, math.inf),
    "timescale": (int, 1, math.inf),
}
"""Field name to its type and closed range; a field means the same in every shape that has it."""


@dataclass(frozen=True)
class Schedule(ABC):
    """A number for every step of a run: a frozen value, and a pure function of the committed step.

    `schedule(step)` takes the number of steps committed so far (0 for the first step) and returns the
    value for the next one. With `w = warmup` and `n = steps`:

    - `step < w`: linear warm-up, `(step + 1) / w` of the value the shape starts from, so the first step
      already moves and step `w - 1` has the full value;
    - `w <= step <= n`: the shape, over `done = step - w` of `n - w` steps. It starts at `step == w` and
      arrives at `step == n`, one past the last step of the run: no step is spent at a rate of zero;
    - `step > n`: the value of `step == n` holds.

    peak:   the value the fractions below are of, in the unit of the hyperparameter.
    steps:  length of the run, warm-up included.
    warmup: steps of linear warm-up.
    final:  (where a shape has it) the value at the end as a fraction of the peak. It may exceed 1: a
            weight decay or a beta can rise.

    Raises SteepestError for a field out of range or of the wrong type.
    """

    name: ClassVar[str]

    peak: float
    steps: int
    _: KW_ONLY
    warmup: int = 0

    def __post_init__(self) -> None:
        for field in fields(self):
            if field.name in RANGES:
                self._check(field.name, getattr(self, field.name), optional=field.default is None)
        if self.warmup > self.steps:
            raise self._error(f"warmup={self.warmup} is longer than the run; lower it to steps={self.steps}")

    def __call__(self, step: int) -> float:
        if step < 0:
            raise self._error(f"there is no step {step}; the first step is 0")
        if step < self.warmup:
            return self.peak * self.factor(0) * ((step + 1) / self.warmup)
        return self.peak * self.factor(min(step, self.steps) - self.warmup)

    @property
    def length(self) -> int:
        """Steps after the warm-up."""
        return self.steps - self.warmup

    @abstractmethod
    def factor(self, done: int) -> float:
        """The fraction of the peak after `done` of `length` steps, warm-up excluded."""

    def to_config(self) -> dict[str, Any]:
        """Numbers and strings only, ready for JSON: `{"name": "cosine", "peak": ..., "steps": ..., ...}`."""
        return {"name": self.name, **asdict(self)}

    def _error(self, what: str) -> SteepestError:
        return SteepestError(f"{self.name} schedule: {what}.")

    def _check(self, name: str, value: Any, optional: bool) -> None:
        if value is None and optional:
            return
        kind, low, high = RANGES[name]
        allowed = (int,) if kind is int else (int, float)
        if isinstance(value, bool) or not isinstance(value, allowed):
            noun = "a whole number" if kind is int else "a number"
            raise self._error(f"{name} must be {noun}, got {value!r}")
        if not (low <= value <= high and math.isfinite(value)):
            bound = f"{low:g} or more" if high == math.inf else f"between {low:g} and {high:g}"
            raise self._error(f"{name}={value!r} must be finite and {bound}")


def progress(done: float, length: float) -> float:
    """Fraction of the way from 0 to 1; a stretch of no length is already over."""
    return done / length if length else 1.0


def mix(start: float, end: float, x: float) -> float:
    """`start` at x = 1, `end` at x = 0: exact at both ends for start = 1."""
    return end + (start - end) * x


def half_cosine(x: float) -> float:
    """From 1 at x = 0 to 0 at x = 1."""
    return 0.5 * (1.0 + math.cos(math.pi * x))
