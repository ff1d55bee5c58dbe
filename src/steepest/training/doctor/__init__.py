"""`steepest doctor`: reads a run, and says in words whether it is the optimizer."""

from steepest.training.doctor.causes import Cause, Rule
from steepest.training.doctor.diagnosis import Diagnosis, diagnose
from steepest.training.doctor.figure import draw
from steepest.training.doctor.rules import RULES
from steepest.training.doctor.series import Series

__all__ = ["RULES", "Cause", "Diagnosis", "Rule", "Series", "diagnose", "draw"]
