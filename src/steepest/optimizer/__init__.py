"""The optimizer object: one `torch.optim.Optimizer` that runs any rule, on any engine."""

from steepest.optimizer.border import Carried, carry, suggested_rate
from steepest.optimizer.constructors import (
    LAMB,
    LARS,
    SGD,
    Adafactor,
    Adagrad,
    Adam,
    AdamW,
    Lion,
    RMSprop,
    Signum,
    constructor,
)
from steepest.optimizer.optimizer import Optimizer
from steepest.optimizer.release import Release
from steepest.optimizer.routes import Route, decay_groups, everything, matrices, vectors
from steepest.optimizer.verdict import Judge, Judgement, Verdict

__all__ = [
    "LAMB",
    "LARS",
    "SGD",
    "Adafactor",
    "Adagrad",
    "Adam",
    "AdamW",
    "Carried",
    "Judge",
    "Judgement",
    "Lion",
    "Optimizer",
    "RMSprop",
    "Release",
    "Route",
    "Signum",
    "Verdict",
    "carry",
    "constructor",
    "decay_groups",
    "everything",
    "matrices",
    "suggested_rate",
    "vectors",
]
