"""Each rule equals its paper-literal twin in float64: every dialect, every option, every step."""

import itertools

import numpy as np
import pytest
import torch

import steepest
from laws.cases import CASES, Case, every_rule, feed, tensors
from reference.twins import TWINS
from steepest.contract import Slots
from steepest.rules import RULES

SHAPES = [(7, 6), (5,), (), (1,), (257, 3), (130, 140), (140, 130), (2, 3, 4), (33, 2, 40)]
LRS = [0.02, 0.05, 0.03, 0.04, 0.01, 0.01, 0.3, 0.02, 0.06, 0.005, 0.001, 0.01]
STEPS = len(LRS)
ENOUGH = 1e-12
"""Relative to the largest element; a float64 holds 16 digits and twelve steps may lose three."""


def path_of(opt, params, seed, grow=1.0):
    """The parameters after each step, as numpy arrays: [step][parameter]."""
    path = []
    for k, lr in enumerate(LRS):
        feed(params, seed + k)
        for p in params:
            p.grad *= grow
        opt.param_groups[0]["lr"] = lr
        opt.step()
        path.append([p.numpy().copy() for p in params])
    return path


def twin_path(case, start, seed, grow=1.0):
    twin = TWINS[case.rule.name, case.hyper.get("dialect")]
    grads = [[g.numpy() * grow for g in tensors([p.shape for p in start], seed + k)] for k in range(STEPS)]
    columns = [twin(p.numpy().copy(), [row[i] for row in grads], LRS, case.full) for i, p in enumerate(start)]
    return [list(row) for row in zip(*columns, strict=True)]


def assert_close(path, expected, enough=ENOUGH):
    for k, (row, expected_row) in enumerate(zip(path, expected, strict=True)):
        for a, b in zip(row, expected_row, strict=True):
            gap = np.max(np.abs(a - b)) / np.max(np.abs(b))
            assert gap <= enough, f"step {k + 1}, shape {b.shape}: off by {gap:.2g}"


def test_twins_cover_every_rule_and_dialect():
    assert every_rule(CASES)
    assert set(TWINS) == {(r.name, d) for r in RULES.values() for d in (r.dialects or [None])}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_rule_equals_its_twin(case):
    start = tensors(SHAPES, seed=1)
    params = [p.clone() for p in start]
    path = path_of(case.build(params, engine="reference"), params, seed=10)
    assert_close(path, twin_path(case, start, seed=10))


@pytest.mark.parametrize("dialect", list(RULES["adafactor"].dialects))
def test_adafactor_clips_and_floors_as_its_twin(dialect):
    """Parameters below eps2, gradients near eps1: the other branch of every max."""
    case = Case(
        RULES["adafactor"], {"dialect": dialect, "weight_decay": 0.01, "d": 1.0, "scale_parameter": True}
    )
    start = [p * 1e-5 for p in tensors(SHAPES, seed=2)]
    params = [p.clone() for p in start]
    path = path_of(case.build(params, engine="reference"), params, seed=30, grow=1e-9)
    assert_close(path, twin_path(case, start, seed=30, grow=1e-9))


@pytest.mark.parametrize("case", [c for c in CASES if c.rule.name in ("lamb", "lars")], ids=str)
def test_trust_ratio_of_a_zero_norm_is_one(case):
    """A parameter of zeros with a gradient, and a parameter with a gradient of zeros."""
    start = [torch.zeros(7, 6, dtype=torch.float64), *tensors([(7, 6), (5,)], seed=3)]
    params = [p.clone() for p in start]
    opt = case.build(params, engine="reference", lr=0.1)
    grads = [*tensors([(7, 6)], seed=4), torch.zeros(7, 6, dtype=torch.float64), torch.zeros(5).double()]
    for p, g in zip(params, grads, strict=True):
        p.grad = g
    opt.step()
    twin = TWINS[case.rule.name, case.hyper.get("dialect")]
    expected = [twin(p.numpy(), [g.numpy()], [0.1], case.full)[0] for p, g in zip(start, grads, strict=True)]
    assert_close([[p.numpy() for p in params]], [expected])


@pytest.mark.parametrize(("dialect", "smallest"), {"t5x": 128, "hf": 1, "torch": 1, "big_vision": 32}.items())
def test_adafactor_factors_from_the_size_of_its_reference(dialect, smallest):
    """min_dim_size_to_factor of t5x and big_vision; the others factor every matrix."""
    rule = RULES["adafactor"]
    h = rule.defaults(dialect)
    assert {"r", "c"} <= set(rule.slots_for(torch.Size([smallest, 2 * smallest]), h))
    assert "v" in rule.slots_for(torch.Size([smallest - 1, 500]), h)
    assert "v" in rule.slots_for(torch.Size([500]), h)


@pytest.mark.parametrize(
    ("dialect", "share"), {"t5x": 1e-4, "hf": 1e-4, "torch": 1e-4, "big_vision": 1e-3}.items()
)
def test_adafactors_memory_late_in_a_run(dialect, share):
    """The newest squared gradient counts t^-0.8; big_vision caps beta2 at 0.999: never less than 0.001."""
    h = Case(RULES["adafactor"], {"dialect": dialect, "weight_decay": 0.0}).live(t=100_000)
    slots = {"v": torch.zeros(3).double(), **({"m": torch.zeros(3).double()} if h.beta1 else {})}
    _, new = RULES["adafactor"](torch.ones(3).double(), torch.ones(3).double(), Slots(**slots), h)
    assert new["v"].tolist() == pytest.approx([share] * 3, rel=1e-12)


def test_lamb_constructor_clips_by_the_global_norm_first():
    """apex and timm divide all gradients by max(1, norm / max_grad_norm), nothing added to the norm."""
    start = tensors(SHAPES, seed=5)
    params = [p.clone() for p in start]
    opt = steepest.LAMB(params, weight_decay=0.01)
    assert opt.max_grad_norm == 1.0 and opt.clip_eps == 0.0
    case = Case(RULES["lamb"], {"dialect": "nv", "weight_decay": 0.01})
    raw = [[g.numpy() for g in tensors(SHAPES, 50 + k)] for k in range(STEPS)]
    norms = [np.sqrt(sum(np.sum(g**2) for g in row)) for row in raw]
    assert min(norms) > 1  # every step is clipped
    grads = [[g / n for g in row] for row, n in zip(raw, norms, strict=True)]
    columns = [
        TWINS["lamb", "nv"](p.numpy(), [row[i] for row in grads], LRS, case.full) for i, p in enumerate(start)
    ]
    assert_close(path_of(opt, params, seed=50), [list(r) for r in zip(*columns, strict=True)])


def test_the_comparison_can_fail():
    """One part in 10^11 is noticed, so agreement means something."""
    path = [[np.ones(3)]]
    with pytest.raises(AssertionError, match="off by"):
        assert_close(path, [[np.ones(3) * (1 + 1e-11)]])


def test_twins_differ_from_each_other():
    """No two twins give the same numbers by mistake."""
    start = tensors([(130, 140)], seed=6)[0].numpy()
    grads = [g.numpy() for g in tensors([(130, 140)] * 3, seed=7)]
    ends = {}
    for (name, dialect), twin in TWINS.items():
        case = Case(RULES[name], {"weight_decay": 0.1, **({"dialect": dialect} if dialect else {})})
        ends[name, dialect] = twin(start, grads, [0.01, 0.02, 0.03], case.full)[-1]
    alike = [(a, b) for a, b in itertools.combinations(ends, 2) if np.array_equal(ends[a], ends[b])]
    assert alike == [(("lamb", "nv"), ("lamb", "paper"))]  # which differ where nothing is decayed
