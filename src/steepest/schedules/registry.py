"""Schedules by name, and from plain dictionaries."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from steepest.contract import SteepestError, unknown
from steepest.schedules.schedule import Schedule
from steepest.schedules.shapes import (
    WSD,
    Constant,
    Cosine,
    CosineRestarts,
    InverseSqrt,
    Linear,
    OneCycle,
    Polynomial,
)

SHAPES: dict[str, type[Schedule]] = {
    shape.name: shape
    for shape in (Constant, Linear, Cosine, WSD, InverseSqrt, Polynomial, OneCycle, CosineRestarts)
}


def names() -> tuple[str, ...]:
    """The names `make` knows."""
    return tuple(SHAPES)


def make(name: str, peak: float, steps: int, **options: Any) -> Schedule:
    """The schedule of this name; `options` are its fields (`warmup`, `final`, ...).

    Raises SteepestError for an unknown name or option (the nearest is offered) and for a bad value.
    """
    if name not in SHAPES:
        raise unknown("schedule", name, SHAPES)
    shape = SHAPES[name]
    known = {field.name for field in fields(shape)} - {"peak", "steps"}
    for option in options:
        if option not in known:
            raise unknown(f"option of the {name} schedule", option, known)
    return shape(peak, steps, **options)


def from_config(config: Mapping[str, Any]) -> Schedule:
    """The schedule that `Schedule.to_config` described; keys that have a default may be missing.

    Raises SteepestError as `make` does, and for a missing `name`, `peak` or `steps`.
    """
    for key in ("name", "peak", "steps"):
        if key not in config:
            raise SteepestError(f"a schedule's config needs {key!r}; add it to {dict(config)!r}.")
    return make(**config)
