"""A rule of the user's own gets kernels with no further work, or runs on foreach and says so once."""

import logging

import pytest
import torch

import steepest
from steepest.contract import Hyper, Scope, Slot
from steepest.ops import add_scaled, atleast, lerp, norm, ratio, rms, sign, sqrt, where
from steepest.rules import rule

HYPER = {"lr": Hyper(1e-2, low=0.0), "beta": Hyper(0.9, low=0.0, high=1.0)}
SHAPES = [(40, 33), (7,), (), (300, 200)]


def declare(formula, scope=Scope.ELEMENT):
    slots = {"m": Slot(average="beta")}
    return rule(paper="none", scope=scope, slots=slots, hyper=HYPER, decay="inside")(formula)


def smooth(p, g, s, h):
    m = lerp(s.m, g, 1 - h.beta)
    return torch.tanh(m) * torch.exp(-torch.abs(p)) + torch.neg(g) * 1e-3, {"m": m}


def powers(p, g, s, h):
    m = lerp(s.m, g, 1 - h.beta)
    return torch.log(1 + torch.abs(m)) * sign(m) + torch.pow(torch.abs(m), 0.3) / (h.t + 1), {"m": m}


def extremes(p, g, s, h):
    m = torch.maximum(g, s.m)
    return m + torch.minimum(p, g) + torch.rsqrt(1 + g * g) + torch.reciprocal(2 + p * p), {"m": m}


def layered(p, g, s, h):
    m = lerp(s.m, g, 1 - h.beta)
    return m * ratio(norm(p), norm(m)) * rms(g) / atleast(torch.mean(p * p), 1e-3), {"m": m}


def twice(p, g, s, h):
    """A norm of what was divided by a norm: three passes."""
    m = lerp(s.m, g / atleast(norm(g), 1e-9), 1 - h.beta)
    u = m / atleast(norm(m), 1e-9)
    return u + norm(u * u) * p * 1e-3, {"m": m}


def across(p, g, s, h):
    """Norms of different passes multiplied with each other."""
    n = norm(g)
    m = lerp(s.m, g / atleast(n, 1e-9), 1 - h.beta)
    k = norm(m)
    u = m / atleast(k * n, 1e-9)
    w = norm(u - g)
    return u + p * (n * k / atleast(w + n, 1e-9) * 1e-2), {"m": m}


def branches(p, g, s, h):
    m = where(h.t > 2, lerp(s.m, g, 1 - h.beta), g)
    held = where((m > 0.5) | (m < -0.5), sign(m), m)
    return where((g * m > 0) & (p != 0), held, add_scaled(held, p, -0.1)), {"m": m}


def keeps(p, g, s, h):
    """A slot that holds an input."""
    return g - s.m, {"m": p}


KERNELS = [
    *[declare(f) for f in (smooth, powers, extremes, branches, keeps)],
    *[declare(f, Scope.TENSOR) for f in (layered, twice, across)],
]


def run(rule, engine, **options):
    torch.manual_seed(0)
    params = [torch.randn(shape) for shape in SHAPES]
    opt = steepest.Optimizer(params, rule, engine=engine, lr=0.01, **options)
    for k in range(4):
        torch.manual_seed(k + 1)
        for p in params:
            p.grad = torch.randn_like(p)
        opt.step()
    return params, [opt.state[p]["m"] for p in params]


def messages(caplog):
    return [r.getMessage() for r in caplog.records if "foreach" in r.getMessage()]


@pytest.mark.parametrize("own", KERNELS, ids=lambda r: r.name)
def test_it_gets_kernels(own, caplog):
    with caplog.at_level(logging.INFO, "steepest"):
        for a, b in zip(run(own, "fused"), run(own, "reference"), strict=True):
            for x, y in zip(a, b, strict=True):
                torch.testing.assert_close(x, y, rtol=2e-5, atol=2e-6)
    assert not messages(caplog)


@pytest.mark.parametrize("own", KERNELS, ids=lambda r: r.name)
@pytest.mark.parametrize("codec", ["bf16", "int8", "fp8", "int4"])
def test_with_every_kind_of_codec(own, codec):
    params, slots = run(own, "fused", state=codec)
    reference, others = run(own, "reference", state=codec)
    for p, q in zip(params, reference, strict=True):
        far = ((p - q).abs() > 1e-4 + 1e-4 * q.abs()).double().mean()
        assert far < 0.001  # only where a rounding fell the other way
    for m, n in zip(slots, others, strict=True):
        if m.dtype != torch.float32:
            assert (m != n).double().mean() < 0.01  # a rounding that fell the other way


def error_function(p, g, s, h):
    return torch.special.erf(g), {"m": g}


def looks(p, g, s, h):
    return (g if g.abs().max() > 1 else g * 2), {"m": g}


def mixes(p, g, s, h):
    return (p > g) * g, {"m": g}


@pytest.mark.parametrize("formula", [error_function, looks, mixes], ids=lambda f: f.__name__)
def test_what_kernels_do_not_know_runs_on_foreach_and_says_so_once(formula, caplog):
    own = declare(formula)
    with caplog.at_level(logging.INFO, "steepest"):
        for a, b in zip(run(own, "fused"), run(own, "reference"), strict=True):
            assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    assert len(messages(caplog)) == 1 and formula.__name__ in messages(caplog)[0]
    assert caplog.records[0].levelno == logging.WARNING


def wrong(p, g, s, h):
    return g + s.q, {"m": sqrt(g)}


def test_a_mistake_in_a_rule_is_shown_as_it_is():
    with pytest.raises(AttributeError, match="'q'"):
        run(declare(wrong), "fused")
