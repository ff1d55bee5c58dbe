"""Schedules: a step to a number. Pure functions of the committed step, with warm-up before any shape.

rate = schedules.cosine(3e-4, 10_000, warmup=200, final=0.1)
rate(0)                                    # the value for the first step
"""

from steepest.schedules.registry import from_config, make, names
from steepest.schedules.schedule import Schedule
from steepest.schedules.shapes import WSD as wsd
from steepest.schedules.shapes import Constant as constant
from steepest.schedules.shapes import Cosine as cosine
from steepest.schedules.shapes import CosineRestarts as cosine_restarts
from steepest.schedules.shapes import InverseSqrt as inverse_sqrt
from steepest.schedules.shapes import Linear as linear
from steepest.schedules.shapes import OneCycle as one_cycle
from steepest.schedules.shapes import Polynomial as polynomial

__all__ = [
    "Schedule",
    "constant",
    "cosine",
    "cosine_restarts",
    "from_config",
    "inverse_sqrt",
    "linear",
    "make",
    "names",
    "one_cycle",
    "polynomial",
    "wsd",
]
