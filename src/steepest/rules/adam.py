"""The Adam family: AdamW, Adam, and LAMB, which is AdamW's direction scaled layer by layer."""

from __future__ import annotations

from dataclasses import replace

from steepest.contract import Hyper, Scope, Slot
from steepest.ops import atleast, atmost, lerp, norm, ratio, sqrt, unbias, where
from steepest.rules.declare import EPS, FLAG, UNIT, rate, rule, variant

BETAS = Hyper((0.9, 0.999), **UNIT)
M = Slot(average="beta1", of="gradient")
V = Slot(average="beta2", nonnegative=True, of="square")


@rule(
    slots={"m": M, "v": V, "x": Slot(nonnegative=True, exact=True, of="square").if_set("amsgrad")},
    scope=Scope.ELEMENT,
    paper="arXiv:1711.05101; amsgrad openreview ryQu7f-RZ; reference torch/optim/adam.py",
    hyper={
        "lr": rate(1e-3),
        "betas": BETAS,
        "eps": EPS,
        "weight_decay": Hyper(1e-2, low=0.0),
        "amsgrad": FLAG,
    },
)
def adamw(p, g, s, h):
    new = {"m": lerp(s.m, g, 1 - h.beta1), "v": lerp(s.v, g * g, 1 - h.beta2)}
    v = new["v"]
    if "x" in s:
        v = new["x"] = where(s.x > v, s.x, v)
    return unbias(new["m"], h.beta1, h.t) / (sqrt(unbias(v, h.beta2, h.t)) + h.eps), new


adam = variant(
    adamw,
    "adam",
    decay="l2",
    paper="arXiv:1412.6980; reference torch/optim/adam.py",
    defaults={"weight_decay": 0.0},
)


@rule(
    slots={"m": M, "v": V},
    scope=Scope.TENSOR,
    decay="inside",
    paper="arXiv:1904.00962",
    hyper={
        "lr": rate(1e-3),
        "betas": BETAS,
        "eps": replace(EPS, default=1e-6),
        "weight_decay": Hyper(1e-2, low=0.0),
        "always_adapt": FLAG,
        "trust_low": Hyper(0.0, low=0.0),
        "trust_high": Hyper(float("inf"), low=0.0, infinite=True),
    },
    # nv: apex multi_tensor_lamb.cu, timm/optim/lamb.py. paper: version 5, algorithm 2, phi the identity.
    # deepspeed: csrc/lamb/fused_lamb_cuda_kernel.cu, which holds the ratio in [0.01, 10]. (Its releases long
    # corrected the bias in the step size instead, which scales the decay and misses the norm.)
    dialects={
        "nv": {},
        "paper": {"always_adapt": True},
        "deepspeed": {
            "always_adapt": True,
            "trust_low": 0.01,
            "trust_high": 10.0,
            "eps": 1e-8,
            "weight_decay": 0.0,
        },
    },
)
def lamb(p, g, s, h):
    r, new = adamw(p, g, s, h)
    u = r + h.weight_decay * p
    k = atmost(atleast(ratio(norm(p), norm(u)), h.trust_low), h.trust_high)
    return u * (k if h.always_adapt else where(h.weight_decay != 0, k, 1.0)), new
