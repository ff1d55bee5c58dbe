"""A rule's trace: typed, free of repetition, blind to live numbers, honest about what it cannot do."""

import pytest
import torch

from steepest.contract import Hyper, Live, Slot
from steepest.kernels.trace import Kind, Untraceable, structure, trace
from steepest.ops import lerp, mean_to, norm, sqrt, where
from steepest.rules import RULES
from steepest.rules.declare import rule

LR = Hyper(1e-3, low=0.0)
FLAG = Hyper(False, live=False, choices=(False, True))


def make(formula, **options):
    return rule(paper="none", scope=0, slots={"m": Slot()}, hyper={"lr": LR}, decay="inside", **options)(
        formula
    )


def live(**values):
    return Live(**{"t": 2, "lr": 0.1, "scale": None, "clip_value": None, "l2": None, **values})


def ops(graph):
    return [getattr(node.op, "__name__", str(node.op)) for node in graph.nodes]


def test_common_subexpressions_are_computed_once_and_unused_ones_never():
    def formula(p, g, s, h):
        unused = sqrt(g) + h.lr * 3
        assert unused is not None
        return g * g + g * g, {"m": lerp(s.m, g * g, 1 - h.lr)}

    graph = trace(make(formula), live(), ["m"])
    assert ops(graph).count("mul") == 1 and "sqrt" not in ops(graph)
    values = [node.value for node in graph.nodes]
    assert values == sorted(values) and len(values) == len(set(values))


def test_numbers_are_hoisted_and_kinds_are_known():
    def formula(p, g, s, h):
        factor = sqrt(1 - 0.9**h.t) / where(h.t > 1, h.lr, 1.0)
        return g * factor * norm(p) + mean_to(g, s.r), {"r": s.r * 2.0}

    r = rule(
        paper="none",
        scope=1,
        slots={"r": Slot(shape=lambda full, h: full[:1])},
        hyper={"lr": LR},
        decay="inside",
    )(formula)
    graph = trace(r, live(weight_decay=0.0), ["r"])
    kinds = {n: graph.kinds[node.value] for n, node in zip(ops(graph), graph.nodes, strict=True)}
    assert {kinds[n] for n in ("pow", "sqrt", "truediv", "choose", "sub")} == {Kind.HOST}
    assert kinds["linalg_vector_norm"] is kinds["mean_to"] is Kind.PART
    assert graph.kinds[graph.outputs["p"]] is Kind.FULL and graph.kinds[graph.outputs["s.r"]] is Kind.PART


def test_a_value_kept_in_another_place_is_copied_first():
    graph = trace(make(lambda p, g, s, h: (g, {"m": p})), live(), ["m"])
    assert "clone" in ops(graph)
    unchanged = trace(make(lambda p, g, s, h: (g, {"m": s.m})), live(), ["m"])
    assert "clone" not in ops(unchanged) and unchanged.outputs["s.m"] == unchanged.inputs["s.m"]


@pytest.mark.parametrize(
    "formula",
    [
        lambda p, g, s, h: (g if h.t > 1 else -g, {}),
        lambda p, g, s, h: (g * float(h.lr), {}),
        lambda p, g, s, h: (torch.erf(g), {}),
        lambda p, g, s, h: (g.abs(), {}),
        lambda p, g, s, h: (g.reshape(p.shape), {}),
        lambda p, g, s, h: (torch.max(g), {"other": g}),
        lambda p, g, s, h: (g * 1j, {}),
        lambda p, g, s, h: (g, {"m": h.lr}),
    ],
)
def test_what_cannot_be_traced_says_so(formula):
    with pytest.raises((Untraceable, AttributeError)):
        trace(make(formula), live(), ["m"])


@pytest.mark.parametrize("name", RULES)
def test_structure_is_what_is_no_live_number(name):
    r = RULES[name]
    h = live(**{k: v for k, v in r.defaults().items() if not isinstance(v, tuple)})
    fixed = structure(r, h)
    declared = {k for k, hyper in r.hyper.items() if not hyper.live}
    assert declared & set(vars(h)) <= set(fixed) and {"t", "lr"}.isdisjoint(fixed)
    assert {"scale", "clip_value", "l2"} <= set(fixed)
    assert "l2" not in structure(r, live(l2=0.1))


def test_a_flag_is_fixed_and_shapes_the_graph():
    def formula(p, g, s, h):
        return (g * g if h.square else g), {}

    r = rule(paper="none", scope=0, hyper={"lr": LR, "square": FLAG}, decay="inside")(formula)
    assert len(trace(r, live(square=True), []).nodes) == len(trace(r, live(square=False), []).nodes) + 1
