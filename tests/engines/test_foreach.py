"""The foreach engine: results land in place, one program serves every live value, any rule runs."""

import pytest
import torch

import steepest
from laws.cases import CASES, bucket
from steepest import Optimizer
from steepest.contract import Hyper, Live, Scope, zeros
from steepest.engines import foreach, reference
from steepest.engines.program import LISTS, Program
from steepest.kernels.trace import ELEMENTWISE, trace
from steepest.ops import lerp, sqrt, where
from steepest.rules import RULES
from steepest.rules.declare import rule

LR, WEIGHT_DECAY = Hyper(1e-3, low=0.0), Hyper(0.0, low=0.0)
SHAPES = [(40, 7), (3,), (), (0,), (129,)]


def live(r, **values):
    pairs = {"beta1": 0.9, "beta2": 0.99, "eps1": 1e-30, "eps2": 1e-3}
    own = {k: v for k, v in r.defaults().items() if not isinstance(v, tuple)}
    return Live(**{"t": 3, "scale": None, "clip_value": None, "l2": None, **pairs, **own, **values})


def both(r, slots=("m",), *, h=None, steps=2, dtype=torch.float32):
    """Parameters and slots after some steps under the reference and under foreach."""
    out = []
    for run in (reference.run, foreach.run):
        generator = torch.Generator().manual_seed(0)
        p = [torch.randn(shape, generator=generator).to(dtype) for shape in SHAPES]
        own = torch.float64 if dtype == torch.float64 else torch.float32
        s = {name: [torch.rand(shape, generator=generator, dtype=own) for shape in SHAPES] for name in slots}
        for _ in range(steps):
            g = [torch.randn(shape, generator=generator).to(dtype) for shape in SHAPES]
            kept = [x.clone() for x in g]
            run(bucket(r, p, g, s, h or live(r)))
            assert all(torch.equal(a, b) for a, b in zip(g, kept, strict=True)), "a gradient was changed"
        out.append([*p, *(x for column in s.values() for x in column)])
    return out


def make(formula, slots=("m",), scope=Scope.ELEMENT):
    return rule(
        paper="none", scope=scope, slots=dict.fromkeys(slots, zeros), hyper={"lr": LR}, decay="inside"
    )(formula)


FORMULAS = {
    "landing after a late read": (
        lambda p, g, s, h: (lerp(s.m, g, 0.1) + s.m, {"m": lerp(s.m, g, 0.2)}),
        ("m",),
    ),
    "early write, late read": (lambda p, g, s, h: (s.m * lerp(s.m, g, 0.1), {"m": g * 2.0}), ("m",)),
    "slots swapped": (lambda p, g, s, h: (g, {"a": s.b, "b": s.a}), ("a", "b")),
    "a slot made of the other": (lambda p, g, s, h: (g, {"a": s.b + g, "b": s.a * 2.0}), ("a", "b")),
    "one value in two slots": (
        lambda p, g, s, h: (lerp(s.a, g, 0.1), {"a": g * g, "b": g * g}),
        ("a", "b"),
    ),
    "the parameter kept": (lambda p, g, s, h: (g * s.m, {"m": p}), ("m",)),
    "the gradient kept": (lambda p, g, s, h: (s.m, {"m": g}), ("m",)),
    "a slot left alone": (lambda p, g, s, h: (g + s.m, {}), ("m",)),
    "whole operands chosen": (
        lambda p, g, s, h: (where(h.t > 5, g, s.m), {"m": where(h.t > 1, g, s.m)}),
        ("m",),
    ),
    "numbers first": (lambda p, g, s, h: (1.0 - g + 2.0 / (3.0 - s.m) + 2.0**g, {}), ("m",)),
    "masks": (
        lambda p, g, s, h: ((g > 0) * g + where((g > p) | (g <= 0.1), -g, abs(p)), {"m": s.m / 1}),
        ("m",),
    ),
    "a mask as numbers": (lambda p, g, s, h: ((g > 0) * 0.1 + (p > 0) * h.lr + g, {}), ("m",)),
    "a branch on a tensor": (lambda p, g, s, h: (g if g.numel() > 2 else -g, {"m": g}), ("m",)),
    "an unknown operation": (
        lambda p, g, s, h: (torch.erf(g), {"m": torch.cumsum(g.view(-1), 0).view_as(g)}),
        ("m",),
    ),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("piece", [16, 2**19])
@pytest.mark.parametrize("name", FORMULAS)
def test_any_formula_equals_the_reference_bitwise(name, piece, dtype, monkeypatch):
    monkeypatch.setattr(foreach, "PIECE", piece)
    formula, slots = FORMULAS[name]
    scope = Scope.TENSOR if name in ("a branch on a tensor", "an unknown operation") else Scope.ELEMENT
    expected, got = both(make(formula, slots, scope), slots, dtype=dtype)
    assert all(torch.equal(a, b) for a, b in zip(expected, got, strict=True))


def test_one_program_serves_every_live_value_and_a_fixed_one_makes_another():
    r = RULES["adamw"]
    first = foreach.find_program(r, live(r), ["m", "v"])
    assert first is foreach.find_program(r, live(r, lr=0.5, t=9, weight_decay=0.0, beta1=0.0), ["m", "v"])
    assert first is not foreach.find_program(r, live(r, scale=0.5), ["m", "v"])
    assert first is not foreach.find_program(r, live(r), ["m", "v", "x"])
    assert first is not foreach.find_program(RULES["adam"], live(RULES["adam"]), ["m", "v"])


@pytest.mark.parametrize(
    ("name", "slots", "scratch"),
    [
        ("sgd", [], 0),
        ("sgd", ["m"], 0),
        ("rmsprop", ["v"], 1),
        ("adagrad", ["v"], 1),
        ("adam", ["m", "v"], 2),
        ("adamw", ["m", "v"], 2),
        ("lion", ["m"], 1),
    ],
)
def test_nothing_is_copied_and_few_temporaries_are_needed(name, slots, scratch):
    program = Program(trace(RULES[name], live(RULES[name]), slots), slots)
    assert program.copies == [] and program.scratch == scratch


def test_temporaries_die_with_their_last_read():
    r = RULES["adamw"]
    program = Program(trace(r, live(r), ["m", "v"]), ["m", "v"])
    values, steps = program.bind(live(r), torch.float32)
    columns = [[torch.ones(3), torch.ones(2)] for _ in range(4)]
    program.run_lists(values, steps, columns)
    held = [x for x in values if isinstance(x, (list, tuple))]
    assert all(any(x is c for c in columns) for x in held)


def test_a_step_that_multiplies_by_one_is_left_out():
    r = RULES["adamw"]
    program = Program(trace(r, live(r), ["m", "v"]), ["m", "v"])
    names = [
        [s.op.__name__ for s in program.bind(live(r, weight_decay=wd), torch.float32)[1]] for wd in (0.0, 0.1)
    ]
    assert names[0].count("keep") == 1 and names[1].count("keep") == 0


def test_every_list_operation_is_in_the_vocabulary():
    assert LISTS
    assert {f for f in LISTS if f.__module__ != "steepest.engines.program"} <= ELEMENTWISE | {
        torch.linalg.vector_norm
    }


def test_an_error_in_a_formula_is_the_formulas_own():
    r = make(lambda p, g, s, h: (sqrt(g) * h.misspelt, {}))
    with pytest.raises(AttributeError, match="misspelt"):
        foreach.run(bucket(r, [torch.ones(2)], [torch.ones(2)], {"m": [torch.ones(2)]}, live(r)))


def test_a_rule_that_cannot_be_traced_trains_like_any_other():
    @rule(
        paper="none",
        scope=Scope.TENSOR,
        slots={"m": zeros},
        hyper={"lr": LR, "weight_decay": WEIGHT_DECAY},
        apply="descend",
    )
    def odd(p, g, s, h):
        return (torch.erf(g) if p.ndim else g), {"m": g}

    weights = {}
    for engine in steepest.engines.ENGINES:
        p = torch.linspace(-1, 1, 7).requires_grad_()
        opt = Optimizer([p], odd, lr=0.1, engine=engine)
        (p**2).sum().backward()
        opt.step()
        weights[engine] = p.detach()
    assert torch.equal(weights["reference"], weights["foreach"])


@pytest.mark.parametrize("case", CASES, ids=str)
def test_no_rule_of_the_library_falls_back(case):
    slots = list(case.rule.slots_for(torch.Size([130, 129]), case.full))
    for name in ("scale", "clip_value"):
        h = case.live(t=2)
        setattr(h, name, 0.5)
        assert foreach.find_program(case.rule, h, slots) is not None
