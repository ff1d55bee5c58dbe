"""Law: a rule changes nothing it is given, remembers nothing, and leaves a parameter without work alone."""

import copy

import pytest
import torch

from laws.cases import CASES, LARGE, every_rule, tensors
from steepest.apply import advance
from steepest.contract import Slots

SHAPES = [(7, 6), LARGE, (5,), ()]


def operands(case, shape):
    p, g = tensors([shape, shape], seed=1)
    slots = case.rule.slots_for(p.shape, case.full)
    held = {name: t.abs() for name, t in zip(slots, tensors(list(slots.values()), seed=2), strict=True)}
    h = case.live(t=3)
    h.scale, h.clip_value = 0.5, 1.0
    return p, g, held, h


def test_the_table_covers_every_rule():
    assert every_rule(CASES)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_nothing_given_is_changed_and_nothing_is_remembered(case):
    for shape in SHAPES:
        p, g, held, h = operands(case, shape)
        before = copy.deepcopy((p, g, held, vars(h)))
        first_p, first = advance(case.rule, p, g, Slots(**held), h)
        again_p, again = advance(case.rule, p, g, Slots(**held), h)
        assert torch.equal(p, before[0]) and torch.equal(g, before[1]) and vars(h) == before[3]
        assert all(torch.equal(held[name], before[2][name]) for name in held)
        assert torch.equal(first_p, again_p)
        assert first.keys() == again.keys() == held.keys()
        for name, slot in first.items():
            assert torch.equal(slot, again[name])
            assert slot.shape == held[name].shape and slot.dtype == held[name].dtype
        assert first_p.shape == p.shape and first_p.dtype == p.dtype


@pytest.mark.parametrize("case", CASES, ids=str)
def test_gradients_are_left_as_they_are(case):
    """A step reads gradients; loggers and accumulators may still want them."""
    (p,), (g,) = tensors([(7, 6)], seed=1), tensors([(7, 6)], seed=2)
    p.grad = g.clone()
    case.build([p], max_grad_norm=0.1, max_grad_value=0.01, maximize=True).step()
    assert torch.equal(p.grad, g)
