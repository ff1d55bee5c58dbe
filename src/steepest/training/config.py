"""A run, written down: the one config that `steepest train` reads and every trial of the lab records."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from steepest.contract import SteepestError, unknown
from steepest.placements import KINDS
from steepest.training.files import write_atomic
from steepest.training.stage_config import Frozen, StageConfig


class CheckpointConfig(Frozen):
    """When a run is saved: every so many steps (null: only at borders and at its end) or minutes; how many
    generations are kept; whether writing goes on beside training."""

    every: int | None = Field(default=None, ge=1)
    minutes: float | None = Field(default=10.0, gt=0)
    keep: int = Field(default=3, ge=1)
    background: bool = True


PLACEMENTS = ("one", *KINDS)
"""How a run lies over its ranks; docs/placements.md says what each moves."""


class HealthConfig(Frozen):
    """How often the indicators of a run's health are computed, in steps; 0 is never."""

    every: int = Field(default=10, ge=0)


class RunConfig(StageConfig):
    """Everything one training needs; equal configs on equal data give equal numbers on a CPU.

    model, tokenizer: as on the command line (`steepest compare --help`).
    precision: "fp32", "bf16" or "fp16" (autocast; float32 weights), or "pure_bf16" (bfloat16 weights).
    sinks:     who else is told of every step: tensorboard, wandb, mlflow, trackio.
    recompute: activations are computed again in the backward pass, block by block.  compile: torch.compile.
    pad_vocab: a model folder that knows fewer tokens than the tokenizer has is given rows for the rest.
    rename:    modules of saved generations that are called otherwise now, old name to new one.
    placement: over several ranks (torchrun, or --nproc): "ddp", "zero1", "zero2", "fsdp" or "hybrid"; "one"
               is a single process. The numbers are the same, to rounding.
    offload:   the optimizer's state lies in the host's memory, and steps are taken there.
    timeout:   seconds that ranks wait for each other before they give up.
    stages:    stages one after another; what one does not say, it takes from the keys above.
    """

    optimizer: dict[str, Any] = Field(default_factory=dict)
    model: str = "tiny"
    tokenizer: str = "bytes"
    seed: int = 0
    device: str = "cpu"
    threads: int | None = Field(default=None, ge=1)
    precision: Literal["fp32", "bf16", "fp16", "pure_bf16"] = "fp32"
    recompute: bool = False
    compile: bool = False
    pad_vocab: bool = False
    rename: dict[str, str] = Field(default_factory=dict)
    checkpoint: CheckpointConfig = CheckpointConfig()
    health: HealthConfig = HealthConfig()
    placement: str = "one"
    offload: bool = False
    timeout: float = Field(default=600.0, gt=0)
    sinks: tuple[str, ...] = ()
    stages: tuple[dict[str, Any], ...] = ()

    @field_validator("optimizer")
    @classmethod
    def _named(cls, value: dict[str, Any]) -> dict[str, Any]:
        return value and StageConfig._named(value)

    @field_validator("placement")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in PLACEMENTS:
            raise unknown("placement", value, PLACEMENTS)
        return value

    @model_validator(mode="after")
    def _whole(self) -> RunConfig:
        self.plan()
        return self

    def plan(self) -> tuple[StageConfig, ...]:
        """The stages, complete; a flat config is one stage."""
        own = {key: getattr(self, key) for key in self.model_fields_set & set(StageConfig.model_fields)}
        if not self.stages:
            if not self.optimizer:
                raise SteepestError("optimizer is missing; add it.")
            return (StageConfig(**{**own, "optimizer": self.optimizer}),)
        found: list[StageConfig] = []
        for i, given in enumerate(self.stages):
            where = f"stage {given.get('name') or i + 1}"
            try:
                found.append(StageConfig.model_validate({**own, "name": f"stage{i + 1}", **given}))
            except ValidationError as error:
                raise SteepestError(sentence(error, where, StageConfig)) from None
        names = [stage.name for stage in found]
        if len(set(names)) < len(names):
            raise SteepestError(f"two stages have the same name ({', '.join(names)}); name each differently.")
        return tuple(found)


def parse_config(given: Mapping[str, Any], where: str) -> RunConfig:
    """A checked config from plain values; one sentence for the first mistake, nearest key offered."""
    try:
        return RunConfig.model_validate(dict(given))
    except ValidationError as error:
        raise SteepestError(sentence(error, where, RunConfig)) from None


def sentence(error: ValidationError, where: str, config: type[BaseModel]) -> str:
    """The first mistake of a config, in words."""
    # A misspelt key leaves another one missing; the misspelling is what helps.
    first = min(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
    key = ".".join(map(str, first["loc"]))
    if first["type"] == "extra_forbidden":
        return str(unknown(f"key in {where}", key, _keys(config, first["loc"])))
    if first["type"] == "missing":
        return f"{where}: {key} is missing; add it."
    cause = first.get("ctx", {}).get("error")
    return f"{where}: " + (str(cause) if cause else f"{key}: {first['msg'].lower()}, got {first['input']!r}.")


def _keys(config: type[BaseModel], loc: tuple[int | str, ...]) -> list[str]:
    """The keys that exist where a config has an unknown one, written like that one."""
    path = ""
    for part in loc[:-1]:
        inner = config.model_fields[str(part)].annotation
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            return []
        config, path = inner, f"{path}{part}."
    return [path + key for key in config.model_fields]


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
    for part in (given, *(given.get("stages") or ())):
        if isinstance(part, dict) and isinstance(part.get("optimizer"), dict):
            part["optimizer"] = _number(part["optimizer"])
    return parse_config(given, str(path))


def _number(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _number(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return tuple(map(_number, value))
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def save_config(config: RunConfig, folder: Path) -> None:
    """Write `config.yaml` with every key: the same run, wherever the defaults go."""
    import yaml

    text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    write_atomic(folder / "config.yaml", text)
