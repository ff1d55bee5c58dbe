"""Where parameters, gradients and state live: whole, owned (ZeRO), cut over ranks (FSDP2), or offloaded."""

from steepest.placements.cost import assign, step_cost
from steepest.placements.find import find_placement
from steepest.placements.offload import Offloaded
from steepest.placements.owned import Owned
from steepest.placements.place import KINDS, Placed, place
from steepest.placements.placement import Placement
from steepest.placements.traffic import Traffic

__all__ = [
    "KINDS",
    "Offloaded",
    "Owned",
    "Placed",
    "Placement",
    "Traffic",
    "assign",
    "find_placement",
    "place",
    "step_cost",
]
