"""Passes: as few readings as reductions allow, as few bytes as codecs allow, nothing read too late."""

import pytest
import torch

from laws.cases import CASES, every_rule
from steepest.codecs import SLOT_CODECS, param_codec, plain, slot_codec
from steepest.contract import Scope, expand
from steepest.kernels.build import build
from steepest.kernels.graph import Domain
from steepest.kernels.listing import listing
from steepest.kernels.schedule import Fold, Pass
from steepest.rules import RULES

SHAPE = torch.Size((256, 512))


def kernel_of(rule, state=None, param=None, dtype=torch.float32, telemetry=False, **hyper):
    full = rule.defaults(hyper.get("dialect")) | hyper
    h = expand(full, 1)
    h.scale, h.clip_value, h.l2 = 1.0, None, 0.0
    shapes = rule.slots_for(SHAPE, full)
    codecs = {"p": param_codec(param, dtype)}
    for name in shapes:
        codecs[name] = slot_codec(state, name, rule.slots[name], SHAPE, vars(h))
    vectors = {n: "row" if s[1] == 1 else "column" for n, s in shapes.items() if rule.slots[n].shape}
    return build(rule, h, codecs, dtype, vectors, telemetry)


# rule, state, param: passes over the elements, bytes a parameter (counted by hand: p and g of 4 bytes, every
# slot read and written; LAMB reads p, m and v again and writes p; a block's scale is 1/32 of a byte).
KNOWN = [
    ("sgd", None, {}, 1, 12),
    ("adamw", None, {}, 1, 28),
    ("lion", None, {}, 1, 20),
    ("rmsprop", None, {}, 1, 20),
    ("adagrad", None, {}, 1, 20),
    ("lars", None, {}, 2, 28),
    ("lamb", None, {}, 2, 40),
    ("adafactor", None, {}, 3, 24),
    ("adamw", "bf16", {}, 1, 20),
    ("adamw", "int8", {}, 1, 16 + 4 / 32),
    ("adamw", "int4", {}, 1, 14 + 4 / 32),
    ("adamw", {"m": "int8", "v": "factored"}, {}, 1, 14 + 2 / 32),
    ("lamb", "int8", {}, 2, (8 + 2) + (12 + 4) + 6 / 32),
]


@pytest.mark.parametrize(("rule", "state", "hyper", "passes", "moved"), KNOWN, ids=str)
def test_passes_and_bytes(rule, state, hyper, passes, moved):
    schedule = kernel_of(RULES[rule], state, **hyper).schedule
    assert len(schedule.passes) == passes
    assert schedule.bytes_moved == pytest.approx(moved)


@pytest.mark.parametrize(("rule", "last", "kept"), [("adamw", True, 2), ("lion", False, 1)])
def test_parameters_wait_for_the_codecs_where_that_keeps_no_more(rule, last, kept):
    """Lion's update is not what it stores: to wait, it would have to be kept."""
    first, second = kernel_of(RULES[rule], "int8").schedule.passes[0].stages
    assert [name for name, _ in (second if last else first).stores if name == "p"] == ["p"]
    assert len(first.keeps) == kept


def test_parameters_of_two_bytes():
    moved = kernel_of(RULES["adamw"], param="split32", dtype=torch.bfloat16).schedule.bytes_moved
    assert moved == 2 + 2 * (2 + 2) + 16
    assert kernel_of(RULES["adamw"], dtype=torch.bfloat16).schedule.bytes_moved == 2 + 4 + 16


@pytest.mark.parametrize("codec", [None, *SLOT_CODECS])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_nothing_is_read_after_it_was_replaced(case, codec):
    """Whatever a pass or fold stores is not read again as the old value."""
    schedule = kernel_of(case.rule, codec, telemetry=True, **case.hyper).schedule
    values, replaced = schedule.code.values, set()
    assert schedule.passes and every_rule(CASES)
    for work in schedule.work:
        loops = [x for _, found in work.stages for x in found.values()] if isinstance(work, Fold) else []
        stages = work.stages if isinstance(work, Pass) else loops
        read = {values[i].attr for s in stages for i in s.values if values[i].op == "input"}
        read -= {values[i].attr for i in getattr(work, "given", {}) if values[i].op == "input"}
        assert not read & replaced
        replaced |= {name for s in stages for name, _ in s.stores}
    assert set(schedule.code.outputs) <= replaced


@pytest.mark.parametrize("case", CASES, ids=str)
def test_passes_follow_scope(case):
    """Rules of single elements need one pass and no fold; others are cut at their sums."""
    schedule = kernel_of(case.rule, **case.hyper).schedule
    folds = [w for w in schedule.work if isinstance(w, Fold)]
    if case.rule.scope is Scope.ELEMENT:
        assert len(schedule.passes) == 1 and not folds
    else:
        assert folds
    assert all(v.domain in (Domain.HOST, Domain.ELEMENT) for v in schedule.code.values) is not bool(folds)


def test_live_numbers_are_hoisted():
    """No power, and no division by a number, is left for the elements."""
    schedule = kernel_of(RULES["adamw"]).schedule
    inside = [v for s in schedule.passes[0].stages for i in s.values if (v := schedule.code.values[i])]
    assert "pow" not in {v.op for v in inside}
    assert sum(v.op == "div" for v in inside) == 1  # by the root of the second moment


def test_the_listing_shows_every_part():
    text = listing(kernel_of(RULES["lamb"], "int8", telemetry=True).schedule)
    for words in ("once a step, on the host:", "pass 0: reads", "fold 1: once a tensor", "pass 2: reads"):
        assert words in text
    for words in ("random bits", "block_max", "over the tensor", "report p", "m.scale'", "p' ="):
        assert words in text
    plain_text = listing(kernel_of(RULES["lion"]).schedule)
    assert "block" not in plain_text and plain_text.count("pass") == 1
    assert "for every row" in listing(kernel_of(RULES["adafactor"]).schedule)


def test_plain_codecs_change_nothing():
    assert plain(torch.float32) is plain(torch.float32)
    assert not plain(torch.float32).lossy and plain(torch.bfloat16).lossy
