"""A preview is the next step's telemetry, and changes nothing."""

from __future__ import annotations

import math

import pytest
import torch
from optimizer_cases import SHAPES, differentiate, named, owned, snapshot, walk

import steepest
from laws.cases import CODED, COMBINATIONS, PARAMS, choice, every_rule, feed, tensors
from steepest import SteepestError, schedules
from steepest.codecs import SLOT_NAMES
from steepest.engines import ENGINES
from steepest.optimizer import Judgement, Route

FEW = [c for c in COMBINATIONS if c[1] in ("fp32", "int8", "factored", "bf16") and c[0].hyper["weight_decay"]]


def test_the_table_covers_every_rule():
    assert every_rule([case for case, _, _ in FEW]) and {c[2] for c in FEW} == set(PARAMS)
    assert {c[1] for c in FEW} <= set(SLOT_NAMES)


@pytest.mark.parametrize(("case", "codec", "param"), FEW, ids=str)
def test_it_equals_the_next_step_s_telemetry(case, codec, param):
    dtype = torch.bfloat16 if param else torch.float32
    params = [torch.nn.Parameter(t) for t in tensors(CODED, seed=1, dtype=dtype)]
    pairs = [(f"p{i}", p) for i, p in enumerate(params)]
    state = choice(case, codec, CODED)
    opt = case.build(
        pairs, lr=1e-2, state=state, param=param, engine="foreach", max_grad_norm=0.3, telemetry=True
    )
    for k in range(2):
        feed(params, seed=k)
        opt.step()
    feed(params, seed=2)
    before = snapshot(opt) if param is None else None
    foreseen = opt.preview()
    assert before is None or snapshot(opt) == before
    opt.step()
    moved = opt.telemetry()
    assert set(foreseen) == set(moved) == {name for name, _ in pairs}
    for name, own in foreseen.items():
        for key, value in own.items():
            assert value == pytest.approx(moved[name][key], rel=1e-4, abs=1e-12), (name, key)


@pytest.mark.parametrize("engine", ENGINES)
def test_nothing_is_changed_on_any_engine_and_the_next_step_is_the_same(engine):
    looked, plain = (
        steepest.AdamW(named(torch.float32), lr=schedules.cosine(0.1, 9), engine=engine, max_grad_norm=1.0)
        for _ in range(2)
    )
    walk(looked, 2)
    walk(plain, 2)
    for k in (2, 3):
        differentiate(owned(looked), k)
        before, layout, programs = snapshot(looked), looked._layout, dict(vars(looked._engine))
        verdict, grads = looked.last_verdict, [p.grad.clone() for p in owned(looked)]
        looked.preview()
        assert snapshot(looked) == before and looked.last_verdict == verdict
        assert looked._layout is layout and vars(looked._engine) == programs
        assert all(torch.equal(p.grad, g) for p, g in zip(owned(looked), grads, strict=True))
        looked.step()
        walk(plain, 1, first=k)
        assert snapshot(looked) == snapshot(plain)


def test_several_rules_scaled_gradients_and_frozen_parameters():
    routes = [Route("p0", "lion", lr=0.1), Route("*", "adamw", lr=0.2)]
    opt = steepest.Optimizer(named(), routes=routes, telemetry=True, max_grad_norm=0.5)
    differentiate(owned(opt), 0, scale=8.0)
    opt.grad_scale = torch.tensor(8.0)
    owned(opt)[2].grad = None
    foreseen = opt.preview()
    opt.step()
    assert set(foreseen) == {"p0", "p1"}
    for name, row in opt.telemetry().items():
        assert foreseen[name] == pytest.approx({k: row[k] for k in ("update_norm", "param_norm")})
    total = opt.norms()
    assert total["update_norm"] == pytest.approx(math.hypot(*(r["update_norm"] for r in foreseen.values())))


def test_a_step_that_would_be_vetoed_moves_nothing_and_no_judge_is_asked():
    opt = steepest.AdamW(named())
    opt.judge = lambda norm: Judgement(False)
    differentiate(owned(opt), 0)
    assert all(row["update_norm"] > 0 for row in opt.preview().values())
    owned(opt)[0].grad[0] = math.inf
    for (name, p), row in zip(named(), opt.preview().values(), strict=True):
        assert row == pytest.approx({"update_norm": 0.0, "param_norm": float(p.detach().norm())}), name
    assert (opt.skipped, opt.last_verdict) == (0, None)


def test_a_sample_is_drawn_by_its_seed():
    opt = steepest.AdamW(named(shapes=SHAPES * 4))
    differentiate(owned(opt), 0)
    whole, half = opt.preview(), opt.preview(0.5, seed=3)
    assert len(whole) == 12 and len(half) == 6 and half == opt.preview(0.5, seed=3)
    assert half == {name: whole[name] for name in half}
    assert set(half) != set(opt.preview(0.5, seed=4))
    assert len(opt.preview(1e-6)) == 1
    for sample in (0.0, -1.0, 1.5, math.nan):
        with pytest.raises(SteepestError, match="sample"):
            opt.preview(sample)


def test_without_gradients_there_is_nothing_to_see():
    assert steepest.AdamW(named()).preview() == {}
