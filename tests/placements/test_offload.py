"""State and step on the host: the same numbers, in waves, with parameters changed from outside seen."""

import pytest
import torch
from torch import nn

from placements.ranks import on_ranks
from steepest import Optimizer
from steepest.placements import offload
from steepest.placements.offload import Offloaded
from steepest.placements.owned import Owned

RULES = ["adamw", "lamb", "adafactor", "lion"]


def params():
    torch.manual_seed(1)
    return [
        (f"p{i}", nn.Parameter(torch.randn(shape))) for i, shape in enumerate([(40, 64), (7, 6), (5,), ()])
    ]


def steps(named, opt, count=3, first=0):
    for k in range(first, first + count):
        torch.manual_seed(100 + k)
        for _, p in named:
            p.grad = torch.randn_like(p)
        opt.step()
    return [p.detach().clone() for _, p in named]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("state", [None, "int8"])
def test_offloaded_is_the_same_to_the_bit(rule, state, monkeypatch):
    monkeypatch.setattr(offload, "WAVE", 2000)
    mine, theirs = params(), params()
    own = Optimizer(mine, rule, lr=0.01, state=state, max_grad_norm=1.0, placement=Offloaded())
    other = Optimizer(theirs, rule, lr=0.01, state=state, max_grad_norm=1.0)
    for a, b in zip(steps(mine, own), steps(theirs, other), strict=True):
        assert torch.equal(a, b)
    assert own.placement.waves > 1
    assert own.export_state()[0].keys() == other.export_state()[0].keys()


def test_weights_loaded_from_outside_are_stepped_from():
    mine, theirs = params(), params()
    own = Optimizer(mine, "adamw", lr=0.01, placement=Offloaded())
    other = Optimizer(theirs, "adamw", lr=0.01)
    for named, opt in ((mine, own), (theirs, other)):
        steps(named, opt, 1)
        with torch.no_grad():
            for _, p in named:
                p.fill_(0.5)
    for a, b in zip(steps(mine, own, 2, 1), steps(theirs, other, 2, 1), strict=True):
        assert torch.equal(a, b)


def test_a_veto_moves_nothing():
    mine = params()
    own = Optimizer(mine, "adamw", lr=0.01, placement=Offloaded())
    before = steps(mine, own, 1)
    mine[0][1].grad[0, 0] = float("nan")
    own.step()
    assert not own.last_verdict.commit
    assert all(torch.equal(a, p) for a, (_, p) in zip(before, mine, strict=True))


def owned(rank, world):
    mine = params()
    opt = Optimizer(mine, "lamb", lr=0.01, placement=Offloaded(Owned()))
    return steps(mine, opt)


def test_it_goes_with_owners():
    theirs = params()
    expected = steps(theirs, Optimizer(theirs, "lamb", lr=0.01))
    for found in on_ranks(2, owned):
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
