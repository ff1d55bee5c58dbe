"""Sign descent: every element moves by the learning rate, whatever the gradient's size."""

from __future__ import annotations

from steepest.contract import Hyper, Scope, Slot
from steepest.ops import lerp, sign
from steepest.rules.declare import MOMENTUM, UNIT, WEIGHT_DECAY, rate, rule


@rule(
    slots={"m": Slot(average="beta2", of="gradient")},
    scope=Scope.ELEMENT,
    paper="arXiv:2302.06675; reference google/automl lion/lion_pytorch.py",
    hyper={"lr": rate(1e-4), "betas": Hyper((0.9, 0.99), **UNIT), "weight_decay": WEIGHT_DECAY},
)
def lion(p, g, s, h):
    return sign(lerp(s.m, g, 1 - h.beta1)), {"m": lerp(s.m, g, 1 - h.beta2)}


@rule(
    slots={"m": MOMENTUM.if_set("momentum")},
    scope=Scope.ELEMENT,
    paper="arXiv:1802.04434, algorithm 2 (momentum 0: algorithm 1, signSGD)",
    hyper={"lr": rate(1e-4), "momentum": Hyper(0.9, **UNIT), "weight_decay": WEIGHT_DECAY},
)
def signum(p, g, s, h):
    if "m" not in s:
        return sign(g), {}
    m = lerp(s.m, g, 1 - h.momentum)
    return sign(m), {"m": m}
