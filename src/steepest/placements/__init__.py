"""Where parameters, gradients and state live: whole, owned (ZeRO), or cut over ranks (FSDP2)."""

from steepest.placements.cost import assign, step_cost
from steepest.placements.find import find_placement
from steepest.placements.placement import Placement

__all__ = ["Placement", "assign", "find_placement", "step_cost"]
