"""The controllers of a stage: who owns the learning rate and the KL coefficient, and what they did."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from steepest.contract import Schedule, SteepestError
from steepest.training.control import ControllerConfig, Held, KlCoefficient, KlRate
from steepest.training.indicators import Finding
from steepest.training.learner import Objective, Update
from steepest.training.loop import Stage
from steepest.training.stage_config import StageConfig

ACTOR = 0
"""The rate that KL owns is the policy's; a value head keeps its own."""


@dataclass
class Controls:
    """Controllers, and the schedules that they act on. Off unless the config asks for them."""

    config: ControllerConfig
    stage: StageConfig
    schedules: list[Held] = field(default_factory=list)
    rate: KlRate | None = None
    kl: KlCoefficient | None = None

    @classmethod
    def of(cls, stage: StageConfig) -> Controls | None:
        """Those that a stage asks for."""
        if stage.controller is None:
            return None
        config = ControllerConfig.model_validate(stage.controller)
        out = cls(config, stage)
        if config.rate is not None:
            shape = stage.schedule.build(stage.optimizer["lr"], stage.steps)
            out.rate = KlRate(config.rate, shape, stage.steps)
        if config.kl is not None:
            if stage.objective_name not in ("grpo", "rloo", "ppo"):
                raise SteepestError(f"stage {stage.name}: controller.kl needs a policy gradient.")
            out.kl = KlCoefficient(config.kl)
        return out

    def held(self, schedule: Schedule) -> Schedule:
        """A schedule that can be held and scaled from here on."""
        own = Held(schedule)
        self.schedules.append(own)
        return own

    def objective(self, function: Objective) -> Objective:
        """The objective with the KL coefficient as it stands."""
        if self.kl is None:
            return function
        coefficient = self.kl
        return lambda model, batch: partial(function, **{"kl_coef": coefficient.value})(model, batch)

    def look(self, stage: Stage, update: Update, findings: Sequence[Finding]) -> str:
        """After a step: signals are taken in; what was decided, in words."""
        committed, told = stage.learner.optimizer.committed, set[str]()
        if self.config.hold is not None:
            told |= {own.react(committed, findings, self.config.hold) for own in self.schedules}
        if self.rate is not None and "kl_old" in update.facts:
            before = self.rate.factor
            after = self.rate.update(update.facts["kl_old"], update.facts["clip_fraction"])
            self.schedules[ACTOR].scale(committed, after)
            told.add(self.rate.frozen)
            told |= {f"KL: the learning rate is {after:.3g} of its own"} if after != before else set()
        if self.kl is not None and "kl_reference" in update.facts:
            self.kl.update(update.facts["kl_reference"], self.stage.batch * self.stage.rollout.group)
        return "; ".join(sorted(words for words in told if words))

    def state(self) -> dict[str, Any]:
        return {
            "schedules": [own.state() for own in self.schedules],
            "rate": self.rate.state() if self.rate else None,
            "kl": self.kl.state() if self.kl else None,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        for own, saved in zip(self.schedules, state["schedules"], strict=True):
            own.load(saved)
        if self.rate is not None:
            self.rate.load(state["rate"])
        if self.kl is not None:
            self.kl.load(state["kl"])
