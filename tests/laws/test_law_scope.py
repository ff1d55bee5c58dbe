"""Law: a rule's scope is what it really sees. One gradient element is changed; which outputs move?"""

import pytest

import steepest.engines.foreach
from laws.cases import CASES, LARGE, every_rule, feed, slots_of, tensors
from steepest.contract import Scope
from steepest.engines import ENGINES
from steepest.rules import RULES

SHAPES = {Scope.ELEMENT: [(6, 5), (4,)], Scope.TENSOR: [(6, 5), LARGE, (4,)]}
"""The large matrix is for the dialect that factors nothing smaller."""
AT = 3


def moved(case, engine, which):
    """For each parameter, where it and its slots differ after element AT of one gradient was changed."""

    def run(change):
        params = tensors(SHAPES[case.rule.scope], seed=1)
        opt = case.build(params, engine=engine, lr=0.01)
        for k in range(2):
            feed(params, seed=2 + k)
            if change and k == 1:
                g = params[which].grad.view(-1)
                g[AT] = -100 * g[AT]  # large enough to turn any sign
            opt.step()
        return [{"p": p, **slots_of(opt, p)} for p in params]

    return [
        {name: (a[name] != b[name]).reshape(-1).nonzero().flatten().tolist() for name in a}
        for a, b in zip(run(False), run(True), strict=True)
    ]


def test_the_table_covers_every_rule():
    assert every_rule(CASES)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_nothing_beyond_the_scope_moves(case, engine, monkeypatch):
    monkeypatch.setattr(steepest.engines.foreach, "PIECE", 8)
    for which in range(len(SHAPES[case.rule.scope])):
        for i, where in enumerate(moved(case, engine, which)):
            if i != which:
                assert not any(where.values()), f"parameter {i} saw the gradient of {which}"
            else:
                assert AT in where["p"], "the element itself did not move"
                if case.rule.scope is Scope.ELEMENT:
                    assert all(found in ([], [AT]) for found in where.values())


@pytest.mark.parametrize("rule", [r for r in RULES.values() if r.scope is Scope.TENSOR], ids=lambda r: r.name)
def test_tensor_scope_is_needed(rule):
    """A rule that claims to need the whole tensor does, under some dialect or option: else it is ELEMENT."""
    seen = [moved(case, "reference", 0)[0]["p"] for case in CASES if case.rule is rule]
    assert any(len(where) > 1 for where in seen)


def test_the_measure_sees_a_rule_that_looks_at_its_neighbours():
    case = next(c for c in CASES if c.rule.name == "lamb")
    assert len(moved(case, "reference", 0)[0]["p"]) > 1
