"""Steepest: the optimizer workbench for LLM training.

    opt = steepest.AdamW(model.parameters(), lr=3e-4, max_grad_norm=1.0)

`steepest compare` finds out which optimizer, with which learning rate, a model should be trained with.
"""

from steepest import schedules
from steepest.contract import Rule, Scope, Slot, SteepestError
from steepest.optimizer import (
    LAMB,
    LARS,
    SGD,
    Adafactor,
    Adagrad,
    Adam,
    AdamW,
    Lion,
    Optimizer,
    Release,
    RMSprop,
    Route,
    Signum,
    Verdict,
    decay_groups,
)

__version__ = "0.1.0"

__all__ = [
    "LAMB",
    "LARS",
    "SGD",
    "Adafactor",
    "Adagrad",
    "Adam",
    "AdamW",
    "Lion",
    "Optimizer",
    "RMSprop",
    "Release",
    "Route",
    "Rule",
    "Scope",
    "Signum",
    "Slot",
    "SteepestError",
    "Verdict",
    "decay_groups",
    "schedules",
]
