"""The engines there are, and which one serves."""

from __future__ import annotations

import os
from collections.abc import Mapping

from steepest.contract import unknown
from steepest.engines.bucket import Engine
from steepest.engines.foreach import Foreach
from steepest.engines.fused import Fused
from steepest.engines.reference import Reference

ENGINES: Mapping[str, type[Engine]] = {engine.name: engine for engine in (Reference, Foreach, Fused)}
"""By name; the last is what "auto" stands for."""


def find_engine(name: str | None) -> Engine:
    """A new engine of this name; `None` or "auto" asks `STEEPEST_ENGINE`, then takes the fastest."""
    if name in (None, "auto"):
        name = os.environ.get("STEEPEST_ENGINE") or [*ENGINES][-1]
    if name not in ENGINES:
        raise unknown("engine", name, [*ENGINES, "auto"])
    return ENGINES[name]()
