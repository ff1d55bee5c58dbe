"""Law: the bytes a rule declares are the bytes an optimizer allocates, from construction and for ever."""

import pytest
import torch

import steepest
from laws.cases import (
    CASES,
    CODED,
    COMBINATIONS,
    LARGE,
    SHAPES,
    choice,
    every_rule,
    feed,
    slots_of,
    tensors,
)
from steepest.codecs import codec_bytes, param_codec, slot_codec
from steepest.contract import compute_dtype, expand
from steepest.rules import RULES

WIDTH = {torch.float64: 8, torch.float32: 4, torch.bfloat16: 4, torch.float16: 4}
"""Bytes of one slot element: a parameter of two bytes keeps its slots in float32."""


def predicted(case, params):
    sizes = [case.rule.slots_for(p.shape, case.full).values() for p in params]
    width = compute_dtype(params[0]).itemsize
    return width * sum(shape.numel() for shapes in sizes for shape in shapes)


def test_the_table_covers_every_rule():
    assert every_rule(CASES) and every_rule([case for case, _, _ in COMBINATIONS])


@pytest.mark.parametrize("dtype", WIDTH, ids=lambda t: str(t).removeprefix("torch."))
@pytest.mark.parametrize("case", CASES, ids=str)
def test_predicted_bytes_are_allocated_bytes(case, dtype):
    params = [p.requires_grad_() for p in tensors([*SHAPES, LARGE], seed=1, dtype=dtype)]
    opt = case.build(params)
    expected = predicted(case, params)
    for _ in range(2):
        held = [t for p in params for t in slots_of(opt, p).values()]
        assert opt.state_bytes() == sum(t.untyped_storage().nbytes() for t in held) == expected
        assert all(t.element_size() == WIDTH[dtype] for t in held)
        feed(params, seed=2)
        opt.step()


@pytest.mark.parametrize(("case", "name", "param"), COMBINATIONS, ids=lambda x: str(x or "plain"))
def test_predicted_bytes_of_codecs_are_allocated_bytes(case, name, param):
    dtype = torch.bfloat16 if param else torch.float32
    params = [p.requires_grad_() for p in tensors(CODED, seed=1, dtype=dtype)]
    state, hyper, expected = choice(case, name, CODED), vars(expand(case.full, 1)), 0
    for p in params:
        for slot, shape in case.rule.slots_for(p.shape, case.full).items():
            expected += codec_bytes(slot_codec(state, slot, case.rule.slots[slot], p.shape, hyper), shape)
        expected += codec_bytes(param_codec(param, dtype), p.shape) - p.numel() * p.element_size()
    opt = case.build(params, state=state, param=param, engine="foreach")
    for _ in range(2):
        held = [t for p in params for t in slots_of(opt, p).values()]
        assert opt.state_bytes() == sum(t.untyped_storage().nbytes() for t in held) == expected
        feed(params, seed=2)
        opt.step()


def test_known_sizes():
    """Counted by hand, for one float32 matrix of 128 x 256: 32,768 elements, 384 rows and columns."""
    full, means = 4 * 128 * 256, 4 * (128 + 256)
    known = {
        "sgd": 0,
        "sgd-momentum=0.9": full,
        "rmsprop": full,
        "rmsprop-centered-momentum=0.9": 3 * full,
        "adagrad": full,
        "adam": 2 * full,
        "adamw": 2 * full,
        "adamw-amsgrad": 3 * full,
        "adafactor-t5x": means,
        "adafactor-hf-beta1=0.9": means + full,
        "adafactor-torch": means,
        "adafactor-big_vision": means,
        "lamb-nv": 2 * full,
        "lars-momentum=0.9": full,
        "lion": full,
        "signum": 0,
        "signum-momentum=0.9": full,
    }
    by_name = {str(case): case for case in CASES}
    for name, size in known.items():
        assert by_name[name].build([torch.zeros(128, 256, requires_grad=True)]).state_bytes() == size, name


@pytest.mark.parametrize("rule", RULES.values(), ids=lambda r: r.name)
def test_every_declared_slot_is_kept_by_some_case(rule):
    """No slot is dead, and the table of cases reaches every one of them."""
    cases = [case for case in CASES if case.rule is rule]
    kept = [rule.slots_for(torch.Size(shape), case.full) for case in cases for shape in (LARGE, (5,))]
    assert set().union(*kept) == set(rule.slots)


def test_known_sizes_of_codecs():
    """Counted by hand, for one matrix of 128 x 256: 32,768 elements in 256 blocks."""
    m = v = 128 * 256 + 4 * 256
    sizes = {
        ("fp32", None): 2 * 4 * 128 * 256,
        ("bf16", None): 2 * 2 * 128 * 256,
        ("int8", None): m + v,
        ("int4", None): m + v - 128 * 256,
        ("int8", "split24"): m + v + 128 * 256,
        ("int8", "kahan"): m + v + 2 * 128 * 256,
    }
    for (state, param), size in sizes.items():
        p = torch.zeros(128, 256, dtype=torch.bfloat16, requires_grad=True)
        assert steepest.AdamW([p], state=state, param=param).state_bytes() == size
