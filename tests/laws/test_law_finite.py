"""Law: finite gradients give finite parameters in float32, also where squares or products underflow.

A zero gradient is an ordinary thing: a LoRA factor at its start, a dead unit, an unused embedding.
"""

import pytest
import torch

from laws.cases import CASES, LARGE, every_rule, slots_of, tensors
from steepest import Adafactor
from steepest.engines import ENGINES
from steepest.rules.adafactor import DIALECTS

SHAPES = [(40, 33), LARGE, (5,), ()]


def crossed_out(g):
    """A zero row and a zero column: where they cross, both of Adafactor's means are nothing."""
    if g.ndim == 2:
        g[3], g[:, 2] = 0.0, 0.0
    return g


GRADIENTS = {
    "zero": torch.zeros_like,
    "dead_row_and_column": crossed_out,
    "dead_beside_large": lambda g: crossed_out(g) * 1e10,
    "tiny": lambda g: g * 1e-25,
    "huge": lambda g: g * 1e17,
    "one_element": lambda g: g * (torch.arange(g.numel()).reshape(g.shape) == 0),
}


def test_the_table_covers_every_rule():
    assert every_rule(CASES) and GRADIENTS


@pytest.mark.parametrize("make", GRADIENTS.values(), ids=GRADIENTS.keys())
@pytest.mark.parametrize("case", CASES, ids=str)
def test_finite_gradients_give_finite_parameters(case, make):
    for engine in ENGINES:
        params = tensors(SHAPES, seed=1, dtype=torch.float32)
        opt = case.build(params, engine=engine, lr=0.01)
        for k in range(3):
            for p, g in zip(params, tensors(SHAPES, seed=2 + k, dtype=torch.float32), strict=True):
                p.grad = make(g)
            opt.step()
        assert opt.committed == 3
        for p in params:
            assert p.isfinite().all(), f"{engine}, {tuple(p.shape)}"
            assert all(slot.isfinite().all() for slot in slots_of(opt, p).values())


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("dialect", DIALECTS)
def test_adafactor_s_means_may_be_nothing_beside_any_eps(dialect, engine):
    (p,) = tensors([LARGE], seed=1, dtype=torch.float32)
    opt = Adafactor([p], lr=0.01, eps=(1e-38, 1e-3), dialect=dialect, engine=engine)
    for _ in range(2):
        p.grad = crossed_out(torch.randn(p.shape, generator=torch.Generator().manual_seed(2))) * 1e3
        opt.step()
    assert p.isfinite().all()


@pytest.mark.parametrize("case", [c for c in CASES if not c.hyper["weight_decay"]], ids=str)
def test_without_gradient_and_decay_nothing_moves(case):
    params = tensors(SHAPES, seed=1, dtype=torch.float32)
    before = [p.clone() for p in params]
    opt = case.build(params, lr=0.01)
    for p in params:
        p.grad = torch.zeros_like(p)
    opt.step()
    assert all(torch.equal(p, q) for p, q in zip(params, before, strict=True))
