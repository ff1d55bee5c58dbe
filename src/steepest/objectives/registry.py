"""Objectives by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from torch import Tensor, nn

from steepest.contract import unknown
from steepest.objectives.next_token import Facts, next_token

Objective = Callable[[nn.Module, Any], tuple[Tensor, Facts]]
"""A pure function of a model and a batch: the loss to descend (a scalar), and facts to log about it."""

OBJECTIVES: Mapping[str, Objective] = MappingProxyType({"next_token": next_token})


def get_objective(name: str) -> Objective:
    """The objective of this name; SteepestError offers the nearest one for an unknown name."""
    if name not in OBJECTIVES:
        raise unknown("objective", name, OBJECTIVES)
    return OBJECTIVES[name]
