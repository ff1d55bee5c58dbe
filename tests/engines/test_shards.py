"""Parts of tensors, stepped on k ranks, end where the whole tensors end: to the last bit for rules that see
one element, within a stated bound for those that see sums; whatever the codec, the engine and the cut."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engines.ranks import Ranks, chunks, cut_bucket, uneven
from engines.shard_cases import SHAPES, buckets_of, compare, train
from laws.cases import CARD_CASES, CASES, COMBINATIONS, PARAMS, Case, every_rule
from steepest import SteepestError
from steepest.codecs import SLOT_NAMES, grid
from steepest.contract import Scope
from steepest.engines import ENGINES, classify, tables
from steepest.engines.classes import always
from steepest.kernels import build, listing
from steepest.rules import RULES, rule
from steepest.rules.declare import WEIGHT_DECAY, rate

CUTS = [(1, chunks), (2, chunks), (3, uneven), (4, chunks)]
EAGER = ["reference", "foreach"]
ADD_UPS = {"lamb": 1, "lars": 1, "adafactor": 2}
"""How often ranks speak in a step, for any number of tensors. Adafactor's means come before its clipping."""


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    """And small tensors in several pieces."""
    monkeypatch.setattr(tables, "SMALLEST", 1024)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _kernels():
    """Every card's settings under three codecs, so that every codec meets two rules or more."""
    for i, case in enumerate(CARD_CASES):
        for name in SLOT_NAMES[i % 4 :: 4]:
            yield case, name, PARAMS[(i + SLOT_NAMES.index(name)) % len(PARAMS)]


KERNELS = list(_kernels())


def _combination(number):
    return "-".join(map(str, COMBINATIONS[number]))


def test_the_tables_cover_every_rule_codec_engine_and_cut():
    assert every_rule([case for case, *_ in COMBINATIONS]) and len(COMBINATIONS) > 200
    assert every_rule([case for case, *_ in KERNELS])
    assert {name for _, name, _ in KERNELS} == set(SLOT_NAMES)
    assert {param for *_, param in KERNELS} == set(PARAMS)
    assert 0 in chunks(3, 4) and 0 in uneven(7, 3) and set(ENGINES) == {"fused", *EAGER}


@pytest.mark.parametrize("number", range(len(COMBINATIONS)), ids=_combination)
def test_parts_equal_the_whole(number):
    """Every rule under every codec; engines and cuts take turns."""
    engine, cut = ENGINES[EAGER[number % 2]], CUTS[number // 2 % len(CUTS)]
    compare(*train(*COMBINATIONS[number], engine, *cut)[:2])


@pytest.mark.parametrize(("case", "name", "param"), KERNELS, ids=str)
def test_kernels_of_parts_equal_those_of_the_whole(case, name, param):
    for cut in CUTS:
        compare(*train(case, name, param, ENGINES["fused"], *cut)[:2])


# ------------------------------------------------------------ what ranks say


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("case", [case for case in CASES if case.rule.scope is not Scope.ELEMENT], ids=str)
def test_ranks_speak_once_for_all_sums_of_a_level(case, engine):
    """Matrices by kernels, tensors of three dimensions by foreach, one vector for both."""
    whole, cut, calls, _ = train(case, "fp32", None, ENGINES[engine], 3, uneven)
    compare(whole, cut)
    assert calls == ADD_UPS[case.rule.name]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", [name for name in RULES if name not in ADD_UPS])
def test_rules_of_elements_say_nothing(name, engine):
    assert RULES[name].scope is Scope.ELEMENT
    *_, calls, _ = train(Case(RULES[name], {"weight_decay": 0.1}), "int8", None, ENGINES[engine], 3, uneven)
    assert calls == 0


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", ["adamw", "lamb"])
def test_a_factored_slot_costs_one_word_before_the_step_and_one_in_it(name, engine):
    case = Case(RULES[name], {"weight_decay": 0.1})
    *_, calls, _ = train(case, "factored", None, ENGINES[engine], 2, chunks, [(64, 128), (128, 64)])
    assert calls == 2


@pytest.mark.parametrize("k", [2, 4])
@pytest.mark.parametrize("name", ["lamb", "adafactor"])
def test_kernels_serve_the_same_tensors_on_every_rank(name, k):
    ranks = Ranks(k)
    buckets = buckets_of(Case(RULES[name], {"weight_decay": 0.1}), "fp32", None, SHAPES)
    parts = [cut_bucket(bucket, ranks) for bucket in buckets]
    found = []
    for rank in range(k):
        classes, rest = classify([own[rank] for own in parts], "cpu")
        found.append(([places for _, places in classes], rest))
    assert found[0][0] and all(own == found[0] for own in found)
    whole, _ = classify(buckets, "cpu")
    assert [places for _, places in whole] == found[0][0]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", ["adamw", "lamb", "adafactor"])
def test_telemetry_of_parts_adds_up_to_that_of_the_whole(name, engine):
    case = Case(RULES[name], {"weight_decay": 0.1})
    for param in (None, "bf16"):
        *_, (expected, got) = train(case, "int8", param, ENGINES[engine], 3, uneven, telemetry=True)
        for b, rows in enumerate(expected):
            total = sum(own[b] for own in got)
            torch.testing.assert_close(total, rows, rtol=2e-3, atol=3.0 if param else 1e-9)


# ------------------------------------------------------------ rules of one's own

OWN = {"lr": rate(0.1), "weight_decay": WEIGHT_DECAY}


@rule(scope=Scope.TENSOR, paper="-", decay="inside", hyper=OWN)
def centred(p, g, s, h):
    return g - torch.mean(g), {}


@rule(scope=Scope.TENSOR, paper="-", decay="inside", hyper=OWN)
def ranked(p, g, s, h):
    return g / torch.median(g), {}


@pytest.mark.parametrize("engine", ENGINES)
def test_a_rule_of_one_s_own_is_completed_if_it_can_be_traced(engine):
    case = Case(centred, {})
    whole, cut, calls, _ = train(case, "fp32", None, ENGINES[engine], 3, uneven)
    compare(whole, cut)
    assert calls == 1
    with pytest.raises(SteepestError, match="ranked sums over tensors of which this rank has a part"):
        train(Case(ranked, {}), "fp32", None, ENGINES[engine], 2, chunks)


# ------------------------------------------------------------ what makes it so


@given(st.lists(st.integers(1, 300), min_size=1, max_size=3), st.integers(0, 400), st.integers(0, 400))
def test_rows_of_the_grid_are_as_long_in_a_part(rest, rows, others):
    assert grid([rows, *rest])[1] == grid([others, *rest])[1]
    assert grid([rows + others, *rest])[0] == grid([rows, *rest])[0] + grid([others, *rest])[0]


@pytest.mark.parametrize("name", ["lamb", "lars"])
def test_kernels_of_parts_are_those_of_the_whole_where_no_rows_are_summed(name):
    (bucket,) = buckets_of(Case(RULES[name], {"weight_decay": 0.1}), "fp32", None, [(64, 128)])
    texts = [
        build(bucket.rule, always(bucket.h), bucket.codecs, torch.float32, {}, False, cut).printed[0]
        for cut in (False, True)
    ]
    assert texts[0] == texts[1]


def test_a_schedule_of_parts_completes_the_sums_of_rows_with_those_of_the_pass_before():
    (bucket,) = buckets_of(
        Case(RULES["adafactor"], {"dialect": "hf", "weight_decay": 0.1}), "fp32", None, [(9, 7)]
    )
    vectors = {"r": "row", "c": "column"}
    kernel = build(bucket.rule, always(bucket.h), bucket.codecs, torch.float32, vectors, False, cut=True)
    kinds = [type(work).__name__ for work in kernel.schedule.work]
    assert kinds == ["Pass", "Fold", "Fold", "Pass", "Fold", "Pass"]
    first, local, *_ = kernel.schedule.work
    assert len(local.left) == 1 and set(local.left) < set(first.totals)
    assert "for every row" in listing(kernel.schedule)
