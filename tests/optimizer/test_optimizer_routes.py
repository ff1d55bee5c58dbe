"""Routes: many rules in one object; the first match wins and nothing is left unclaimed."""

from __future__ import annotations

import re

import pytest
import torch
from optimizer_cases import Tied, apart, differentiate, named, owned, parameters, walk
from torch.nn import Parameter

from steepest import AdamW, Optimizer, Route, SteepestError, schedules
from steepest.optimizer import decay_groups, everything, matrices, vectors


def hybrid(model, **options):
    return Optimizer(
        model,
        routes=[
            Route("embed.*", "lion", lr=0.01),
            Route(re.compile(r"norm"), "sgd", lr=0.1),
            Route(matrices, "lamb", lr=0.02),
            Route(everything, "adamw", lr=0.03, weight_decay=0.0),
        ],
        **options,
    )


def test_the_first_match_wins_and_tied_weights_count_once():
    model = Tied()
    rows = [[name, rule] for name, _, rule, *_ in hybrid(model).routing()]
    assert rows == [
        ["embed.weight", "lion"],
        ["norm.weight", "sgd"],
        ["norm.bias", "sgd"],
        ["proj.weight", "lamb"],
        ["proj.bias", "adamw"],
    ]
    twice = list(model.named_parameters(remove_duplicate=False))
    assert len(twice) == 6 and [r[0] for r in hybrid(twice).routing()] == [r[0] for r in rows]


def test_each_route_steps_as_an_optimizer_of_its_own():
    torch.manual_seed(0)
    one, many = Tied(), Tied()
    many.load_state_dict(one.state_dict())
    opt = hybrid(one)
    walk(opt, 4)
    groups = dict(many.named_parameters())
    alone = [
        Optimizer([groups["embed.weight"]], "lion", lr=0.01),
        Optimizer([groups["norm.weight"], groups["norm.bias"]], "sgd", lr=0.1),
        Optimizer([groups["proj.weight"]], "lamb", lr=0.02),
        Optimizer([groups["proj.bias"]], "adamw", lr=0.03, weight_decay=0.0),
    ]
    for step in range(4):
        differentiate([p for other in alone for p in owned(other)], step)
        for other in alone:
            other.step()
    assert apart(owned(opt), [p for other in alone for p in owned(other)]) == 0.0


def test_the_routing_digest_names_the_table():
    model = Tied()
    first, second = hybrid(model), hybrid(Tied())
    assert first.routing_digest() == second.routing_digest() and len(first.routing_digest()) == 16
    other = Optimizer(model, routes=[Route(matrices, "adamw"), Route(vectors, "adamw", weight_decay=0.0)])
    same_rule = Optimizer(model, routes=[Route(matrices, "adamw"), Route(vectors, "adamw")])
    assert len({first.routing_digest(), other.routing_digest(), same_rule.routing_digest()}) == 3


def test_a_route_may_hold_schedules():
    opt = Optimizer(
        named(), routes=[Route("p0", "adamw", lr=schedules.linear(0.1, 10)), Route("*", "sgd", lr=0.2)]
    )
    walk(opt, 5)
    assert opt.param_groups[0]["lr"] == pytest.approx(0.05) and opt.param_groups[1]["lr"] == 0.2


def test_a_trainable_parameter_that_no_route_claims_is_named():
    with pytest.raises(SteepestError, match=r"no route claims norm\.weight, norm\.bias"):
        Optimizer(Tied(), routes=[Route("embed.*", "lion"), Route("proj.*", "adamw")])


def test_many_unclaimed_parameters_are_counted():
    pairs = named(shapes=[(2,)] * 9)
    with pytest.raises(SteepestError, match=r"p1, p2, p3, p4, p5 and 3 more"):
        Optimizer(pairs, routes=[Route("p0", "sgd")])


def test_a_frozen_parameter_needs_no_route():
    model = Tied()
    model.norm.requires_grad_(False)
    opt = Optimizer(model, routes=[Route("embed.*", "lion"), Route("proj.*", "adamw")])
    assert [row[0] for row in opt.routing()] == ["embed.weight", "proj.weight", "proj.bias"]


@pytest.mark.parametrize("match", ["nowhere.*", re.compile("nowhere"), lambda name, p: False])
def test_a_route_that_matches_nothing_is_an_error(match):
    with pytest.raises(SteepestError, match="matches no parameter"):
        Optimizer(Tied(), routes=[Route(match, "lion"), Route(everything, "adamw")])


def test_a_route_hidden_behind_another_matches_nothing():
    with pytest.raises(SteepestError, match=r"route 'embed\.\*' matches no parameter"):
        Optimizer(Tied(), routes=[Route(everything, "adamw"), Route("embed.*", "lion")])


@pytest.mark.parametrize(
    ("params", "options", "says"),
    [
        (parameters(), {}, "named_parameters"),
        ([], {}, "named_parameters"),
        (named(), {"lr": 0.1}, "'lr' belongs inside a Route"),
        (named(), {"rule": "adamw"}, "either rule"),
    ],
)
def test_what_routes_cannot_go_with(params, options, says):
    with pytest.raises(SteepestError, match=says):
        Optimizer(params, routes=[Route(everything, "adamw")], **options)


@pytest.mark.parametrize(
    ("route", "says"),
    [
        (Route("p0", "adamww"), "did you mean 'adamw'"),
        (Route("p0", "adamw", weigth_decay=0.1), "group 0 'weigth_decay'; did you mean 'weight_decay'"),
        (Route("p0", "adamw", lr=-1.0), "group 0: lr=-1.0 is out of range"),
    ],
)
def test_a_route_s_mistakes_name_its_group(route, says):
    with pytest.raises(SteepestError, match=says):
        Optimizer(named(), routes=[route, Route(everything, "sgd")])


def test_matrices_are_decayed_and_the_rest_is_not():
    model = Tied()
    model.embed.weight.requires_grad_(False)
    for build in (AdamW, torch.optim.AdamW):
        first, second = build(decay_groups(model), weight_decay=0.1).param_groups
        assert first["param_names"] == ["proj.weight"] and first["weight_decay"] == 0.1
        assert second["param_names"] == ["proj.bias", "norm.weight", "norm.bias"]
        assert second["weight_decay"] == 0.0


def test_neither_rule_nor_routes_is_an_error():
    with pytest.raises(SteepestError, match="either rule"):
        Optimizer([Parameter(torch.ones(2))])
