"""Law: every engine gives the reference engine's numbers.

Foreach does to the last bit. Kernels do in float64, where foreach serves for them, and otherwise within the
bounds stated here: they contract a product and a sum into one rounding, multiply by the inverse of a number
instead of dividing, and add up sums in another order.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import steepest.engines.foreach
from laws.cases import CASES, LARGE, SHAPES, every_rule, feed, slots_of, tensors
from steepest.contract import Scope
from steepest.engines import ENGINES

OTHERS = [name for name in ENGINES if name != "reference"]
TYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
GUARDED = {"max_grad_norm": 1.0, "max_grad_value": 0.05, "maximize": True}
WAYS = [(64, {}), (steepest.engines.foreach.PIECE, GUARDED)]
"""Piece size of the foreach engine, options of the optimizer."""
CROSSING = [(63,), (64,), (65,), (3, 257), (500,)]
"""Sizes about and above a piece of 64 elements."""


def odd_layouts(dtype):
    """Parameters that do not lie flat in memory: transposed, strided, channels last."""
    a, b, c = tensors([(8, 13), (20, 7), (2, 3, 4, 5)], seed=9, dtype=dtype)
    return [a.t(), b[::2], c.to(memory_format=torch.channels_last)]


def trajectory(case, engine, dtype, options):
    large = [LARGE] if case.rule.scope is Scope.TENSOR else []
    params = [*tensors([*SHAPES, *CROSSING, *large], seed=1, dtype=dtype), *odd_layouts(dtype)]
    opt = case.build(params, engine=engine, lr=0.01, **options)
    for k in range(3):
        feed(params, seed=40 + k)
        params[0].grad = params[0].grad.t().contiguous().t()  # a gradient laid out unlike its parameter
        params[1].grad = None if k == 1 else params[1].grad  # a parameter that misses a step
        opt.param_groups[0]["lr"] = 0.01 * (k + 1)
        opt.step()
    return [(p, slots_of(opt, p)) for p in params]


FLOAT32 = 3e-6
"""What a kernel may differ by after three steps, as a share of the tensor's largest element."""
ROUNDINGS = {torch.float32: FLOAT32, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}
"""The same for each type of parameter: in a narrow one a difference may fall on the edge of a rounding,"""
FLIPPED = 0.01
"""which happens to few elements."""


def same(a, b, engine, of):
    """Whether `a` is what this engine may give for the reference's `b`, of a parameter of type `of`."""
    if torch.equal(a, b) or (a.numel() == 0 and b.numel() == 0):
        return True
    if engine != "fused" or of == torch.float64:
        return False
    difference = (a.double() - b.double()).abs()
    largest = b.double().abs().max().item()
    few = a.dtype == torch.float32 or (a != b).double().mean() < max(FLIPPED, 1.5 / a.numel())
    return bool(few and (difference <= ROUNDINGS[of] * max(largest, 1e-30)).all())


def test_the_table_covers_every_rule_and_engine():
    assert every_rule(CASES) and OTHERS and "reference" in ENGINES


@pytest.mark.parametrize("dtype", TYPES, ids=lambda t: str(t).removeprefix("torch."))
@pytest.mark.parametrize("engine", OTHERS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_engine_equals_the_reference(case, engine, dtype, monkeypatch):
    for piece, options in WAYS if dtype.itemsize > 2 else [(64, GUARDED)]:
        monkeypatch.setattr(steepest.engines.foreach, "PIECE", piece)
        expected = trajectory(case, "reference", dtype, options)
        got = trajectory(case, engine, dtype, options)
        for (p, slots), (q, reference_slots) in zip(got, expected, strict=True):
            assert same(p, q, engine, dtype), f"piece {piece}, {options}, parameter {tuple(p.shape)}"
            assert slots.keys() == reference_slots.keys()
            for name, slot in slots.items():
                assert same(slot, reference_slots[name], engine, dtype), (
                    f"piece {piece}, {options}, slot {name}"
                )


@settings(max_examples=80)
@given(
    case=st.sampled_from(CASES),
    engine=st.sampled_from(OTHERS),
    dtype=st.sampled_from(TYPES),
    piece=st.integers(1, 100),
    shapes=st.lists(st.lists(st.integers(0, 12), max_size=4), min_size=1, max_size=8),
    seed=st.integers(0, 99),
)
def test_engine_equals_the_reference_on_any_shapes(case, engine, dtype, piece, shapes, seed):
    """Also for pieces that end between two vector lanes, and for empty tensors among others."""

    def run(name):
        params = tensors(shapes, seed, dtype)
        opt = case.build(params, engine=name, lr=0.01)
        for k in range(2):
            feed(params, seed=seed + 1 + k)
            opt.step()
        return [t for p in params for t in (p, *slots_of(opt, p).values())]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(steepest.engines.foreach, "PIECE", piece)
        for a, b in zip(run(engine), run("reference"), strict=True):
            assert same(a, b, engine, dtype)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_low_precision_parameters_are_computed_in_float32(case, engine):
    """One step of a bfloat16 parameter is the float32 step of the same numbers, rounded once."""
    start, grad = tensors([(40, 33)] * 2, seed=3, dtype=torch.bfloat16)
    narrow, wide = start.clone(), start.float()
    narrow.grad, wide.grad = grad.clone(), grad.float()
    opts = [case.build([p], engine=engine, lr=0.01) for p in (narrow, wide)]
    for opt in opts:
        opt.step()
    assert torch.equal(narrow, wide.bfloat16())
    rounded, exact = (slots_of(opt, p) for opt, p in zip(opts, (narrow, wide), strict=True))
    for name, slot in rounded.items():
        assert slot.dtype == torch.float32 and torch.equal(slot, exact[name])
