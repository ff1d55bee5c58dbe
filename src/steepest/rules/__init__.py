"""The update rules, each written once: gradient to direction.

A rule reads like its paper: `u, slots = rule(p, g, s, h)`.

    p   the parameter                      g   its gradient, already unscaled and clipped
    m   average of gradients (1st moment)  v   average or sum of squared gradients (2nd moment)
    a   average gradient for centring      x   largest second moment so far
    r   row means of v                     c   column means of v
    s   the slots (m, v, ...) so far       u   the direction; the parameter moves against it
    h   hyperparameters: lr, weight_decay, beta1, beta2, ... and t, the step counted from 1

Live hyperparameters are beta1 for the paper's β₁, beta2 for β₂, eps for ε, lr for η, weight_decay for λ.
A rule is pure: nothing is mutated, no device, type, rank or name is asked for, no loop runs over
parameters, and no branch depends on a live number.
"""

from steepest.rules.adafactor import adafactor
from steepest.rules.adam import adam, adamw, lamb
from steepest.rules.adaptive import adagrad, rmsprop
from steepest.rules.cards import CARDS, Card, find_card
from steepest.rules.declare import rule, variant
from steepest.rules.sgd import lars, sgd
from steepest.rules.sign import lion, signum
from steepest.rules.table import RULES, find_rule

__all__ = [
    "CARDS",
    "RULES",
    "Card",
    "adafactor",
    "adagrad",
    "adam",
    "adamw",
    "find_card",
    "find_rule",
    "lamb",
    "lars",
    "lion",
    "rmsprop",
    "rule",
    "sgd",
    "signum",
    "variant",
]
