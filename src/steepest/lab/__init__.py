"""The lab: one study, from a question to a page that answers it."""

from steepest.lab.executors import executor
from steepest.lab.pool import Pool
from steepest.lab.question import Budget, Question, parse_budget
from steepest.lab.study import Estimate, Event, Study

__all__ = ["Budget", "Estimate", "Event", "Pool", "Question", "Study", "executor", "parse_budget"]
