"""One stage of a run, written down: what is optimized, on which data, with which recipe, and until when."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from steepest import schedules
from steepest.contract import SteepestError
from steepest.rules import find_card


class Frozen(BaseModel):
    """A part of a config: immutable, and no key is taken that it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ScheduleConfig(BaseModel):
    """The learning rate's schedule: a shape of `steepest.schedules` over the stage's steps.

    warmup: a share of the stage below 1, or a number of steps from 1.
    Any other key is an option of the shape (`final`, `cooldown`, ...).
    """

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False)

    name: str = "cosine"
    warmup: float = Field(default=0.1, ge=0)

    @field_validator("warmup")
    @classmethod
    def _share_or_steps(cls, value: float) -> float:
        if value > 1 and value != int(value):
            raise SteepestError(
                f"warmup {value:g} is neither a share nor a number of steps; give one below 1 or a whole one."
            )
        return value

    def build(self, peak: float, steps: int) -> schedules.Schedule:
        """The schedule for a stage of this many steps."""
        warmup = round(self.warmup * steps) if self.warmup < 1 else int(self.warmup)
        return schedules.make(self.name, peak, steps, warmup=warmup, **(self.model_extra or {}))


class Until(Frozen):
    """What ends a stage before its last step, whichever comes first.

    tokens: read in this stage.  minutes: of training, without validation.
    loss:   a validation loss at or below it.  reward: a validation reward at or above it.
    warning: the name of a health indicator; its first finding that asks for action ends the stage.
    """

    tokens: int | None = Field(default=None, ge=1)
    minutes: float | None = Field(default=None, gt=0)
    loss: float | None = None
    reward: float | None = None
    warning: str | None = None


class RolloutConfig(Frozen):
    """How a policy gradient's batches are made.

    group:       answers to each prompt; a round has `batch` prompts.
    new_tokens, temperature, top_p: of generation.
    reward:      "task" (right or wrong, by the row's answer), "grade" (how right), "stage:NAME" (the reward
                 model that stage has trained), "package.module:function" of (completion, row), or several as
                 {reward: weight}.
    updates:     optimizer steps on one round of answers; each sees all of them.
    scale:       divide advantages by their group's deviation (grpo).
    discount, gae_lambda, kl_in_reward: of ppo.
    reference:   keep the policy as it was before the stage, for KL(policy || reference).
    """

    group: int = Field(default=8, ge=1)
    new_tokens: int = Field(default=32, ge=1)
    temperature: float = Field(default=1.0, gt=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    reward: str | dict[str, float] = "task"
    updates: int = Field(default=1, ge=1)
    scale: bool = True
    discount: float = Field(default=1.0, gt=0, le=1)
    gae_lambda: float = Field(default=0.95, ge=0, le=1)
    kl_in_reward: float = Field(default=0.0, ge=0)
    reference: bool = True


class StageConfig(Frozen):
    """One stage.

    objective: a name, or {"name": "dpo", "beta": 0.1}.
    data:      as on the command line (`steepest compare --help`); examples for other objectives.
    optimizer: {"name": "lion", "lr": 3e-4, ...}, hyperparameters in torch's names. Under "lora_b" and
               "rest" an adapter's second matrices, and what is unfrozen beside it, may have options of their
               own, a rule among them; "value" is that of a value head.
    clip:      global gradient norm, or null for no clipping.
    batch, context: sequences a micro-batch and tokens a sequence; accumulate: micro-batches a step.
    packing:   documents are packed whole into rows, and do not see each other (next_token).
    steps, until: how long. evals: validations, evenly spaced; validation_windows: rows that each reads.
    adapter:   {"kind": "lora", "r": 8}, "keep", or null: adapters are merged, and all weights are trained.
    moments:   what becomes of the optimizer's state at the border before this stage (docs/training.md); null
               is "keep" where rule and codecs stay what they were, else "convert".
    guard, controller: of `training.guard` and `training.control`.
    """

    name: str = ""
    objective: str | dict[str, Any] = "next_token"
    data: str = "stdlib"
    text_key: str = "text"
    optimizer: dict[str, Any]
    schedule: ScheduleConfig = ScheduleConfig()
    clip: float | None = Field(default=1.0, gt=0)
    batch: int = Field(default=8, ge=1)
    accumulate: int = Field(default=1, ge=1)
    context: int = Field(default=64, ge=1)
    packing: bool = False
    steps: int = Field(default=160, ge=1)
    until: Until = Until()
    evals: int = Field(default=8, ge=1)
    validation_windows: int = Field(default=64, ge=1)
    adapter: dict[str, Any] | str | None = None
    moments: str | list[Any] | dict[str, Any] | None = None
    guard: dict[str, Any] = Field(default_factory=dict)
    controller: dict[str, Any] | None = None
    rollout: RolloutConfig = RolloutConfig()

    @field_validator("optimizer")
    @classmethod
    def _named(cls, value: dict[str, Any]) -> dict[str, Any]:
        if "name" not in value or "lr" not in value:
            raise SteepestError("optimizer needs a name and an lr, as in {name: adamw, lr: 3e-4}.")
        if not isinstance(value["name"], str):
            raise SteepestError(f"the optimizer's name must be text, got {value['name']!r}.")
        find_card(value["name"])
        rate = value["lr"]
        if not isinstance(rate, (int, float)) or not 0 <= rate < math.inf:
            raise SteepestError(f"the optimizer's lr must be a number from 0 up, got {rate!r}.")
        for where, own in (("the optimizer", value), *((route, value.get(route)) for route in ROUTES)):
            eps = own.get("eps") if isinstance(own, Mapping) else None
            if (eps[:1] if isinstance(eps, (list, tuple)) else [eps]) in ([0], (0,)):
                raise SteepestError(
                    f"{where}: an eps of 0 makes NaN wherever a gradient is 0; give a small one, as in 1e-8."
                )
        return value

    @model_validator(mode="before")
    @classmethod
    def _steps_in_until(cls, given: Any) -> Any:
        """`until: {steps: 300}` is what people write; it is `steps: 300`."""
        if (
            isinstance(given, Mapping)
            and isinstance(until := given.get("until"), Mapping)
            and "steps" in until
        ):
            rest = {key: value for key, value in until.items() if key != "steps"}
            given = {**given, "steps": until["steps"], "until": rest}
        return given

    @property
    def objective_name(self) -> str:
        return self.objective if isinstance(self.objective, str) else str(self.objective.get("name", ""))

    @property
    def objective_options(self) -> dict[str, Any]:
        return (
            {}
            if isinstance(self.objective, str)
            else {k: v for k, v in self.objective.items() if k != "name"}
        )

    @property
    def hyper(self) -> dict[str, Any]:
        """The optimizer's hyperparameters as given, without its name, its rate and its routes."""
        return {k: v for k, v in self.optimizer.items() if k not in ("name", "lr", *ROUTES)}


ROUTES = ("lora_b", "rest", "value")
"""Options of an optimizer that are routes: parameters that may have a rule or options of their own."""
