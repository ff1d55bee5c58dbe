"""Gradient descent, with and without momentum, and its layer-wise scaled form."""

from __future__ import annotations

from dataclasses import replace

from steepest.contract import Hyper, Live, Scope
from steepest.ops import add_scaled, norm, where
from steepest.rules.declare import FLAG, MOMENTUM, UNIT, UPDATES, WEIGHT_DECAY, rate, rule

OPTIONS = {
    "lr": rate(1e-3),
    "momentum": Hyper(0.0, **UNIT),
    "dampening": Hyper(0.0, low=0.0, high=1.0),
    "weight_decay": WEIGHT_DECAY,
    "nesterov": FLAG,
}


def _sum(h: Live) -> float:
    """What momentum has added up of a constant 1; the first gradient is not dampened."""
    rest = h.momentum ** (h.t - 1)
    return rest + (1 - h.dampening) * (1 - rest) / (1 - h.momentum)


@rule(
    slots={"m": replace(MOMENTUM, steady=_sum).if_set("momentum")},
    scope=Scope.ELEMENT,
    decay="l2",
    paper="Polyak 1964; Nesterov as in Sutskever et al. 2013; reference torch/optim/sgd.py",
    hyper=OPTIONS,
)
def sgd(p, g, s, h):
    if "m" not in s:
        return g, {}
    m = add_scaled(h.momentum * s.m, g, 1 - where(h.t > 1, h.dampening, 0.0))
    return (add_scaled(g, m, h.momentum) if h.nesterov else m), {"m": m}


@rule(
    slots={"m": UPDATES.if_set("momentum")},
    scope=Scope.TENSOR,
    decay="inside",
    paper="arXiv:1708.03888; reference timm/optim/lars.py",
    hyper={
        **OPTIONS,
        "lr": rate(1.0),
        "momentum": Hyper(0.9, **UNIT),
        "trust_coefficient": Hyper(1e-3, low=0.0),
        "eps": Hyper(1e-8, low=0.0),
    },
)
def lars(p, g, s, h):
    w, n = norm(p), norm(g)
    r = where((w > 0) & (n > 0), h.trust_coefficient * w / (n + h.weight_decay * w + h.eps), 1.0)
    return sgd(p, (g + h.weight_decay * p) * r, s, h)
