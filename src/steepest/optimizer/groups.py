"""Parameter groups: filling in defaults, checking every key, telling schedules from numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from steepest.contract import Rule, Schedule, SteepestError, unknown

KEYS = {"params", "param_names", "rule", "maximize", "name", "initial_lr", "state", "param"}
"""What a group may hold beside its rule's hyperparameters."""

Place = tuple[str, int | None]
"""Where a schedule acts: a hyperparameter's name, and the index if it is one of a pair."""


def fill(rule: Rule, given: Mapping[str, Any], where: str) -> tuple[dict[str, Any], dict[Place, Schedule]]:
    """A group's hyperparameters complete and checked, and the schedules among them.

    `given` may hold a schedule (any function of the step) for a live hyperparameter; its value at step
    0 takes its place here.
    """
    for key in given:
        if key not in rule.hyper and key not in KEYS:
            raise unknown(f"option of {rule.name} in {where}", key, [*rule.hyper, "maximize"])
    full = rule.defaults(given.get("dialect"))
    schedules: dict[Place, Schedule] = {}
    for key in rule.hyper:
        value = given.get(key, full[key])
        full[key] = _settle(rule, key, value, schedules, where)
    check(rule, full, where)
    return full, schedules


def _settle(rule: Rule, key: str, value: Any, schedules: dict[Place, Schedule], where: str) -> Any:
    if callable(value):
        if not rule.hyper[key].live:
            raise SteepestError(
                f"{where}: {key} shapes the formula of {rule.name} and cannot have a schedule."
            )
        schedules[key, None] = value
        return value(0)
    if isinstance(value, (tuple, list)):
        for index, part in enumerate(value):
            if callable(part):
                schedules[key, index] = part
        return tuple(part(0) if callable(part) else part for part in value)
    return value


def check(rule: Rule, hyper: Mapping[str, Any], where: str) -> None:
    """Raise for the first hyperparameter that is out of its range."""
    for key, declared in rule.hyper.items():
        declared.check(key, hyper[key], where)
    if hyper.get("nesterov") and (hyper["momentum"] <= 0 or hyper["dampening"] != 0):
        raise SteepestError(f"{where}: nesterov needs momentum above 0 and dampening 0.")


def put(group: dict[str, Any], place: Place, value: float) -> None:
    """Set one hyperparameter, or one of a pair; a tensor is filled, so that others who hold it see."""
    key, index = place
    if index is not None:
        pair = list(group[key])
        pair[index] = value
        group[key] = tuple(pair)
    elif hasattr(group[key], "fill_"):
        group[key].fill_(value)
    else:
        group[key] = value


def get(group: Mapping[str, Any], place: Place) -> float:
    """The number at a place, as a float."""
    key, index = place
    return float(group[key] if index is None else group[key][index])
