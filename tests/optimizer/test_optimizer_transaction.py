"""The step is a transaction: everything moves, or not one bit does. And clipping, and loss scaling."""

from __future__ import annotations

import logging
import math

import pytest
import torch
from optimizer_cases import (
    CONSTRUCTORS,
    apart,
    differentiate,
    make,
    named,
    owned,
    parameters,
    snapshot,
    walk,
)
from torch.nn.utils import clip_grad_norm_, clip_grad_value_

import steepest
from steepest import SteepestError, schedules

BAD = [math.nan, math.inf, -math.inf]


def spoil(p, value=math.nan):
    p.grad.view(-1)[-1] = value


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", CONSTRUCTORS)
def test_a_non_finite_gradient_moves_not_one_bit(name, dtype, value):
    opt = make(name, named(dtype), lr=schedules.cosine(0.1, 9), weight_decay=schedules.linear(0.1, 9))
    walk(opt, 2)
    before = snapshot(opt)
    differentiate(owned(opt), 2)
    spoil(owned(opt)[1], value)
    opt.step()
    assert snapshot(opt) == before
    assert (opt.committed, opt.skipped, opt.consecutive_skips) == (2, 1, 1)
    assert opt.last_verdict.culprits == ("p1",) and not opt.last_verdict.commit
    walk(opt, 1, first=2)
    assert (opt.committed, opt.skipped, opt.consecutive_skips) == (3, 1, 0) and opt.last_verdict.commit
    plain = make(name, named(dtype), lr=schedules.cosine(0.1, 9), weight_decay=schedules.linear(0.1, 9))
    walk(plain, 3)
    assert snapshot(opt) == snapshot(plain)  # as if the bad batch had never been


def test_every_culprit_is_named_and_the_log_stays_short(caplog):
    opt = steepest.AdamW(named(shapes=[(2,)] * 6))
    differentiate(owned(opt), 0)
    for p in owned(opt)[1:]:
        spoil(p)
    with caplog.at_level(logging.WARNING, logger="steepest"):
        opt.step()
    assert opt.last_verdict.culprits == ("p1", "p2", "p3", "p4", "p5")
    assert "p1, p2, p3 and 2 more" in caplog.text


def test_an_unnamed_culprit_is_named_by_its_place():
    a, b, c = parameters()
    opt = steepest.AdamW([{"params": [a]}, {"params": [b, c]}])
    differentiate(owned(opt), 0)
    spoil(c)
    opt.step()
    assert opt.last_verdict.culprits == ("parameter 1 of group 1",)


def test_too_many_skips_in_a_row_raise():
    opt = steepest.AdamW(named(), skip_limit=3)

    def bad():
        differentiate(owned(opt), 0)
        spoil(owned(opt)[0])
        opt.step()

    bad()
    bad()
    walk(opt, 1)  # a good step: the count starts again
    bad()
    bad()
    before = snapshot(opt)
    with pytest.raises(SteepestError, match="3 steps in a row had non-finite gradients, last in p0"):
        bad()
    assert snapshot(opt) == before and opt.skipped == 5


def test_the_count_of_skips_is_saved():
    opt = steepest.AdamW(named())
    differentiate(owned(opt), 0)
    spoil(owned(opt)[0])
    opt.step()
    other = steepest.AdamW(named())
    other.load_state_dict(opt.state_dict())
    assert other.skipped == 1 and other.committed == 0


@pytest.mark.parametrize("limit", [{}, {"max_grad_norm": 1.0}])
def test_finite_gradients_whose_squares_overflow_are_finite(limit):
    opt = steepest.Lion(parameters(torch.float32), lr=0.1, **limit)
    differentiate(owned(opt), 0, scale=1e25)
    opt.step()
    assert opt.committed == 1 and opt.last_verdict.norm == pytest.approx(
        math.sqrt(sum((p.grad.double() ** 2).sum().item() for p in owned(opt)))
    )
    assert all(bool(torch.isfinite(p).all()) for p in owned(opt))


def clipped(params, opt, step, norm=None, value=None):
    differentiate(params, step)
    if norm is not None:
        clip_grad_norm_(params, norm)
    if value is not None:
        clip_grad_value_(params, value)
    opt.step()


@pytest.mark.parametrize(("norm", "value"), [(0.5, None), (1e6, None), (None, 0.1), (0.5, 0.1)])
@pytest.mark.parametrize("name", CONSTRUCTORS)
def test_clipping_is_torch_s_clipping_and_then_the_step(name, norm, value):
    if name == "LAMB" and norm is None:  # its own dialect clips at 1 unless told otherwise
        norm = 1e9
    ours, theirs = parameters(), parameters()
    # apex's LAMB divides by the norm alone, torch by the norm + 1e-6
    loose = 1e-6 if name == "LAMB" else 1e-12
    opt = make(name, ours, lr=0.01, max_grad_norm=norm, max_grad_value=value)
    plain = make(name, theirs, lr=0.01, **({"max_grad_norm": None} if name == "LAMB" else {}))
    for step in range(4):
        clipped(theirs, plain, step, norm, value)
        differentiate(ours, step)
        opt.step()
    assert apart(ours, theirs) < loose
    whole = math.sqrt(sum(p.grad.square().sum().item() for p in ours))
    assert opt.last_verdict.norm == pytest.approx(whole)


def test_a_norm_of_zero_is_no_division_by_zero():
    for name in CONSTRUCTORS:
        opt = make(name, parameters(), max_grad_norm=1.0)
        differentiate(owned(opt), 0, scale=0.0)
        opt.step()
        assert opt.committed == 1 and all(bool(torch.isfinite(p).all()) for p in owned(opt)), name


def scaled_step(scaler, opt, step, *, bad=False, unscale=False):
    """One step as a mixed-precision loop does it: the loss is scaled, so its gradients are."""
    differentiate(owned(opt), step, scale=scaler.get_scale())
    scaler.scale(torch.zeros(()))  # what a loop does with its loss; it makes the scaler ready
    if bad:
        spoil(owned(opt)[0], math.inf)
    if unscale:
        scaler.unscale_(opt)
    scaler.step(opt)
    scaler.update()


@pytest.mark.parametrize("unscale", [False, True])
@pytest.mark.parametrize("name", CONSTRUCTORS)
def test_scaled_steps_are_the_unscaled_ones(name, unscale):
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    ours, theirs = make(name, parameters(), lr=0.01), make(name, parameters(), lr=0.01)
    for step in range(4):
        scaled_step(scaler, ours, step, unscale=unscale)
    walk(theirs, 4)
    assert apart(owned(ours), owned(theirs)) < 1e-12 and ours.committed == 4


@pytest.mark.parametrize("unscale", [False, True])
def test_an_overflow_skips_the_step_and_halves_the_scale(unscale):
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    opt = steepest.AdamW(named(), lr=schedules.linear(0.1, 9))
    scaled_step(scaler, opt, 0, unscale=unscale)
    before = snapshot(opt)
    scaled_step(scaler, opt, 1, bad=True, unscale=unscale)
    assert snapshot(opt) == before and scaler.get_scale() == 512.0
    assert opt.skipped == 1 and opt.last_verdict.culprits == ("p0",)
    scaled_step(scaler, opt, 1, unscale=unscale)
    plain = steepest.AdamW(named(), lr=schedules.linear(0.1, 9))
    walk(plain, 2)
    assert apart(owned(opt), owned(plain)) < 1e-12 and opt.committed == 2


@pytest.mark.parametrize("unscale", [False, True])
def test_clipping_under_a_scaler_uses_the_unscaled_norm(unscale):
    scaler = torch.amp.GradScaler("cpu", init_scale=4096.0)
    ours = steepest.SGD(parameters(), lr=0.1, max_grad_norm=0.5, max_grad_value=0.1)
    theirs = steepest.SGD(parameters(), lr=0.1, max_grad_norm=0.5, max_grad_value=0.1)
    for step in range(3):
        scaled_step(scaler, ours, step, unscale=unscale)
    walk(theirs, 3)
    assert apart(owned(ours), owned(theirs)) < 1e-12
    assert ours.last_verdict.norm == pytest.approx(theirs.last_verdict.norm)


def test_a_closure_runs_even_if_its_step_is_skipped():
    opt = steepest.AdamW(named())

    def closure():
        differentiate(owned(opt), 0)
        spoil(owned(opt)[2])
        return 7.0

    assert opt.step(closure) == 7.0 and opt.committed == 0 and opt.last_verdict.culprits == ("p2",)
