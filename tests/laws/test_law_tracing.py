"""Law: a rule is traced once, for ever. Live hyperparameters change what it computes, never the trace."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from laws.cases import CASES, LARGE, Case, bucket, every_rule, tensors
from laws.recorder import Asked, Graph
from steepest.apply import advance
from steepest.contract import Live, Slots, expand
from steepest.engines import ENGINES
from steepest.rules import RULES

SHAPES = [(7, 6), LARGE, (5,), ()]
CONDITIONS = ("scale", "clip_value", "l2")
"""What the optimizer object adds to the live hyperparameters."""


def live_names(case: Case) -> set[str]:
    """Live hyperparameters as the rule reads them (`betas` is beta1 and beta2), and the step."""
    live = {name: case.full[name] for name, hyper in case.rule.hyper.items() if hyper.live}
    return set(vars(expand(live, 1)))


def settings(case: Case) -> list[Live]:
    """Three moments of a training: its first step, a later one with everything moved, one without decay."""
    first = case.live(t=1)
    first.scale, first.clip_value, first.l2 = 0.5, 1.5, first.weight_decay
    later = Live(**vars(first))
    for name in live_names(case) - {"t"}:
        value = getattr(first, name)
        setattr(later, name, 2.0 if math.isinf(value) else 0.5 * value + 0.01)
    later.t, later.scale, later.clip_value, later.l2 = 7, 0.8, 0.9, later.weight_decay
    bare = Live(**{**vars(later), "t": 3, "weight_decay": 0.0, "l2": 0.0})
    return [first, later, bare]


def operands(case: Case, shape: tuple[int, ...]) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    p, g = tensors([shape, shape], seed=1)
    slots = case.rule.slots_for(p.shape, case.full)
    held = {name: t.abs() for name, t in zip(slots, tensors(list(slots.values()), seed=2), strict=True)}
    return p, g, held


def trace(case: Case, shape: tuple[int, ...]) -> tuple[Graph, dict[str, object]]:
    p, g, held = operands(case, shape)
    graph = Graph()
    s = Slots(**{name: graph.leaf(f"s.{name}", slot.shape) for name, slot in held.items()})
    h = case.live()
    for name in (*live_names(case), *CONDITIONS):
        setattr(h, name, graph.leaf(name))
    new_p, new_s = advance(case.rule, graph.leaf("p", p.shape), graph.leaf("g", g.shape), s, h)
    return graph, {"p": new_p, **new_s}


def number(x: float) -> Tensor:
    return torch.tensor(float(x), dtype=torch.float64)


def test_the_table_covers_every_rule():
    assert every_rule(CASES)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_one_trace_serves_every_setting(case):
    for shape in SHAPES:
        graph, outputs = trace(case, shape)
        p, g, held = operands(case, shape)
        assert {"p", "g", "scale", "clip_value"} <= graph.used()
        for h in settings(case):
            numbers = {name: number(getattr(h, name)) for name in (*live_names(case), *CONDITIONS)}
            leaves = {"p": p, "g": g, **{f"s.{k}": v for k, v in held.items()}, **numbers}
            got = graph.evaluate(outputs, leaves)
            expected_p, expected = p.clone(), {k: v.clone() for k, v in held.items()}
            slots = {k: [v] for k, v in expected.items()}
            ENGINES["reference"]().run([bucket(case.rule, [expected_p], [g], slots, h)])
            for name, want in {"p": expected_p, **expected}.items():
                torch.testing.assert_close(got[name], want, rtol=1e-12, atol=1e-14, msg=f"{name} at {h}")


@pytest.mark.parametrize("rule", RULES.values(), ids=lambda r: r.name)
def test_no_live_hyperparameter_is_idle(rule):
    """Each is read by the trace of some case, and what is read is declared."""
    cases = [case for case in CASES if case.rule is rule]
    used = set().union(*(trace(case, (7, 6))[0].used() for case in cases))
    declared = live_names(cases[0])
    ignored = {"t"} if "t" not in used else set()  # sign descent never asks for the step
    assert declared - ignored <= used | ({"weight_decay"} if rule.decay == "l2" else set())


@pytest.mark.parametrize("ask", [bool, float, int, len, list, lambda x: x[0]])
def test_the_recorder_refuses_to_be_read(ask):
    with pytest.raises(Asked):
        ask(Graph().leaf("p"))


def test_a_rule_that_branches_on_a_live_number_is_caught():
    case = next(c for c in CASES if c.rule.name == "adamw")

    def branching(p, g, s, h):
        return (g if h.lr > 0.1 else -g), {}

    with pytest.raises(Asked):
        trace(Case(replace(case.rule, formula=branching), case.hyper), (5,))
