"""State as named tensors and facts: exact through JSON, and every mismatch caught before anything moves."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from optimizer_cases import SHAPES, bits, differentiate, make, named, owned, parameters, snapshot, walk
from torch.nn import Parameter

import steepest
from laws.cases import CODED, COMBINATIONS, choice, every_rule, feed, slots_of, tensors
from steepest import SteepestError, schedules
from steepest.codecs import PARAM_CODECS, SLOT_NAMES
from steepest.optimizer import Route


def through_json(exported):
    """As a file gives it back: tensors copied, facts in strict JSON with its keys in another order."""
    held, facts = exported
    text = json.dumps(facts, sort_keys=True, allow_nan=False)
    return {key: held[key].clone() for key in sorted(held)}, json.loads(text)


def test_the_table_covers_every_rule_and_codec():
    assert every_rule([case for case, _, _ in COMBINATIONS])
    assert {name for _, name, _ in COMBINATIONS} == set(SLOT_NAMES)
    assert {param for _, _, param in COMBINATIONS} == {None, *PARAM_CODECS}


@pytest.mark.parametrize(("case", "codec", "param"), COMBINATIONS, ids=str)
def test_a_resumed_optimizer_is_the_uninterrupted_one(case, codec, param):
    dtype, shapes = torch.bfloat16 if param else torch.float32, [(64, 64), (5,)]
    state = choice(case, codec, shapes)

    def build(values):
        params = [(f"layer/{i}.w", Parameter(v.detach().clone())) for i, v in enumerate(values)]
        return case.build(params, lr=schedules.linear(0.05, 9), state=state, param=param, engine="reference")

    whole = build(tensors(shapes, seed=1, dtype=dtype))
    feed(owned(whole), seed=0)
    whole.step()
    again = build(owned(whole))
    assert again.import_state(*through_json(whole.export_state())) == []
    for opt in (whole, again):
        feed(owned(opt), seed=1)
        opt.step()
    assert again.committed == whole.committed == 2 and again.param_groups[0]["lr"] == 0.05 * 7 / 9
    for p, q in zip(owned(whole), owned(again), strict=True):
        assert bits(p) == bits(q) and again.state[q]["step"] == 2
        assert bits(slots_of(whole, p)) == bits(slots_of(again, q))


def test_names_and_facts_are_what_they_say():
    opt = make(
        "AdamW", [("w", Parameter(torch.ones(64, 128))), ("b", Parameter(torch.ones(3)))], state="int8"
    )
    opt.skipped = 4
    held, facts = opt.export_state()
    assert set(held) == {"w/m", "w/m.scale", "w/v", "w/v.scale", "b/m", "b/v"}
    assert facts["parameters"]["w"] == {
        "place": 0,
        "group": 0,
        "rule": "adamw",
        "shape": [64, 128],
        "dtype": "float32",
        "codecs": {"p": "float32", "m": "int8", "v": "int8"},
        "step": 0,
    }
    assert (facts["skipped"], facts["seed"], facts["version"]) == (4, 0, 2)
    assert steepest.LAMB(named()).export_state()[1]["groups"][0]["trust_high"] == "inf"


def fresh(opt, **options):
    return steepest.AdamW([(n, Parameter(p.detach().clone())) for n, p in opt], **options)


def test_counters_and_seed_come_back():
    opt = steepest.AdamW(named(), seed=5)
    walk(opt, 2)
    differentiate(owned(opt), 2)
    owned(opt)[0].grad[0] = float("nan")
    opt.step()
    other = fresh(named())
    other.import_state(*through_json(opt.export_state()))
    assert (other.committed, other.skipped, other.consecutive_skips, other.seed) == (2, 1, 1, 5)


def test_edited_hyperparameters_stay_and_are_told():
    opt = steepest.LAMB(named(), lr=0.1, weight_decay=0.1)
    walk(opt, 2)
    other = steepest.LAMB(named(), lr=0.2, weight_decay=0.1, betas=(0.9, 0.95), max_grad_norm=2.0)
    told = other.import_state(*through_json(opt.export_state()))
    assert told == [
        "group 0: lr 0.1 -> 0.2",
        "group 0: betas [0.9, 0.999] -> [0.9, 0.95]",
        "max_grad_norm 1.0 -> 2.0",
    ]
    assert other.param_groups[0]["lr"] == 0.2 and other.max_grad_norm == 2.0 and other.committed == 2


def test_a_schedule_goes_on_where_it_was():
    def build():
        return steepest.AdamW(named(), lr=schedules.cosine(0.1, 9), betas=(0.9, schedules.linear(0.99, 9)))

    opt, other = build(), build()
    walk(opt, 3)
    assert other.import_state(*through_json(opt.export_state())) == []
    assert other.param_groups[0]["lr"] == opt.param_groups[0]["lr"] == schedules.cosine(0.1, 9)(3)


def routed(params):
    return steepest.Optimizer(params, routes=[Route("p0", "lion", lr=0.1), Route("*", "adamw", lr=0.1)])


@pytest.mark.parametrize(
    "build",
    [
        lambda: steepest.AdamW(parameters()),
        lambda: steepest.AdamW([{"params": [p]} for p in parameters()]),
        lambda: routed(named()),
        lambda: steepest.AdamW([{"params": [("w", p)]} for p in parameters()]),  # one name for three
    ],
)
def test_without_names_by_place_and_under_one_name_too(build):
    opt, other = build(), build()
    walk(opt, 2)
    other.import_state(*through_json(opt.export_state()))
    assert [bits(slots_of(other, p)) for p in owned(other)] == [bits(slots_of(opt, p)) for p in owned(opt)]
    assert len({key.rpartition("/")[0] for key in opt.export_state()[0]}) == 3


def test_another_order_is_matched_by_name_and_another_naming_by_place():
    opt = steepest.AdamW(named())
    walk(opt, 2)
    turned, bare = fresh(named()[::-1]), steepest.AdamW(parameters())
    for other in (turned, bare):
        other.import_state(*through_json(opt.export_state()))
    for p, q, r in zip(owned(opt), owned(turned)[::-1], owned(bare), strict=True):
        assert bits(slots_of(opt, p)) == bits(slots_of(turned, q)) == bits(slots_of(bare, r))


def test_frozen_parameters_have_no_state_and_keep_none():
    def build():
        params = named()
        params[1][1].requires_grad_(False)
        return steepest.AdamW(params)

    opt, other = build(), build()
    held, facts = opt.export_state()
    assert facts["parameters"]["p1"]["step"] is None and not any(key.startswith("p1/") for key in held)
    other.import_state(*through_json((held, facts)))
    assert owned(other)[1] not in other.state
    whole = steepest.AdamW(named())  # there it was trained before it was frozen
    walk(whole, 2)
    other.import_state(*through_json(whole.export_state()))
    assert bits(slots_of(other, owned(other)[1])) == bits(slots_of(whole, owned(whole)[1]))


def damaged(change):
    """What a good state becomes under `change(tensors, facts)`."""

    def make_it():
        opt = steepest.AdamW(named())
        walk(opt, 2)
        held, facts = through_json(copy.deepcopy(opt.export_state()))
        change(held, facts)
        return held, facts

    return make_it


def of(build):
    def make_it():
        opt = build()
        walk(opt, 2)
        return through_json(opt.export_state())

    return make_it


def bfloat16():
    return named(torch.bfloat16)


MISMATCHES = {
    "renamed": (
        of(lambda: steepest.AdamW([(f"q{n}", p) for n, p in named()])),
        "no parameter 'p0'; it has 'qp0'",
    ),
    "shape": (of(lambda: steepest.AdamW(named(shapes=[(3, 4), (3,), (2, 2, 2)]))), r"p0.*\[3, 4\].*\[4, 3\]"),
    "dtype": (of(lambda: steepest.AdamW(bfloat16())), "p0: saved with dtype bfloat16, here it is float64"),
    "rule": (of(lambda: steepest.Adam(named())), "p0: saved with rule adam, here it is adamw"),
    "fewer": (of(lambda: steepest.AdamW(named(shapes=SHAPES[:2]))), "has 2 parameters, this optimizer has 3"),
    "slots": (of(lambda: steepest.AdamW(named(), amsgrad=True)), "p0.*m, step, v, x.*m, step, v"),
    "missing": (
        damaged(lambda held, facts: held.pop("p2/v")),
        "p2: the saved state holds m, step,",
    ),
    "stray": (damaged(lambda held, facts: held.update({"p9/v": held["p2/v"]})), "'p9/v' belongs to no"),
    "tensor": (
        damaged(lambda held, facts: held.update({"p2/v": held["p1/v"]})),
        "p2: saved slot v is 3 float64",
    ),
    "newer": (damaged(lambda held, facts: facts.update(version=99)), "update steepest"),
    "foreign": (
        damaged(lambda held, facts: facts.pop("parameters")),
        r"not from an optimizer's export_state",
    ),
}


@pytest.mark.parametrize("case", MISMATCHES)
def test_a_mismatch_names_both_sides_and_changes_nothing(case):
    make_it, says = MISMATCHES[case]
    opt = steepest.AdamW(named())
    walk(opt, 1, first=7)
    before = snapshot(opt)
    with pytest.raises(SteepestError, match=says):
        opt.import_state(*make_it())
    assert snapshot(opt) == before


def test_another_codec_is_a_mismatch():
    def build(**options):
        return steepest.AdamW(
            [("w", Parameter(t)) for t in tensors([CODED[0]], 1, torch.bfloat16)], **options
        )

    held = build(state="int8", param="split24").export_state()
    with pytest.raises(SteepestError, match="w: saved with m as int8, this optimizer keeps float32"):
        build(param="split24").import_state(*held)
    with pytest.raises(SteepestError, match="w: saved with the parameter as split24"):
        build(state="int8").import_state(*held)


def test_what_was_imported_is_a_copy():
    opt, other = steepest.AdamW(named()), fresh(named())
    walk(opt, 2)
    other.import_state(*opt.export_state())
    before = snapshot(other)
    walk(opt, 1)
    assert snapshot(other) == before
