"""The fault laboratory: 42 faults, provoked one by one on a run of the user's own config."""

from steepest.training.faults.laboratory import Laboratory, small
from steepest.training.faults.results import Result, write_json, write_junit
from steepest.training.faults.rows import ROWS
from steepest.training.faults.terms import Above, Inject, Row

__all__ = [
    "ROWS",
    "Above",
    "Inject",
    "Laboratory",
    "Result",
    "Row",
    "small",
    "write_json",
    "write_junit",
]
