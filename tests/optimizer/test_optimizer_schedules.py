"""Schedules: torch's schedulers drive this optimizer as they drive torch's, and its own follow the step."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from optimizer_cases import apart, owned, parameters, snapshot, walk
from torch.optim import lr_scheduler as lrs

import steepest
from steepest import SteepestError, schedules

TORCH_SCHEDULERS = {
    "StepLR": lambda o: lrs.StepLR(o, 3, gamma=0.5),
    "LambdaLR": lambda o: lrs.LambdaLR(o, lambda t: 1 / (1 + t)),
    "OneCycleLR": lambda o: lrs.OneCycleLR(o, 0.1, total_steps=12),
    "CosineAnnealingLR": lambda o: lrs.CosineAnnealingLR(o, 10),
    "CosineAnnealingWarmRestarts": lambda o: lrs.CosineAnnealingWarmRestarts(o, 3, T_mult=2),
    "LinearLR": lambda o: lrs.LinearLR(o, 0.1, 1.0, 5),
    "CyclicLR": lambda o: lrs.CyclicLR(o, 0.01, 0.1, step_size_up=3, cycle_momentum=True),
    "SequentialLR": lambda o: lrs.SequentialLR(
        o, [lrs.LinearLR(o, 0.1, 1.0, 4), lrs.ExponentialLR(o, 0.9)], milestones=[4]
    ),
}
CYCLED = [("SGD", {"momentum": 0.9}), ("SGD", {}), ("RMSprop", {"momentum": 0.5}), ("Adam", {})]


def drive(library, name, scheduler, steps=9, **options):
    opt = getattr(library, name)(parameters(), **{"lr": 0.05, **options})
    driver = scheduler(opt)
    seen = []
    for step in range(steps):
        group = opt.param_groups[0]
        seen.append((float(group["lr"]), group.get("betas"), group.get("momentum")))
        walk(opt, 1, first=step, scheduler=driver)
    return opt, seen


@pytest.mark.parametrize("name", TORCH_SCHEDULERS)
def test_torch_s_schedulers_drive_it_as_they_drive_torch_s(name):
    ours, seen = drive(steepest, "AdamW", TORCH_SCHEDULERS[name])
    theirs, expected = drive(torch.optim, "AdamW", TORCH_SCHEDULERS[name])
    assert seen == expected and len({lr for lr, _, _ in seen}) > 1
    assert apart(owned(ours), owned(theirs)) < 1e-12


@pytest.mark.parametrize(("name", "options"), CYCLED)
def test_one_cycle_moves_the_momentum_too(name, options):
    ours, seen = drive(steepest, name, TORCH_SCHEDULERS["OneCycleLR"], **options)
    theirs, expected = drive(torch.optim, name, TORCH_SCHEDULERS["OneCycleLR"], **options)
    assert seen == expected and len({(betas, momentum) for _, betas, momentum in seen}) > 1
    assert apart(owned(ours), owned(theirs)) < 1e-12


def test_a_scheduler_fills_a_tensor_lr():
    lr = torch.tensor(0.05, dtype=torch.float64)
    ours, _ = drive(steepest, "AdamW", TORCH_SCHEDULERS["StepLR"], lr=lr)
    theirs, _ = drive(torch.optim, "AdamW", TORCH_SCHEDULERS["StepLR"], lr=0.05)
    assert ours.param_groups[0]["lr"] is lr
    assert apart(owned(ours), owned(theirs)) < 1e-12


def test_reduce_on_plateau():
    sides = []
    for library in (steepest, torch.optim):
        opt = library.AdamW(parameters(), lr=0.1)
        plateau = lrs.ReduceLROnPlateau(opt, patience=1, factor=0.1)
        for step, loss in enumerate([3.0, 2.0, 2.0, 2.0, 2.0, 1.0]):
            walk(opt, 1, first=step)
            plateau.step(loss)
        sides.append(opt)
    assert sides[0].param_groups[0]["lr"] == sides[1].param_groups[0]["lr"] == pytest.approx(0.01)
    assert apart(owned(sides[0]), owned(sides[1])) < 1e-12


def test_a_scheduler_sees_that_the_optimizer_stepped():
    opt = steepest.AdamW(parameters())
    scheduler = lrs.StepLR(opt, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # "lr_scheduler.step() before optimizer.step()"
        walk(opt, 2, scheduler=scheduler)


def test_a_scheduler_and_its_optimizer_resume():
    def build():
        opt = steepest.AdamW(parameters(), lr=0.1)
        return opt, lrs.CosineAnnealingLR(opt, 10)

    opt, scheduler = build()
    walk(opt, 4, scheduler=scheduler)
    other, second = build()
    with torch.no_grad():
        for p, q in zip(owned(other), owned(opt), strict=True):
            p.copy_(q)
    other.load_state_dict(opt.state_dict())
    second.load_state_dict(scheduler.state_dict())
    walk(opt, 3, first=4, scheduler=scheduler)
    walk(other, 3, first=4, scheduler=second)
    assert snapshot(other) == snapshot(opt)


RATE = schedules.cosine(0.1, 8, warmup=2, final=0.1)
RISE = schedules.linear(0.05, 8, final=2)
BETA = schedules.linear(0.9, 8, final=1.08)


@pytest.mark.parametrize(
    ("key", "value", "at"),
    [
        ("lr", RATE, lambda t: RATE(t)),
        ("weight_decay", RISE, lambda t: RISE(t)),
        ("betas", (0.9, BETA), lambda t: (0.9, BETA(t))),
        ("betas", (BETA, 0.99), lambda t: (BETA(t), 0.99)),
        ("eps", lambda t: 10.0 ** -(t + 2), lambda t: 10.0 ** -(t + 2)),
    ],
)
def test_a_schedule_is_the_value_set_by_hand_at_every_step(key, value, at):
    ours, theirs = parameters(), parameters()
    opt = steepest.AdamW(ours, **{"lr": 0.05, key: value})
    hand = steepest.AdamW(theirs, lr=0.05)
    for step in range(8):
        hand.param_groups[0][key] = at(step)
        assert opt.param_groups[0][key] == at(step)
        walk(opt, 1, first=step)
        walk(hand, 1, first=step)
    assert apart(ours, theirs) == 0.0


def test_each_group_may_have_its_own_schedule():
    a, b, c = parameters()
    opt = steepest.AdamW([{"params": [a], "lr": RATE}, {"params": [b]}, {"params": [c], "lr": 0.3}], lr=RISE)
    for step in range(8):
        assert [group["lr"] for group in opt.param_groups] == [RATE(step), RISE(step), 0.3]
        walk(opt, 1, first=step)
    opt.add_param_group({"params": parameters(seed=1)})
    assert opt.param_groups[3]["lr"] == RISE(8)  # a later group joins at the committed step


def test_a_momentum_that_starts_at_zero_has_its_slot():
    ours, theirs = parameters(), parameters()
    opt = steepest.SGD(ours, lr=0.1, momentum=lambda step: min(0.9, 0.3 * step))
    hand = torch.optim.SGD(theirs, lr=0.1)
    for step in range(6):
        hand.param_groups[0]["momentum"] = min(0.9, 0.3 * step)
        walk(opt, 1, first=step)
        walk(hand, 1, first=step)
    assert apart(ours, theirs) < 1e-12


def test_a_schedule_and_a_scheduler_at_once_is_an_error():
    opt = steepest.AdamW(parameters(), lr=RATE)
    scheduler = lrs.StepLR(opt, 1, gamma=0.5)
    before = [p.detach().clone() for p in owned(opt)]
    with pytest.raises(SteepestError, match=r"group 0: lr follows the schedule.*use one of the two"):
        walk(opt, 3, scheduler=scheduler)
    assert opt.committed == 1 and not any(map(torch.equal, owned(opt), before))


def test_a_scheduled_weight_decay_goes_with_a_scheduler_of_the_lr():
    opt = steepest.AdamW(parameters(), lr=0.1, weight_decay=RISE)
    walk(opt, 5, scheduler=lrs.StepLR(opt, 2, gamma=0.5))
    assert opt.param_groups[0]["lr"] == 0.025 and opt.param_groups[0]["weight_decay"] == RISE(5)


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("AdamW", {"lr": lambda t: -1.0}, "lr=-1.0 is out of range"),
        ("AdamW", {"lr": lambda t: math.nan}, "lr=nan is out of range"),
        (
            "AdamW",
            {"amsgrad": lambda t: True},
            "amsgrad shapes the formula of adamw and cannot have a schedule",
        ),
        ("Adagrad", {"initial_accumulator_value": RATE}, "cannot have a schedule"),
        ("AdamW", {"betas": (0.9, lambda t: 1.0)}, r"betas\[1\]=1.0 is out of range"),
    ],
)
def test_a_schedule_that_cannot_be_is_refused_at_construction(name, options, says):
    with pytest.raises(SteepestError, match=says):
        getattr(steepest, name)(parameters(), **options)


def test_a_schedule_that_leaves_its_range_is_caught_before_the_step():
    opt = steepest.AdamW(parameters(), lr=lambda step: 0.1 if step < 2 else -0.1)
    walk(opt, 2)
    before = snapshot(opt)
    with pytest.raises(SteepestError, match=r"lr=-0\.1 is out of range"):
        walk(opt, 1)
    assert snapshot(opt) == before
