"""The judge: asked before every step, it may veto it, clip it lower or slow it down."""

from __future__ import annotations

import copy
import logging
import math
import pickle

import pytest
import torch
from optimizer_cases import CONSTRUCTORS, apart, differentiate, make, named, owned, parameters, snapshot, walk

import steepest
from steepest import SteepestError, schedules
from steepest.optimizer import Judgement


def step(opt, k=0, scale=1.0):
    differentiate(owned(opt), k, scale=scale)
    opt.step()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", CONSTRUCTORS)
def test_a_veto_moves_not_one_bit(name, dtype):
    opt = make(name, named(dtype), lr=schedules.cosine(0.1, 9))
    walk(opt, 2)
    before = snapshot(opt)
    opt.judge = lambda norm: Judgement(False, "the loss has a spike")
    step(opt, 2)
    assert snapshot(opt) == before
    assert opt.last_verdict.why == "the loss has a spike" and opt.last_verdict.culprits == ()
    assert (opt.committed, opt.skipped, opt.consecutive_skips) == (2, 1, 1)
    opt.judge = None
    walk(opt, 1, first=2)
    plain = make(name, named(dtype), lr=schedules.cosine(0.1, 9))
    walk(plain, 3)
    assert snapshot(opt) == snapshot(plain)


@pytest.mark.parametrize("options", [{}, {"check_finite": False}, {"max_grad_norm": 0.5}])
def test_it_is_asked_once_with_the_unscaled_norm(options):
    opt, seen = steepest.AdamW(named(), **options), []
    opt.judge = lambda norm: seen.append(norm) or Judgement()
    opt.grad_scale = torch.tensor(64.0)
    step(opt, scale=64.0)
    differentiate(owned(opt), 0)
    norm = math.sqrt(sum(p.grad.square().sum().item() for p in owned(opt)))
    assert seen == [pytest.approx(norm)] and opt.last_verdict.norm == seen[0]


def test_a_judge_with_nothing_to_say_changes_nothing():
    opt, plain = steepest.AdamW(named(), max_grad_norm=0.5), steepest.AdamW(named(), max_grad_norm=0.5)
    opt.judge = lambda norm: Judgement()
    walk(opt, 3)
    walk(plain, 3)
    assert snapshot(opt) == snapshot(plain)


@pytest.mark.parametrize(("own", "said"), [(None, 0.1), (0.1, 0.5), (0.5, 0.1), (0.1, None)])
def test_the_lower_threshold_clips(own, said):
    opt, plain = steepest.SGD(named(), max_grad_norm=own), steepest.SGD(named(), max_grad_norm=0.1)
    opt.judge = lambda norm: Judgement(max_norm=said)
    walk(opt, 2)
    walk(plain, 2)
    assert snapshot(opt) == snapshot(plain)


@pytest.mark.parametrize("lr", [0.1, torch.tensor(0.1, dtype=torch.float64), schedules.linear(0.1, 9)])
@pytest.mark.parametrize("name", CONSTRUCTORS)
def test_a_rate_is_a_factor_on_this_step_s_learning_rate_alone(name, lr):
    opt = make(name, named(), lr=copy.deepcopy(lr))
    opt.judge = lambda norm: Judgement(rate=0.25 if opt.committed == 1 else 1.0)
    twin = make(name, named(), lr=0.1)
    for k in range(3):
        rate = float(opt.param_groups[0]["lr"])
        twin.param_groups[0]["lr"] = 0.25 * rate if k == 1 else rate
        step(opt, k)
        step(twin, k)
        assert opt.last_verdict.rate == (0.25 if k == 1 else 1.0)
    assert apart(owned(opt), owned(twin)) < 1e-12
    assert float(opt.param_groups[0]["lr"]) == pytest.approx(lr(3) if callable(lr) else 0.1)


def test_reasons_are_told_apart(caplog):
    opt = steepest.AdamW(named())
    opt.judge = lambda norm: Judgement(norm < 100.0, "a norm of a hundred")
    why = []
    with caplog.at_level(logging.WARNING, logger="steepest"):
        for case in ("nan", "large", "loss", "both"):
            differentiate(owned(opt), 0, scale=1e6 if case in ("large", "both") else 1.0)
            if case == "nan":
                owned(opt)[1].grad[0] = math.nan
            opt.found_inf = torch.tensor(1.0) if case in ("loss", "both") else None
            opt.step()
            why.append(opt.last_verdict.why)
    assert why == ["non-finite gradient", "a norm of a hundred", "loss scale", "a norm of a hundred"]
    logged = [record.getMessage() for record in caplog.records]
    assert [line.removeprefix("step skipped, nothing moved: ") for line in logged] == [
        "non-finite gradient in p1",
        *why[1:],
    ]
    opt.found_inf = None
    step(opt)
    assert opt.last_verdict.commit and opt.last_verdict.why == "" and opt.skipped == 4


def test_without_words_a_veto_still_has_a_reason_and_counts_to_the_limit():
    opt = steepest.AdamW(named(), skip_limit=2)
    opt.judge = lambda norm: Judgement(False)
    step(opt)
    assert opt.last_verdict.why == "the judge's veto"
    with pytest.raises(SteepestError, match="2 steps in a row were skipped: the judge's veto"):
        step(opt)


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (Judgement(max_norm=math.nan), "max_norm=nan"),
        (Judgement(max_norm=0.0), "max_norm=0.0"),
        (Judgement(rate=math.nan), "rate=nan"),
        (Judgement(rate=math.inf), "rate=inf"),
        (Judgement(rate=-1.0), "rate=-1.0"),
        (None, "must return a Judgement"),
        (True, "must return a Judgement"),
    ],
)
def test_what_is_no_judgement_is_an_error_and_nothing_moves(said, why):
    opt = steepest.AdamW(named())
    walk(opt, 1)
    before = snapshot(opt)
    opt.judge = lambda norm: said
    with pytest.raises(SteepestError, match=why):
        step(opt)
    assert snapshot(opt) == before


def test_a_judge_that_fails_says_so_and_nothing_moves():
    opt = steepest.AdamW(named())
    before = snapshot(opt)
    opt.judge = lambda norm: Judgement(rate=1 / 0)
    with pytest.raises(ZeroDivisionError) as error:
        step(opt)
    assert snapshot(opt) == before and "judge, asked about a norm of" in error.value.__notes__[0]


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda opt: pickle.loads(pickle.dumps(opt))])
def test_a_copy_has_no_judge(clone):
    opt = steepest.AdamW(parameters())
    opt.judge = lambda norm: Judgement(False)
    twin = clone(opt)
    step(twin)
    assert twin.judge is None and twin.committed == 1
