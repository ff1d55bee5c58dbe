"""An adapter, written down."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from steepest.contract import SteepestError, unknown


class AdapterConfig(BaseModel):
    """A low-rank adapter: W + (alpha / r) B A, with W frozen (arXiv:2106.09685).

    kind:    "lora", or "dora": the sum's direction, times a trained magnitude a row (arXiv:2402.09353).
    dropout: of the adapter's inputs, in [0, 1).
    targets: "all-linear": every linear layer but the vocabulary's, or names of modules (their ends do:
             "q_proj").
    modules_to_save: names of modules that are trained whole beside the adapter.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    kind: Literal["lora", "dora"] = "lora"
    r: int = Field(default=16, ge=1)
    alpha: float = Field(default=32.0, gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    targets: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    modules_to_save: tuple[str, ...] = ()


def parse_adapter(given: str | Mapping[str, Any], where: str = "") -> AdapterConfig:
    """A checked config from a kind ("lora") or from keys; one sentence for the first mistake.

    where: what the adapter belongs to, named in that sentence.
    """
    name = f"adapter of {where}" if where else "adapter"
    keys = {"kind": given} if isinstance(given, str) else dict(given)
    kinds = ("lora", "dora")
    if keys.get("kind", "lora") not in kinds:
        raise unknown(f"kind of {name}", keys["kind"], kinds)
    for key in keys:
        if key not in AdapterConfig.model_fields:
            raise unknown(f"key in {name}", key, AdapterConfig.model_fields)
    try:
        return AdapterConfig.model_validate(keys)
    except ValidationError as error:
        first = error.errors()[0]
        key = first["loc"][0]
        raise SteepestError(f"{name}: {key}: {first['msg'].lower()}, got {keys[str(key)]!r}.") from None
