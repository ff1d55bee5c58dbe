"""Controllers: numbers of the recipe that follow what is measured, within bounds.

Each is a pure function of the signals it was given, holds its state as plain numbers, and stands still where
a signal is not finite or impossible. All are opt-in.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import Field

from steepest.contract import Schedule, SteepestError, unknown
from steepest.training.indicators import TABLE, Finding
from steepest.training.stage_config import Frozen


class KlRateConfig(Frozen):
    """kl: KL(old || new) an update is meant to have.  clip_fraction: what divides much clipping from little.
    updates: how many are averaged for one decision.  low: least share of the schedule's rate."""

    kl: float = Field(default=0.008, gt=0)
    clip_fraction: float = Field(default=0.1, gt=0, lt=1)
    updates: int = Field(default=4, ge=4)
    low: float = Field(default=0.1, gt=0, le=1)


class KlCoefficientConfig(Frozen):
    """start: the first coefficient.  kl: KL(policy || reference) it is meant to hold.  horizon: samples in
    which it can change by a fifth."""

    start: float = Field(default=0.2, gt=0)
    kl: float = Field(default=6.0, gt=0)
    horizon: int = Field(default=10_000, ge=1)


class HoldConfig(Frozen):
    """on: indicators whose findings hold the rate where it is for `steps` steps; within warm-up, that makes
    it longer.  cool: indicators whose findings begin a cooldown of `cool_steps` to `final` of the rate.
    level: the least that a finding must have."""

    on: tuple[str, ...] = ("update_norm_spike", "update_rms", "staleness")
    cool: tuple[str, ...] = ()
    level: str = "act"
    steps: int = Field(default=50, ge=1)
    cool_steps: int = Field(default=200, ge=1)
    final: float = Field(default=0.1, ge=0, le=1)

    def model_post_init(self, _: Any) -> None:
        for name in (*self.on, *self.cool):
            if name not in TABLE:
                raise unknown("indicator", name, TABLE)
        if self.level not in LEVELS:
            raise unknown("level", self.level, LEVELS)


LEVELS = ("note", "warn", "act")


class ControllerConfig(Frozen):
    """The controllers of a stage: the rate by KL, the KL coefficient, the schedule by findings."""

    rate: KlRateConfig | None = None
    kl: KlCoefficientConfig | None = None
    hold: HoldConfig | None = None


class KlRate:
    """The learning rate of a policy gradient, led by how far an update moves the policy.

    Two signals must agree: a KL above its target and much clipping lower the rate, a KL below it and little
    clipping raise it, otherwise it stays. KL grows with the square of the rate, hence the root; a decision
    changes it by 1.5 at most, and only `updates` signals later there is another, for older ones were made
    at another rate. `factor`, within [low, 1], multiplies the schedule's rate, which must be constant after
    warm-up: a rate has one owner.
    """

    def __init__(self, config: KlRateConfig, schedule: Schedule, steps: int) -> None:
        after = getattr(schedule, "warmup", 0)
        sampled = {schedule(after + (steps - after) * i // 64) for i in range(64)}
        if after < steps and len(sampled) > 1:
            raise SteepestError(
                "the learning rate has two owners: its schedule moves it after warm-up, and controller.rate "
                "does; say schedule: {name: constant}, or leave the controller out."
            )
        self.config, self.factor = config, 1.0
        self.frozen = ""
        self._kl, self._clipped, self._count = 0.0, 0.0, 0

    def update(self, kl: float, clip_fraction: float) -> float:
        """Take in one update's signals; the factor from the next one on.

        A signal that is not finite, or negative, is left out, and `frozen` says so.
        """
        self.frozen = ""
        for name, signal in (("KL", kl), ("clip fraction", clip_fraction)):
            if not (math.isfinite(signal) and signal >= 0):
                self.frozen = f"the {name} is {signal:g}: the learning rate stays"
                return self.factor
        self._count += 1
        self._kl += (kl - self._kl) / self._count
        self._clipped += (clip_fraction - self._clipped) / self._count
        if self._count < self.config.updates:
            return self.factor
        wish = math.sqrt(self.config.kl / self._kl) if self._kl > 0 else math.inf
        much = self._clipped > self.config.clip_fraction
        if (wish < 1) == much:
            change = min(max(wish, 1 / 1.5), 1.5)
            self.factor = min(max(self.factor * change, self.config.low), 1.0)
        self._kl, self._clipped, self._count = 0.0, 0.0, 0
        return self.factor

    def state(self) -> dict[str, float]:
        return {"factor": self.factor, "kl": self._kl, "clipped": self._clipped, "count": self._count}

    def load(self, state: Mapping[str, float]) -> None:
        self.factor, self._kl, self._clipped = state["factor"], state["kl"], state["clipped"]
        self._count = int(state["count"])


class KlCoefficient:
    """The weight of KL(policy || reference), led to a target KL (arXiv:1909.08593, section 2.2)."""

    def __init__(self, config: KlCoefficientConfig) -> None:
        self.config, self.value = config, config.start

    def update(self, kl: float, samples: int) -> float:
        """Take in the KL of so many samples; the coefficient from now on. One that is not finite, or
        negative, changes nothing."""
        if math.isfinite(kl) and kl >= 0:
            error = min(max(kl / self.config.kl - 1, -0.2), 0.2)
            self.value *= 1 + error * min(samples / self.config.horizon, 1.0)
        return self.value

    def state(self) -> dict[str, float]:
        return {"value": self.value}

    def load(self, state: Mapping[str, float]) -> None:
        self.value = state["value"]


class Held:
    """A schedule that may be held, cooled down or scaled while it runs.

    A decision made after `step` committed steps counts from step + 1 on, for the rate of the next step is set
    already. It is written down, so that this remains a function of the committed step, before and after it:
    a run continued from any checkpoint goes on the same way.

    holds:    (step, steps): the schedule's clock stands still for so many steps.
    cooldown: (step, steps, final): the rate falls in a straight line to `final` of what it was, and stays.
    scales:   (step, factor): the rate is multiplied by this, until the next one.
    """

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        self.holds: list[tuple[int, int]] = []
        self.cooldown: tuple[int, int, float] | None = None
        self.scales: list[tuple[int, float]] = []

    def __call__(self, step: int) -> float:
        scale = next((factor for since, factor in reversed(self.scales) if since < step), 1.0)
        if self.cooldown is None or step <= self.cooldown[0]:
            return scale * self.schedule(self.clock(step))
        since, steps, final = self.cooldown
        left = max(0.0, 1 - (step - since) / steps)
        return scale * self.schedule(self.clock(since)) * (final + (1 - final) * left)

    def clock(self, step: int) -> int:
        """The schedule's own step: behind by what it was held."""
        return step - sum(min(max(step - since, 0), steps) for since, steps in self.holds)

    def hold(self, step: int, steps: int) -> None:
        """Stand still for the next `steps` steps; while it already does, until then."""
        if self.holds and step <= sum(self.holds[-1]):
            since, _ = self.holds.pop()
            self.holds.append((since, step + steps - since))
        else:
            self.holds.append((step, steps))

    def cool(self, step: int, steps: int, final: float) -> None:
        """Begin the cooldown; one that has begun goes on."""
        if self.cooldown is None:
            self.cooldown = step, steps, final

    def scale(self, step: int, factor: float) -> None:
        """Multiply the schedule by `factor`, until told otherwise."""
        if factor != (self.scales[-1][1] if self.scales else 1.0):
            self.scales.append((step, factor))

    def react(self, step: int, findings: Iterable[Finding], config: HoldConfig) -> str:
        """Decide on findings made after `step` committed steps; what was decided, in words, or ""."""
        grave = LEVELS[LEVELS.index(config.level) :]
        found = [finding.indicator for finding in findings if finding.level in grave]
        for name in found:
            if name in config.cool and self.cooldown is None:
                self.cool(step, config.cool_steps, config.final)
                return f"{name}: the learning rate cools down over {config.cool_steps} steps"
        for name in found:
            if name in config.on and self.cooldown is None:
                self.hold(step, config.steps)
                return f"{name}: the learning rate is held for {config.steps} steps"
        return ""

    def state(self) -> dict[str, Any]:
        return {"holds": self.holds, "cooldown": self.cooldown, "scales": self.scales}

    def load(self, state: Mapping[str, Any]) -> None:
        self.holds = [(since, steps) for since, steps in state["holds"]]
        self.scales = [(since, factor) for since, factor in state["scales"]]
        cooldown = state["cooldown"]
        self.cooldown = None if cooldown is None else (cooldown[0], cooldown[1], cooldown[2])
