"""Objectives: what a batch asks of a model, as pure functions `(model, batch) -> (loss, facts)`."""

from steepest.objectives.next_token import Facts, next_token
from steepest.objectives.registry import OBJECTIVES, Objective, get_objective

__all__ = ["OBJECTIVES", "Facts", "Objective", "get_objective", "next_token"]
