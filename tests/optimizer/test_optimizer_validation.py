"""Every key of every group is checked: at construction, when a group is added, and at each step."""

from __future__ import annotations

import math

import pytest
import torch
from optimizer_cases import CONSTRUCTORS, make, parameters, snapshot, walk
from torch.nn import Parameter

import steepest
from steepest import SteepestError

WRONG = [
    ("AdamW", {"lr": -1e-3}, r"lr=-0.001 is out of range; it must lie in \[0, 1e\+38"),
    ("AdamW", {"lr": math.nan}, "lr=nan is out of range"),
    ("AdamW", {"lr": math.inf}, "lr=inf is out of range"),
    ("AdamW", {"lr": torch.tensor(-1.0)}, "lr=-1.0 is out of range"),
    ("AdamW", {"lr": torch.tensor([0.1, 0.2])}, r"lr must hold one number, got shape \(2,\)"),
    ("AdamW", {"lr": None}, "lr must be a number, got None"),
    ("AdamW", {"lr": "0.1"}, "lr must be a number, got '0.1'"),
    ("AdamW", {"lr": 1j}, "lr must be a number"),
    ("AdamW", {"betas": (1.0, 0.99)}, r"betas\[0\]=1.0 is out of range; it must lie in \[0, 1\)"),
    ("AdamW", {"betas": (0.9, -0.1)}, r"betas\[1\]=-0.1 is out of range"),
    ("AdamW", {"betas": (0.9, math.nan)}, r"betas\[1\]=nan"),
    ("AdamW", {"betas": (0.9,)}, "betas must be 2 numbers"),
    ("AdamW", {"betas": (0.9, 0.99, 0.999)}, "betas must be 2 numbers"),
    ("AdamW", {"betas": 0.9}, "betas must be 2 numbers, got 0.9"),
    ("AdamW", {"betas": None}, "betas must be 2 numbers, got None"),
    ("AdamW", {"betas": (None, 0.9)}, r"betas\[0\] must be a number, got None"),
    ("AdamW", {"eps": -1e-8}, "eps=-1e-08 is out of range"),
    ("AdamW", {"eps": 0}, r"eps=0\.0 is out of range; it must lie in \(0, inf\]"),
    ("AdamW", {"weight_decay": -0.1}, "weight_decay=-0.1 is out of range"),
    ("AdamW", {"amsgrad": 3}, "amsgrad=3 is not one of False, True"),
    ("SGD", {"momentum": 1.0}, "momentum=1.0 is out of range"),
    ("SGD", {"dampening": 2.0, "momentum": 0.9}, "dampening=2.0 is out of range"),
    ("SGD", {"nesterov": True}, "nesterov needs momentum above 0 and dampening 0"),
    ("SGD", {"nesterov": True, "momentum": 0.9, "dampening": 0.1}, "nesterov needs momentum"),
    ("RMSprop", {"alpha": 1.0}, "alpha=1.0 is out of range"),
    ("RMSprop", {"eps": 0.0}, r"eps=0\.0 is out of range"),
    ("Adagrad", {"eps": 0.0}, r"eps=0\.0 is out of range"),
    ("Adagrad", {"lr_decay": -1.0}, "lr_decay=-1.0 is out of range"),
    ("Adagrad", {"initial_accumulator_value": -1.0}, "initial_accumulator_value=-1.0 is out of range"),
    ("Adafactor", {"beta2_decay": 0.8}, "beta2_decay=0.8 is out of range"),
    ("Adafactor", {"eps": (0.0, 1e-3)}, r"eps\[0\]=0\.0 is out of range"),
    ("Adafactor", {"eps": (1e-30, 0.0)}, r"eps\[1\]=0\.0 is out of range"),
    ("Adafactor", {"dialect": "t5"}, "dialect of adafactor 't5'; did you mean 't5x'"),
    ("LAMB", {"dialect": "apex"}, "unknown dialect of lamb 'apex'"),
    ("LAMB", {"eps": 0.0}, r"eps=0\.0 is out of range"),
    ("Lion", {"betas": (0.9, 1.0)}, r"betas\[1\]=1.0 is out of range"),
    ("LARS", {"trust_coefficient": -1.0}, "trust_coefficient=-1.0 is out of range"),
    ("Signum", {"momentum": -0.5}, "momentum=-0.5 is out of range"),
]


@pytest.mark.parametrize(("name", "options", "says"), WRONG)
def test_a_wrong_value_is_one_sentence(name, options, says):
    with pytest.raises(SteepestError, match=says):
        getattr(steepest, name)(parameters(), **options)


OF_GROUPS = [(name, options, says) for name, options, says in WRONG if "dialect" not in options]


@pytest.mark.parametrize(("name", "options", "says"), OF_GROUPS)
def test_a_wrong_value_in_a_group_names_the_group(name, options, says):
    a, b, c = parameters()
    # nesterov is wrong beside what the group inherits, so it is judged with it
    with pytest.raises(SteepestError, match=f"group 1.*{says}"):
        getattr(steepest, name)([{"params": [a]}, {"params": [b, c], **options}])


def test_the_set_of_wrong_values_is_not_empty():
    assert len(WRONG) > 25 and len(OF_GROUPS) == len(WRONG) - 2
    assert {name for name, _, _ in WRONG} == set(CONSTRUCTORS) - {"Adam"}


@pytest.mark.parametrize(
    ("name", "key", "nearest"),
    [
        ("AdamW", "weight_decy", "weight_decay"),
        ("AdamW", "beta", "betas"),
        ("AdamW", "max_grad_nrm", "max_grad_norm"),
        ("AdamW", "maximise", "maximize"),
        ("SGD", "momentun", "momentum"),
        ("Adafactor", "scale_parameters", "scale_parameter"),
        ("LARS", "trust_coef", "trust_coefficient"),
    ],
)
def test_a_misspelt_option_is_offered_its_nearest_name(name, key, nearest):
    with pytest.raises(SteepestError, match=f"unknown option of .* '{key}'; did you mean '{nearest}'"):
        getattr(steepest, name)(parameters(), **{key: 0.1})


@pytest.mark.parametrize("name", CONSTRUCTORS)
def test_a_misspelt_key_of_a_group_is_offered_its_nearest_name(name):
    a, b, c = parameters()
    with pytest.raises(SteepestError, match="in group 1 'weight_dekay'; did you mean 'weight_decay'"):
        make(name, [{"params": [a]}, {"params": [b, c], "weight_dekay": 0.1}])


@pytest.mark.parametrize("name", CONSTRUCTORS)
def test_an_option_of_another_rule_is_unknown_here(name):
    with pytest.raises(SteepestError, match="unknown option"):
        getattr(steepest, name)(parameters(), rho=0.5)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"max_grad_norm": 0.0}, "max_grad_norm=0.0 must be a positive number"),
        ({"max_grad_norm": math.inf}, "max_grad_norm=inf must be a positive number"),
        ({"max_grad_norm": "1"}, "max_grad_norm='1' must be a positive number"),
        ({"max_grad_value": -1}, "max_grad_value=-1 must be a positive number"),
        ({"max_grad_value": math.nan}, "max_grad_value=nan must be a positive number"),
        ({"skip_limit": 0}, "skip_limit=0 must be a whole number, at least 1"),
        ({"skip_limit": None}, "skip_limit=None must be a whole number"),
        ({"engine": "foreech"}, "unknown engine 'foreech'; did you mean 'foreach'"),
        ({"capturable": True}, "capturable=True is not supported"),
        ({"differentiable": True}, "differentiable=True is not supported"),
    ],
)
def test_the_options_beside_the_rule_are_checked(options, says):
    with pytest.raises(SteepestError, match=says):
        steepest.AdamW(parameters(), **options)


@pytest.mark.parametrize("group", [{}, {"lr": 0.1}, "params", [Parameter(torch.ones(2))]])
def test_a_group_is_a_dict_with_params(group):
    opt = steepest.AdamW(parameters())
    with pytest.raises(SteepestError, match="must be a dict with 'params'"):
        opt.add_param_group(group)
    assert len(opt.param_groups) == 1


def test_a_group_that_is_refused_leaves_no_trace():
    params = parameters()
    opt = steepest.AdamW(params)
    before = snapshot(opt)
    with pytest.raises(SteepestError, match="group 1: lr=-1"):
        opt.add_param_group({"params": [Parameter(torch.ones(2))], "lr": -1})
    with pytest.raises(ValueError, match="more than one parameter group"):
        opt.add_param_group({"params": params[:1]})
    assert snapshot(opt) == before
    walk(opt, 2)


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("lr", -1.0, "group 1: lr=-1.0"),
        ("lr", None, "group 1: lr must be a number"),
        ("eps", math.nan, "eps=nan"),
    ],
)
def test_a_value_set_from_outside_is_checked_at_the_step(key, value, says):
    a, b, c = parameters()
    opt = steepest.AdamW([{"params": [a]}, {"params": [b, c]}])
    walk(opt, 1)
    opt.param_groups[1][key] = value
    before = [p.detach().clone() for p in (a, b, c)]
    with pytest.raises(SteepestError, match=says):
        walk(opt, 1)
    assert all(torch.equal(p, old) for p, old in zip((a, b, c), before, strict=True))
    assert opt.committed == 1


def test_an_unknown_rule_is_offered_its_nearest_name():
    with pytest.raises(SteepestError, match="unknown optimizer 'adafctor'; did you mean 'adafactor'"):
        steepest.Optimizer(parameters(), rule="adafctor")


def test_a_rule_that_lacks_what_its_decay_needs_is_refused_where_it_is_declared():
    from steepest.contract import Hyper
    from steepest.rules import rule

    with pytest.raises(SteepestError, match="needs the hyperparameter 'weight_decay'"):
        rule(paper="none", scope=steepest.Scope.ELEMENT, hyper={"lr": Hyper(0.1)})
    with pytest.raises(SteepestError, match="needs the hyperparameter 'lr'"):
        rule(paper="none", scope=steepest.Scope.ELEMENT, hyper={}, decay="inside")


def test_a_rule_without_weight_decay_runs():
    from steepest.contract import Hyper
    from steepest.rules import rule

    @rule(paper="none", scope=steepest.Scope.ELEMENT, hyper={"lr": Hyper(0.1, low=0.0)}, decay="inside")
    def plain(p, g, s, h):
        return g, {}

    p = torch.nn.Parameter(torch.ones(3))
    p.grad = torch.ones(3)
    steepest.Optimizer([p], plain).step()
    assert torch.allclose(p.detach(), torch.full((3,), 0.9))
