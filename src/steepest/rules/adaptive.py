"""Root-mean-square scaling without a first moment: Adagrad and RMSprop."""

from __future__ import annotations

from dataclasses import replace

from steepest.contract import Hyper, Scope, Slot
from steepest.ops import atleast, lerp, sqrt
from steepest.rules.declare import EPS, FLAG, UNIT, UPDATES, WEIGHT_DECAY, rate, rule


@rule(
    slots={"v": Slot(init="initial_accumulator_value", nonnegative=True, of="square", steady=lambda h: h.t)},
    scope=Scope.ELEMENT,
    decay="l2",
    paper="Duchi et al., JMLR 12, 2011; reference torch/optim/adagrad.py",
    hyper={
        "lr": rate(1e-2),
        "lr_decay": Hyper(0.0, low=0.0),
        "weight_decay": WEIGHT_DECAY,
        "initial_accumulator_value": Hyper(0.0, low=0.0, live=False),
        "eps": replace(EPS, default=1e-10),
    },
)
def adagrad(p, g, s, h):
    v = s.v + g * g
    return g / ((sqrt(v) + h.eps) * (1 + (h.t - 1) * h.lr_decay)), {"v": v}


@rule(
    slots={
        "v": Slot(average="alpha", nonnegative=True, of="square"),
        "a": Slot(average="alpha").if_set("centered"),
        "m": UPDATES.if_set("momentum"),
    },
    scope=Scope.ELEMENT,
    decay="l2",
    paper="Tieleman and Hinton, Coursera lecture 6.5, 2012; centered arXiv:1308.0850; torch/optim/rmsprop.py",
    hyper={
        "lr": rate(1e-2),
        "alpha": Hyper(0.99, **UNIT),
        "eps": EPS,
        "weight_decay": WEIGHT_DECAY,
        "momentum": Hyper(0.0, **UNIT),
        "centered": FLAG,
    },
)
def rmsprop(p, g, s, h):
    new = {"v": lerp(s.v, g * g, 1 - h.alpha)}
    v = new["v"]
    if "a" in s:
        new["a"] = lerp(s.a, g, 1 - h.alpha)
        v = atleast(v - new["a"] * new["a"], 0.0)  # rounding may leave it a hair below zero
    u = g / (sqrt(v) + h.eps)
    if "m" in s:
        u = new["m"] = h.momentum * s.m + u
    return u, new
