"""Law: training that stops anywhere and is taken up again is bitwise the training that never stopped."""

import io

import pytest
import torch

from laws.cases import CASES, LARGE, every_rule, feed, slots_of, tensors
from steepest.engines import ENGINES

SHAPES = [(7, 6), LARGE, (5,), ()]
STEPS = 4
WITH_STATE = [case for case in CASES if case.rule.slots_for(torch.Size([7, 6]), case.full)]


def falling(step):
    """A learning rate that depends on the committed step, so a lost counter shows."""
    return 0.05 / (1 + step)


def train(opt, params, first, last):
    for k in range(first, last):
        feed(params, seed=60 + k)
        opt.step()


def through_a_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def parameters():
    return [p.requires_grad_() for p in tensors(SHAPES, seed=1)]


def named(params):
    return [(f"layer.{i}", p) for i, p in enumerate(params)]


def test_the_table_covers_every_rule():
    assert every_rule(CASES)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_interrupted_anywhere_it_ends_the_same(case, engine):
    def build(params):
        return case.build(named(params), engine=engine, lr=falling, max_grad_norm=1.0)

    whole = parameters()
    expected = build(whole)
    train(expected, whole, 0, STEPS)
    params = parameters()
    opt = build(params)
    for k in range(STEPS):  # at every k: save, forget everything, load, take one step more
        state, values = through_a_file(opt.state_dict()), through_a_file(params)
        params = [v.clone().detach().requires_grad_() for v in values]
        opt = build(params)
        opt.load_state_dict(state)
        assert opt.committed == k
        train(opt, params, k, k + 1)
    for p, q in zip(params, whole, strict=True):
        assert torch.equal(p, q)
        for name, slot in slots_of(expected, q).items():
            assert torch.equal(slots_of(opt, p)[name], slot), name
    assert opt.param_groups[0]["lr"] == expected.param_groups[0]["lr"] == falling(STEPS)


@pytest.mark.parametrize("case", WITH_STATE, ids=str)
def test_without_its_state_it_ends_elsewhere(case):
    """The state is not idle: the law above could fail."""
    assert WITH_STATE
    whole, params = tensors([(7, 6)], seed=1), tensors([(7, 6)], seed=1)
    train(case.build(whole, lr=0.05), whole, 0, 2)
    for k in range(2):
        train(case.build(params, lr=0.05), params, k, k + 1)
    assert not torch.equal(whole[0], params[0])
