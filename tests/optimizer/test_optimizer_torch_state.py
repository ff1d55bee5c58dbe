"""torch.optim's state, taken over and handed back: training goes on as if nothing had happened."""

from __future__ import annotations

import copy

import pytest
import torch
from optimizer_cases import apart, named, owned, parameters, snapshot, walk
from torch.nn import Parameter

import steepest
from steepest import SteepestError, schedules

NAMES = ("p0", "p1", "p2")
TINY = torch.finfo(torch.float64).eps
CASES = [
    ("SGD", {"lr": 0.1, "momentum": 0.9}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True, "maximize": True}),
    ("SGD", {"lr": 0.1}),
    ("RMSprop", {"lr": 0.01}),
    ("RMSprop", {"lr": 0.01, "momentum": 0.9, "centered": True}),
    ("Adagrad", {"lr": 0.1, "lr_decay": 0.1, "initial_accumulator_value": 0.1}),
    ("Adam", {"lr": 0.1, "weight_decay": 0.1}),
    ("Adam", {"lr": 0.1, "amsgrad": True}),
    ("AdamW", {"lr": 0.1, "weight_decay": 0.1}),
    ("AdamW", {"lr": 0.1, "amsgrad": True, "betas": (0.5, 0.6)}),
    ("Adafactor", {"lr": 0.1, "eps": (TINY, 1e-3), "weight_decay": 0.1}),
]
every_case = pytest.mark.parametrize(("name", "options"), CASES)


def own(name):
    return {"dialect": "torch"} if name == "Adafactor" else {}


def copies(opt):
    return [Parameter(p.detach().clone()) for p in owned(opt)]


@every_case
def test_taking_over_from_torch(name, options):
    theirs = getattr(torch.optim, name)(parameters(), **options)
    walk(theirs, 4)
    ours = getattr(steepest, name)(copies(theirs), **options, **own(name))
    ours.import_torch_state(theirs.state_dict())
    walk(theirs, 4, first=4)
    walk(ours, 4, first=4)
    assert apart(owned(ours), owned(theirs)) < 1e-12


@every_case
def test_handing_back_to_torch(name, options):
    ours = getattr(steepest, name)(parameters(), **options, **own(name))
    walk(ours, 4)
    theirs = getattr(torch.optim, name)(copies(ours), **options)
    theirs.load_state_dict(ours.export_torch_state())
    walk(ours, 4, first=4)
    walk(theirs, 4, first=4)
    assert apart(owned(ours), owned(theirs)) < 1e-12


@every_case
def test_there_and_back_is_the_same_state(name, options):
    ours = getattr(steepest, name)(named(), **options, **own(name))
    walk(ours, 1)
    fresh = list(zip(NAMES, copies(ours), strict=True))
    other = getattr(steepest, name)(fresh, **options, **own(name))
    other.import_torch_state(ours.export_torch_state())
    if not (name == "SGD" and options == {"lr": 0.1}):  # torch keeps nothing at all there
        assert snapshot(other) == snapshot(ours)


@every_case
def test_handing_back_before_the_first_step(name, options):
    theirs = getattr(torch.optim, name)(parameters(), **options)
    ours = getattr(steepest, name)(parameters(), **options, **own(name))
    theirs.load_state_dict(ours.export_torch_state())
    walk(ours, 2)
    walk(theirs, 2)
    assert apart(owned(ours), owned(theirs)) < 1e-12


def test_groups_and_names_travel():
    a, b, c = named()
    asked = [{"params": [a], "lr": 0.1}, {"params": [b, c], "weight_decay": 0.0}]
    theirs = torch.optim.AdamW(copy.deepcopy(asked), lr=0.01)
    walk(theirs, 3)
    fresh = [(n, Parameter(p.detach().clone())) for n, p in zip(NAMES, owned(theirs), strict=True)]
    ours = steepest.AdamW(
        [{"params": fresh[:1], "lr": 0.1}, {"params": fresh[:0:-1], "weight_decay": 0.0}], lr=0.01
    )
    ours.import_torch_state(theirs.state_dict())  # the second group's names are the other way round
    for p, q in zip([p for _, p in fresh], owned(theirs), strict=True):
        assert torch.equal(ours.state[p]["m"], theirs.state[q]["exp_avg"])
    exported = ours.export_torch_state()["param_groups"]
    assert [group["lr"] for group in exported] == [0.1, 0.01]
    assert exported[1]["param_names"] == ["p2", "p1"]


def test_low_precision_state_is_widened_when_taken_and_narrowed_when_given():
    theirs = torch.optim.AdamW(parameters(torch.bfloat16))
    walk(theirs, 2)
    ours = steepest.AdamW(parameters(torch.bfloat16))
    ours.import_torch_state(theirs.state_dict())
    for p, q in zip(owned(ours), owned(theirs), strict=True):
        assert ours.state[p]["m"].dtype == torch.float32
        assert torch.equal(ours.state[p]["m"], theirs.state[q]["exp_avg"].float())
    exported = ours.export_torch_state()["state"]
    assert all(s["exp_avg"].dtype == torch.bfloat16 for s in exported.values())


def test_a_schedule_continues_from_the_imported_step():
    theirs = torch.optim.AdamW(parameters())
    walk(theirs, 4)
    ours = steepest.AdamW(parameters(), lr=schedules.linear(0.1, 10))
    ours.import_torch_state(theirs.state_dict())
    assert ours.committed == 4 and ours.param_groups[0]["lr"] == pytest.approx(0.06)


@pytest.mark.parametrize(
    ("theirs", "ours", "says"),
    [
        (
            lambda: torch.optim.SGD(parameters(), 0.1, momentum=0.9),
            lambda: steepest.AdamW(parameters()),
            "parameter 0 of group 0: the torch state has no 'exp_avg'; it holds momentum_buffer",
        ),
        (
            lambda: torch.optim.AdamW(parameters()),
            lambda: steepest.AdamW(parameters(), amsgrad=True),
            "the torch state has no 'max_exp_avg_sq'",
        ),
        (
            lambda: torch.optim.AdamW(parameters(shapes=[(3, 4), (3,), (2, 2, 2)])),
            lambda: steepest.AdamW(parameters()),
            r"torch's exp_avg has shape \(3, 4\), this parameter's m \(4, 3\)",
        ),
        (
            lambda: torch.optim.AdamW(parameters()[:2]),
            lambda: steepest.AdamW(parameters()),
            "the saved state has 2 parameters, this optimizer 3",
        ),
        (
            lambda: steepest.AdamW(parameters()),
            lambda: steepest.AdamW(parameters()),
            r"load it with load_state_dict\(\)",
        ),
    ],
)
def test_a_state_that_does_not_fit_is_refused_whole(theirs, ours, says):
    theirs, ours = theirs(), ours()
    walk(theirs, 2)
    walk(ours, 1)
    before = snapshot(ours)
    with pytest.raises(SteepestError, match=says):
        ours.import_torch_state(theirs.state_dict())
    assert snapshot(ours) == before
