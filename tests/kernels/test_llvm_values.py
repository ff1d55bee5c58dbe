"""Each operation of the vocabulary on awkward numbers: kernels give what torch gives."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import steepest
from steepest.codecs.verbs import root
from steepest.contract import Hyper, Scope, zeros
from steepest.ops import atleast, atmost, clip, lerp, sign, sqrt, where
from steepest.rules import rule

nan, inf = math.nan, math.inf
AWKWARD = [0.0, -0.0, 1.0, -1.0, 0.3, -2.7, 1e-40, -1e-40, 1e30, -1e30, 3e38, inf, -inf, nan, 65504.0, 0.5]

FORMULAS = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    "neg": lambda a, b: -a,
    "abs": lambda a, b: abs(a),
    "sqrt": lambda a, b: sqrt(a),
    "root": lambda a, b: root(clip(where(a == a, abs(a), 1.0), 2.0**-60, 1e30)),
    "rsqrt": lambda a, b: torch.rsqrt(a),
    "sign": lambda a, b: sign(a),
    "lerp": lambda a, b: lerp(a, b, 0.3),
    "minimum": lambda a, b: torch.minimum(a, b),
    "maximum": lambda a, b: torch.maximum(a, b),
    "atleast": lambda a, b: atleast(a, 0.25),
    "atmost": lambda a, b: atmost(a, 0.25),
    "clip": lambda a, b: clip(a, -0.5, 0.5),
    "exp": lambda a, b: torch.exp(a),
    "log": lambda a, b: torch.log(a),
    "tanh": lambda a, b: torch.tanh(a),
    "pow": lambda a, b: torch.pow(a, b),
    "where": lambda a, b: where((a > b) | (a != a), a, b),
    "and": lambda a, b: where((a >= b) & (b <= 1.0), 1.0, b),
    "equal": lambda a, b: where(a == b, 2.0, a),
    "bool and": lambda a, b: where((a < b) & (a > -b), a, 0.0),
}


def declare(name):
    def formula(p, g, s, h):
        return g, {"m": FORMULAS[name](p, g)}

    formula.__name__ = name.replace(" ", "_")
    hyper = {"lr": Hyper(1.0, low=0.0)}
    slots = {"m": zeros}
    return rule(paper="none", scope=Scope.ELEMENT, slots=slots, hyper=hyper, decay="inside")(formula)


RULES = {name: declare(name) for name in FORMULAS}


def run(name, a, b, engine):
    p = torch.tensor(a)
    p.grad = torch.tensor(b)
    opt = steepest.Optimizer([p], RULES[name], engine=engine, check_finite=False)
    opt.step()
    return opt.state[p]["m"]


def check(name, a, b):
    got, expected = run(name, a, b, "fused"), run(name, a, b, "reference")
    torch.testing.assert_close(got, expected, rtol=3e-6, atol=1e-44, equal_nan=True)


@pytest.mark.parametrize("name", FORMULAS)
def test_all_pairs_of_awkward_numbers(name):
    pairs = [(a, b) for a in AWKWARD for b in AWKWARD]
    check(name, *map(list, zip(*pairs, strict=True)))


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(list(FORMULAS)),
    pairs=st.lists(st.tuples(*[st.floats(width=32)] * 2), min_size=1, max_size=70),
)
def test_any_numbers(name, pairs):
    """Lengths about a vector's, so that both the vectors and what is left of them are met."""
    check(name, *map(list, zip(*pairs, strict=True)))


@pytest.mark.parametrize("betas", [(0.9, 0.99), (0.3, 0.99), (0.9, 0.3), (0.3, 0.2), (0.5, 0.5), (0.0, 0.0)])
def test_decays_on_either_side_of_one_half_choose_as_the_reference_does(betas):
    """`lerp` has two forms, and a kernel two versions: for the first form everywhere, and for either."""

    def stepped(engine):
        p = torch.linspace(-2, 2, 300)
        opt = steepest.AdamW([p], lr=0.1, betas=(0.9, 0.95), engine=engine)
        opt.param_groups[0]["betas"] = betas
        for scale in (1.0, 1e-6, 1e6):
            p.grad = torch.cos(torch.arange(300.0)) * scale
            opt.step()
        return p, opt.state[p]["m"], opt.state[p]["v"]

    for got, expected in zip(stepped("fused"), stepped("reference"), strict=True):
        torch.testing.assert_close(got, expected, rtol=3e-6, atol=1e-6 * expected.abs().max().item())
