"""Law: kernels give the reference's numbers under every codec, but for roundings that fall otherwise.

A kernel rounds a product and a sum once (see the law of engines), so a value on the edge between two codes
may be stored as the other one. That happens to few elements; all others agree to float32.
"""

import pytest
import torch

import steepest
from laws.cases import CODED, COMBINATIONS, choice, every_rule, slots_of, tensors
from laws.test_law_codecs import STEPS, parameters, through_a_file, train, value
from steepest.engines import classify

FEW = 0.01
"""The part of a tensor's elements that may have fallen to the other side of a rounding."""
CLOSE = 3e-6
"""How near all others are, as a part of the tensor's largest element."""


def nearly(a, b, of):
    """Whether all but few elements are close."""
    if not a.numel():
        return True
    far = (a.double() - b.double()).abs() > CLOSE * max(b.double().abs().max().item(), 1e-30)
    return far.double().mean().item() <= max(FEW, 1.5 / of)


def made(case, engine, name, param, telemetry=False):
    params = parameters(param)
    options = {"lr": 0.01, "state": choice(case, name, CODED), "param": param, "telemetry": telemetry}
    return case.build(params, engine=engine, seed=7, max_grad_norm=3.0, **options), params


def run(case, engine, name, param, telemetry=False):
    opt, params = made(case, engine, name, param, telemetry)
    train(opt, params)
    return opt, params


def test_the_table_covers_every_rule():
    assert every_rule([case for case, _, _ in COMBINATIONS])


@pytest.mark.parametrize(("case", "name", "param"), COMBINATIONS, ids=lambda x: str(x or "plain"))
def test_kernels_equal_the_reference_but_for_few_roundings(case, name, param):
    opt, params = run(case, "fused", name, param)
    served, rest = classify(opt.buckets(), "cpu")
    assert served and not rest  # nothing here is passed on to another engine
    other, others = run(case, "reference", name, param)
    for p, q in zip(params, others, strict=True):
        assert nearly(value(opt, p, param), value(other, q, param), p.numel()), tuple(p.shape)


@pytest.mark.parametrize(("case", "name", "param"), COMBINATIONS, ids=lambda x: str(x or "plain"))
def test_every_step_from_one_state_stores_the_same_but_for_few_roundings(case, name, param):
    """A rounding that falls otherwise moves what follows from it in later steps: of a block's largest element
    the scale, and so all its codes. Here every step begins with what the reference has stored."""
    (opt, params), (other, others) = (made(case, engine, name, param) for engine in ("fused", "reference"))
    for k in range(STEPS):
        opt.load_state_dict(other.state_dict())
        for p, q in zip(params, others, strict=True):
            p.data.copy_(q)
        train(opt, params, first=k, last=k + 1)
        train(other, others, first=k, last=k + 1)
        for p, q in zip(params, others, strict=True):
            assert nearly(value(opt, p, param), value(other, q, param), p.numel()), (k, tuple(p.shape))
            for slot, stored in slots_of(opt, p).items():
                if not slot.startswith("p."):
                    assert nearly(stored, slots_of(other, q)[slot], stored.numel()), (k, tuple(p.shape), slot)


@pytest.mark.parametrize(("case", "name", "param"), COMBINATIONS[::3], ids=lambda x: str(x or "plain"))
def test_a_restart_changes_no_bit(case, name, param):
    opt, params = run(case, "fused", name, param)
    others = parameters(param)
    options = {"lr": 0.01, "state": choice(case, name, CODED), "param": param, "max_grad_norm": 3.0}
    first = case.build(others, engine="fused", seed=7, **options)
    train(first, others, last=1)
    state, others = through_a_file((first.state_dict(), [p.detach() for p in others]))
    second = case.build(others, engine="fused", **options)
    second.load_state_dict(state)
    train(second, others, first=1, last=STEPS)
    for p, q in zip(params, others, strict=True):
        assert torch.equal(p, q)
        for slot, stored in slots_of(opt, p).items():
            assert torch.equal(stored, slots_of(second, q)[slot]), slot


@pytest.mark.parametrize(("case", "name", "param"), COMBINATIONS[1::5], ids=lambda x: str(x or "plain"))
def test_telemetry_is_that_of_the_reference(case, name, param):
    found, expected = (run(case, engine, name, param, telemetry=True)[0] for engine in ("fused", "reference"))
    for parameter, row in expected.telemetry().items():
        for key, number in row.items():
            bound = 2 + 0.02 * 5320 if key == "lost" else 0.0
            near = pytest.approx(number, rel=2e-3, abs=bound or 1e-9)
            assert found.telemetry()[parameter][key] == near, (parameter, key)


def test_gradients_of_zero_and_dead_rows():
    """Blocks that are zero, or all but zero, are stored and read back without a NaN."""
    for name in ("fp16", "fp8", "int8", "int4"):
        for scale in (0.0, 1e-30, 1e-20):
            (p,) = tensors([(64, 256)], seed=1, dtype=torch.float32)
            opt = steepest.AdamW([p], lr=0.1, state=name)
            p.grad = torch.zeros_like(p)
            p.grad[::2] = scale
            p.grad[5, 7] = 1.0
            for _ in range(3):
                opt.step()
            assert p.isfinite().all() and p.abs().max() < 10, (name, scale)
