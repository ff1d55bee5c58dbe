"""Law: every rule runs under every codec, with the same bits on eager engines and after a restart."""

import io

import pytest
import torch

from laws.cases import (
    CASES,
    CODED,
    COMBINATIONS,
    MATRIX,
    PARAMS,
    choice,
    every_rule,
    legal,
    slots_of,
    tensors,
)
from steepest import SteepestError
from steepest.codecs import SLOT_NAMES, decode, param_codec, unpack

STEPS = 3

SLOT_BOUNDS = {
    **{"fp32": 1e-6, "bf16": 0.06, "fp16": 0.03, "fp8": 0.15},
    **{"int8": 0.12, "int4": 0.4, "factored": 0.4},
}
"""How far three steps may end from float32's, as a part of the way they went; about twice the farthest."""

PARAM_BOUNDS = {None: 0.0, "bf16": 2.0**-8, "split24": 2.0**-16, "split32": 0.0, "kahan": 2.0**-16}
"""How far each step may round a parameter, as a part of its norm."""


REFUSED = [
    (case, name, slot)
    for case in {(case.rule.name, *legal(case, "fp32", CODED)): case for case in CASES}.values()
    for name in SLOT_NAMES
    for slot, ok in legal(case, name, [MATRIX]).items()
    if not ok
]


def parameters(param):
    dtype = torch.bfloat16 if param else torch.float32
    return [p.requires_grad_() for p in tensors(CODED, seed=1, dtype=dtype)]


def train(opt, params, first=0, last=STEPS):
    for k in range(first, last):
        for p, g in zip(params, tensors(CODED, seed=40 + k, dtype=torch.bfloat16), strict=True):
            p.grad = g.to(p.dtype)
        opt.step()


def through_a_file(x):
    file = io.BytesIO()
    torch.save(x, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def value(opt, p, param):
    """The parameter as its codec means it."""
    codec = param_codec(param, p.dtype)
    held = {"p": p.detach(), **slots_of(opt, p)}
    parts = {"p" if not part else f"p.{part}": of for part, of in codec.parts.items()}
    return decode(codec, "p", {name: unpack(held[name], of, p.shape) for name, of in parts.items()})


def same(opt, params, other, others):
    for p, q in zip(params, others, strict=True):
        assert torch.equal(p, q), tuple(p.shape)
        for name, t in slots_of(opt, p).items():
            assert torch.equal(t, slots_of(other, q)[name]), (tuple(p.shape), name)


def test_the_table_covers_every_rule_and_codec():
    assert every_rule([case for case, _, _ in COMBINATIONS]) and len(COMBINATIONS) > 200 and REFUSED
    for rule in {case.rule.name for case in CASES}:
        met = [(name, param) for case, name, param in COMBINATIONS if case.rule.name == rule]
        assert {name for name, _ in met} == set(SLOT_NAMES) and {param for _, param in met} == set(PARAMS)


@pytest.mark.parametrize(("case", "name", "param"), COMBINATIONS, ids=lambda x: str(x or "plain"))
def test_a_rule_under_a_codec(case, name, param):
    options = {"lr": 0.01, "state": choice(case, name, CODED), "param": param}
    params = parameters(param)
    start = [p.detach().float().clone() for p in params]
    opt = case.build(params, engine="reference", seed=7, **options)
    train(opt, params)

    others = parameters(param)
    first = case.build(others, engine="foreach", seed=7, **options)
    train(first, others, last=1)
    state, others = through_a_file((first.state_dict(), [p.detach() for p in others]))
    second = case.build(others, engine="foreach", **options)  # the seed is the saved one
    second.load_state_dict(state)
    train(second, others, first=1)
    same(opt, params, second, others)

    wide = [p.clone() for p in start]
    train(case.build(wide, engine="foreach", lr=0.01), wide)
    slots = SLOT_BOUNDS[name.removesuffix("_rn")]
    for p, exact, before in zip(params, wide, start, strict=True):
        got = value(opt, p, param)
        assert got.isfinite().all()
        allowed = STEPS * PARAM_BOUNDS[param] * exact.norm() + slots * (exact - before).norm()
        assert (got - exact).norm() <= allowed, tuple(p.shape)


@pytest.mark.parametrize(("case", "name", "slot"), REFUSED, ids=str)
def test_what_cannot_work_is_refused_at_construction(case, name, slot):
    with pytest.raises(SteepestError, match=f"^group 0: .*{slot}"):
        case.build([torch.zeros(MATRIX, requires_grad=True)], state={slot: name})
