"""The engines there are, and which one serves."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from torch import Tensor

from steepest.contract import Rule, unknown
from steepest.engines import foreach, reference

Engine: TypeAlias = Callable[
    [Rule, Sequence[Tensor], Sequence[Tensor], Mapping[str, Sequence[Tensor]], Any], None
]
"""run(rule, parameters, gradients, slots by name, h): one step in place for tensors that share a
device, a type, a step count and a set of slots. Every list has one tensor a parameter."""

ENGINES: Mapping[str, Engine] = {"reference": reference.run, "foreach": foreach.run}


def find_engine(name: str | None) -> tuple[str, Engine]:
    """The engine of this name; `None` or "auto" asks `STEEPEST_ENGINE`, then takes foreach."""
    if name in (None, "auto"):
        name = os.environ.get("STEEPEST_ENGINE") or "foreach"
    if name not in ENGINES:
        raise unknown("engine", name, [*ENGINES, "auto"])
    return name, ENGINES[name]
