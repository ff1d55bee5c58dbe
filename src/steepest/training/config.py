"""A run, written down: the one config that `steepest train` reads and every trial of the lab records."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from steepest import schedules
from steepest.contract import SteepestError, unknown
from steepest.rules import find_card


class ScheduleConfig(BaseModel):
    """The learning rate's schedule: a shape of `steepest.schedules` over the run's steps.

    warmup: a share of the run below 1, or a number of steps from 1.
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
        """The schedule for a run of this many steps."""
        warmup = round(self.warmup * steps) if self.warmup < 1 else int(self.warmup)
        return schedules.make(self.name, peak, steps, warmup=warmup, **(self.model_extra or {}))


class RunConfig(BaseModel):
    """Everything one training needs; equal configs on equal data give equal numbers on a CPU.

    model, data, tokenizer: as on the command line (`steepest compare --help`).
    optimizer: {"name": "lion", "lr": 3e-4, ...}, the hyperparameters in torch's names.
    clip:      global gradient norm, or null for no clipping.
    batch, context: sequences a step and tokens a sequence. evals: validations, evenly spaced.
    validation_windows: sequences of `context` tokens that each validation reads.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    model: str = "tiny"
    data: str = "stdlib"
    text_key: str = "text"
    tokenizer: str = "bytes"
    objective: str = "next_token"
    optimizer: dict[str, Any]
    schedule: ScheduleConfig = ScheduleConfig()
    clip: float | None = Field(default=1.0, gt=0)
    batch: int = Field(default=8, ge=1)
    context: int = Field(default=64, ge=1)
    steps: int = Field(default=160, ge=1)
    seed: int = 0
    evals: int = Field(default=8, ge=1)
    validation_windows: int = Field(default=64, ge=1)
    device: str = "cpu"
    threads: int | None = Field(default=None, ge=1)

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
        return value

    @property
    def hyper(self) -> dict[str, Any]:
        """The optimizer's hyperparameters as given, without its name and its learning rate."""
        return {key: value for key, value in self.optimizer.items() if key not in ("name", "lr")}


def parse_config(given: Mapping[str, Any], where: str) -> RunConfig:
    """A checked config from plain values; one sentence for the first mistake, nearest key offered."""
    try:
        return RunConfig.model_validate(dict(given))
    except ValidationError as error:
        # A misspelt key leaves another one missing; the misspelling is what helps.
        first = min(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
        key = ".".join(map(str, first["loc"]))
        if first["type"] == "extra_forbidden":
            raise unknown(f"key in {where}", key, RunConfig.model_fields) from None
        if first["type"] == "missing":
            raise SteepestError(f"{where}: {key} is missing; add it.") from None
        cause = first.get("ctx", {}).get("error")
        text = str(cause) if cause else f"{key}: {first['msg'].lower()}, got {first['input']!r}."
        raise SteepestError(f"{where}: {text}") from None


def load_config(path: Path) -> RunConfig:
    """The config in a YAML file."""
    import yaml

    try:
        given = yaml.safe_load(Path(path).read_text())
    except FileNotFoundError:
        raise SteepestError(f"there is no config at {path}; `steepest compare` writes one.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SteepestError(f"cannot read {path} ({error}); give a YAML file.") from None
    except yaml.YAMLError as error:
        raise SteepestError(f"{path} is not valid YAML ({' '.join(str(error).split())}).") from None
    if not isinstance(given, dict):
        raise SteepestError(f"{path} holds no config; it must be `key: value` lines, one of them optimizer.")
    # YAML 1.1 reads 3e-4 (no dot) as text; people write it, so numbers in text are numbers here.
    optimizer = given.get("optimizer")
    if isinstance(optimizer, dict):
        given["optimizer"] = {key: _number(value) for key, value in optimizer.items()}
    return parse_config(given, str(path))


def _number(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(map(_number, value))
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value
