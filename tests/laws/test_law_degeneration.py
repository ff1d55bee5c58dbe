"""Law: with the right settings one algorithm becomes another, and symmetries of the formulas hold."""

import math

import pytest
import torch

import steepest
from laws.cases import LARGE, feed, tensors
from steepest.engines import ENGINES
from steepest.rules import RULES

SHAPES = [(7, 6), (5,), (), (2, 3, 4)]
STEPS = 5
ONE = {"trust_low": 1.0, "trust_high": 1.0}
NONE = 1e-300
"""An eps that is lost in any sum; 0 itself is refused, for it divides 0 by 0 where a gradient is zero."""
UNBOUND = {"trust_low": 0.0, "trust_high": math.inf}
PLAIN = {"scale_parameter": False, "d": math.inf, "beta1": 0.0, "eps": (1e-30, 1e-3)}


def ends(engine, rule, shapes=SHAPES, start=1.0, grow=1.0, gradients=None, **hyper):
    """The parameters after STEPS steps: a fixed start times `start`, fixed gradients times `grow`."""
    params = [start * p for p in tensors(shapes, seed=1)]
    opt = steepest.Optimizer(params, rule, engine=engine, **{"lr": 0.03, **hyper})
    for k in range(STEPS):
        feed(params, seed=2 + k)
        for i, p in enumerate(params):
            p.grad = p.grad * grow if gradients is None else gradients[i].clone()
        opt.step()
    return params


def assert_same(one, other):
    assert one and len(one) == len(other)
    for p, q in zip(one, other, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-14)


SAME = {
    "lamb_ratio_1-adamw": (
        ("lamb", {"weight_decay": 0.0, "eps": 1e-8, "always_adapt": True, **ONE}),
        ("adamw", {"weight_decay": 0.0}),
    ),
    "lamb_ratio_1_decay-adamw_decay": (
        ("lamb", {"weight_decay": 0.1, "eps": 1e-8, **ONE}),
        ("adamw", {"weight_decay": 0.1}),
    ),
    "lamb_nv_decay-lamb_paper_decay": (
        ("lamb", {"dialect": "nv", "weight_decay": 0.1}),
        ("lamb", {"dialect": "paper", "weight_decay": 0.1}),
    ),
    "lamb_deepspeed_unbounded-lamb_paper": (
        (
            "lamb",
            {"dialect": "deepspeed", "eps": 1e-6, "weight_decay": 0.1, "trust_low": 0.0, "trust_high": 1e9},
        ),
        ("lamb", {"dialect": "paper", "weight_decay": 0.1}),
    ),
    "lamb_nv_no_decay-adamw_no_decay": (
        ("lamb", {"dialect": "nv", "weight_decay": 0.0, "eps": 1e-8}),
        ("adamw", {"weight_decay": 0.0}),
    ),
    "adam_no_decay-adamw_no_decay": (("adam", {}), ("adamw", {"weight_decay": 0.0})),
    "adam_betas_0-sign": (("adam", {"betas": (0.0, 0.0), "eps": NONE}), ("signum", {"momentum": 0.0})),
    "adam_beta1_0-rmsprop_unbiased": (
        ("adam", {"betas": (0.0, 0.9), "eps": NONE}),
        ("rmsprop", {"alpha": 0.9, "eps": NONE, "lr": lambda k: 0.03 * math.sqrt(1 - 0.9 ** (k + 1))}),
    ),
    "rmsprop_alpha_0-sign": (("rmsprop", {"alpha": 0.0, "eps": NONE}), ("signum", {"momentum": 0.0})),
    "adagrad_lr_decay-schedule": (
        ("adagrad", {"lr_decay": 0.1}),
        ("adagrad", {"lr": lambda k: 0.03 / (1 + 0.1 * k)}),
    ),
    "adagrad_rising_lr-adafactor_mean_of_squares": (
        ("adagrad", {"eps": NONE, "lr": lambda k: 0.03 * math.sqrt(k + 1)}),
        ("adafactor", {"dialect": "t5x", "beta2_decay": -1.0, **PLAIN}),
    ),
    "adafactor_t5x_unfactored-big_vision_unfactored": (
        ("adafactor", {"dialect": "t5x", **PLAIN}),
        ("adafactor", {"dialect": "big_vision", **PLAIN}),
    ),
    "adafactor_hf-torch_without_floors": (
        ("adafactor", {"dialect": "hf", **PLAIN, "eps": (1e-60, 1e-3)}),
        ("adafactor", {"dialect": "torch", **PLAIN, "eps": (1e-60, 1e-3)}),
    ),
    "lion_betas_0-sign": (("lion", {"betas": (0.0, 0.0)}), ("signum", {"momentum": 0.0})),
    "lion_equal_betas-signum": (
        ("lion", {"betas": (0.9, 0.9), "weight_decay": 0.1}),
        ("signum", {"momentum": 0.9, "weight_decay": 0.1}),
    ),
    "sgd_vanishing_momentum-sgd": (("sgd", {"momentum": 1e-300, "nesterov": True}), ("sgd", {})),
    "lars_vanishing_momentum-lars_without": (("lars", {"momentum": 1e-300}), ("lars", {"momentum": 0.0})),
}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("one", "other"), SAME.values(), ids=SAME.keys())
def test_one_becomes_the_other(one, other, engine):
    assert_same(ends(engine, one[0], **one[1]), ends(engine, other[0], **other[1]))


def test_every_rule_takes_part():
    assert {rule for pair in SAME.values() for rule, _ in pair} == set(RULES)


# Rules that divide by the gradient's size, with the eps that hides it taken away.
BLIND_TO_GRADIENT_SCALE = {
    "rmsprop": {"eps": NONE},
    "adagrad": {"eps": NONE},
    "adam": {"eps": NONE},
    "adamw": {"eps": NONE},
    "adafactor": {"eps": (NONE, 1e-3)},
    "lamb": {"eps": NONE},
    "lars": {"eps": 0.0},
    "lion": {},
    "signum": {},
}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("rule", BLIND_TO_GRADIENT_SCALE)
def test_gradient_scale_does_not_matter(rule, engine):
    hyper = BLIND_TO_GRADIENT_SCALE[rule]
    assert_same(ends(engine, rule, **hyper), ends(engine, rule, grow=1000.0, **hyper))


def test_gradient_scale_matters_to_sgd_alone():
    assert set(RULES) - set(BLIND_TO_GRADIENT_SCALE) == {"sgd"}
    assert not torch.equal(ends("reference", "sgd")[0], ends("reference", "sgd", grow=2.0)[0])


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("rule", ["lamb", "lars", "adafactor"])
def test_layer_wise_steps_grow_with_the_parameter(rule, engine):
    """Ten times the parameter, ten times the path: the step is a share of the tensor's own size."""
    hyper = {"weight_decay": 0.0, **({"always_adapt": True} if rule == "lamb" else {})}
    hyper |= {"eps": (NONE, NONE)} if rule == "adafactor" else {"eps": NONE}
    ten = ends(engine, rule, start=10.0, **hyper)
    assert_same([p / 10 for p in ten], ends(engine, rule, **hyper))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("rule", [r for r in RULES.values() if r.decay == "decoupled"], ids=lambda r: r.name)
def test_decoupled_decay_is_geometric(rule, engine):
    """Without a gradient the parameter only decays: by lr wd of itself a step, whatever the rule."""
    zeros = [torch.zeros(s, dtype=torch.float64) for s in SHAPES]
    params = ends(engine, rule, gradients=zeros, weight_decay=0.5)
    assert_same(params, [p * (1 - 0.03 * 0.5) ** STEPS for p in tensors(SHAPES, seed=1)])


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("dialect", RULES["adafactor"].dialects)
def test_factoring_a_rank_one_gradient_loses_nothing(dialect, engine):
    """g^2 of an outer product is its row means times its column means, so the direction is the sign."""
    a, b = tensors([(LARGE[0], 1), (1, LARGE[1])], seed=1)
    g = [a @ b]
    plain = {**PLAIN, "eps": (1e-60, 1e-3)}
    factored = ends(engine, "adafactor", [LARGE], gradients=g, dialect=dialect, **plain)
    assert_same(factored, ends(engine, "signum", [LARGE], gradients=g, momentum=0.0))
