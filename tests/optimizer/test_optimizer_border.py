"""The border between two stages: what goes on of the state, by every policy, between every two rules."""

from __future__ import annotations

import json
import math

import pytest
import torch
from optimizer_cases import CONSTRUCTORS, bits, differentiate, make, named, owned, snapshot, walk
from torch.nn import Parameter

import steepest
from laws.cases import CARD_CASES, COMBINATIONS, LARGE, choice, every_rule, feed, slots_of, tensors
from steepest import SteepestError
from steepest.codecs import PARAM_CODECS
from steepest.optimizer import Route, carry, suggested_rate
from steepest.optimizer.border import WORDS, canonical
from steepest.rules import RULES

FEW = [c for c in COMBINATIONS if c[1] in ("fp32", "int8", "factored", "bf16") and c[0].hyper["weight_decay"]]


def test_the_tables_cover_every_rule():
    assert every_rule([case for case, _, _ in FEW]) and every_rule(CARD_CASES)
    assert {param for _, _, param in FEW} == {None, *PARAM_CODECS}


@pytest.mark.parametrize(("case", "codec", "param"), FEW, ids=str)
def test_two_identical_stages_that_keep_are_one(case, codec, param):
    dtype, shapes = torch.bfloat16 if param else torch.float32, [(64, 64), (5,)]
    values = tensors(shapes, seed=1, dtype=dtype)

    def build(params):
        state = choice(case, codec, shapes)
        return case.build(params, lr=0.05, state=state, param=param, engine="reference")

    def go(opt, first):
        for k in range(first, first + 2):
            feed(owned(opt), seed=k)
            opt.step()

    whole = build([(f"p{i}", Parameter(v.clone())) for i, v in enumerate(values)])
    params = [Parameter(v.clone()) for v in values]
    first = build([(f"p{i}", p) for i, p in enumerate(params)])
    go(whole, 0)
    go(first, 0)
    second = build([(f"module.p{i}", p) for i, p in enumerate(params)])
    told = carry(first, second, "keep")
    go(whole, 2)
    go(second, 2)
    assert [row.step for row in told.rows] == [2, 2] and not told.dropped
    for p, q in zip(owned(whole), params, strict=True):
        assert bits(p) == bits(q) and bits(slots_of(whole, p)) == bits(slots_of(second, q))


# ---------------------------------------------------------------------- one rule, changed


def pair(name, policy=None, steps=3, before=(), **options):
    """An optimizer after some steps, and a new one of its rule on the same parameters, carried over."""
    params = named()
    old = make(name, params, **dict(before))
    walk(old, steps)
    new = make(name, params, **options)
    return old, new, carry(old, new, policy) if policy else None


@pytest.mark.parametrize("policy", ["zero", "fresh"])
@pytest.mark.parametrize("name", CONSTRUCTORS)
def test_zero_and_fresh_start_again(name, policy):
    old, new, told = pair(name, policy)
    start = make(name, named())
    for p, q in zip(owned(new), owned(start), strict=True):
        assert new.state[p]["step"] == 0 and bits(slots_of(new, p)) == bits(slots_of(start, q))
    assert {what for row in told.rows for what in row.slots.values()} <= {"started fresh"}
    assert old.state[owned(old)[0]]["step"] == 3


@pytest.mark.parametrize("name", CONSTRUCTORS)
def test_zero_m_forgets_directions_and_keeps_sizes(name):
    before = {"momentum": 0.9} if name == "RMSprop" else {"beta1": 0.9} if name == "Adafactor" else {}
    old, new, _ = pair(name, "zero_m", before=before, **before)
    for p in owned(new):
        own, was = slots_of(new, p), slots_of(old, p)
        assert new.state[p]["step"] == 3 and set(own) == set(was) and own
        for slot, value in own.items():
            assert bool((value == 0).all()) if slot == "m" else bits(value) == bits(was[slot]), slot
            assert was[slot] is not value and bool(was[slot].any())


@pytest.mark.parametrize("name", ["AdamW", "Adafactor", "RMSprop", "Adagrad", "LAMB"])
def test_a_stated_factor_multiplies_second_moments(name):
    old, new, told = pair(name, {"rescale_v": 0.25})
    for p in owned(new):
        assert torch.equal(new.state[p]["v"], old.state[p]["v"] * 0.25)
        assert "m" not in new.state[p] or torch.equal(new.state[p]["m"], old.state[p]["m"])
    assert all(row.slots["v"] == "times 0.25" for row in told.rows)


@pytest.mark.parametrize("name", ["AdamW", "RMSprop", "Adagrad"])
def test_rescale_v_finds_the_factor_of_the_old_step_s_size(name):
    old, new, _ = pair(
        name, before={"lr": 1e-2, "telemetry": True, "weight_decay": 0.0}, lr=1e-3, weight_decay=0.0
    )
    differentiate(owned(new), 9, scale=0.05)
    before = old.telemetry()
    carry(old, new, "keep")
    kept = new.preview()
    carry(old, new, "rescale_v")
    for key, row in new.preview().items():
        assert row["update_norm"] / 1e-3 == pytest.approx(before[key]["update_norm"] / 1e-2, rel=0.011)
        assert row["update_norm"] != pytest.approx(kept[key]["update_norm"], rel=0.1)


def test_rescale_v_needs_what_it_compares():
    with pytest.raises(SteepestError, match="needs the old stage's telemetry"):
        pair("AdamW", "rescale_v")
    params = named()
    old = steepest.AdamW(params, telemetry=True)
    walk(old, 1)
    new = steepest.AdamW(params)
    for p in owned(new):
        p.grad = None
    with pytest.raises(SteepestError, match="the new stage's first gradients"):
        carry(old, new, "rescale_v")
    differentiate(owned(new), 0)
    with pytest.raises(SteepestError, match="one is 0; state a factor"):
        carry(old, steepest.AdamW(params, lr=0.0), "rescale_v")


def test_an_age_reset_shrinks_the_first_step_as_adam_rel_says():
    """sqrt(1 - beta2) / (1 - beta1) of the size, under a gradient that stays the same."""
    params, betas = [("p", Parameter(torch.zeros(8, dtype=torch.float64)))], (0.5, 0.9)
    old = steepest.AdamW(params, lr=1e-3, betas=betas, weight_decay=0.0)
    for _ in range(400):
        differentiate(owned(old), 0)
        old.step()
    new = steepest.AdamW(params, lr=1e-3, betas=betas, weight_decay=0.0)
    told = carry(old, new, "age_reset")
    ratio = new.preview()["p"]["update_norm"] / old.preview()["p"]["update_norm"]
    assert ratio == pytest.approx(math.sqrt(0.1) / 0.5, rel=1e-6)
    assert told.rows[0].step == 0 and told.rows[0].slots == {"m": "kept", "v": "kept"}
    assert bits(slots_of(old, params[0][1])) == bits(slots_of(new, params[0][1]))


def test_an_age_reset_that_would_jump_is_refused_unless_m_is_zeroed():
    betas = {"betas": (0.9, 0.95)}
    old, new, _ = pair("AdamW", before=betas, **betas)
    before = snapshot(new)
    with pytest.raises(SteepestError, match=r"would be 2\.2 times too large.*zero_m"):
        carry(old, new, "age_reset")
    assert snapshot(new) == before
    told = carry(old, new, ["zero_m", "age_reset"])
    for p in owned(new):
        assert new.state[p]["step"] == 0 and not new.state[p]["m"].any()
        assert torch.equal(new.state[p]["v"], old.state[p]["v"])
    assert told.rows[0].policy == "zero_m + age_reset"
    for name in ("Lion", "RMSprop", "SGD"):  # rules that correct no bias do not mind
        assert {row.step for row in pair(name, "age_reset")[2].rows} == {0}


def test_keep_keeps_what_both_sides_have():
    _, _, told = pair("AdamW", "keep", amsgrad=True)
    assert told.rows[0].slots == {
        "m": "kept",
        "v": "kept",
        "x": "started fresh: the old stage did not keep it",
    }
    _, _, told = pair("SGD", "keep", momentum=0.0)
    assert told.rows[0].slots == {} and told.rows[0].step == 3


# ---------------------------------------------------------------------- another rule or codec

PAIRS = [(a, b) for a in CARD_CASES for b in CARD_CASES if a.rule.slots and b.rule.slots]


@pytest.mark.parametrize(("old_case", "new_case"), PAIRS, ids=str)
def test_what_is_converted_is_what_the_new_rule_would_hold_itself(old_case, new_case):
    """After the same steps of one constant gradient, whose square has rank one, as factors can hold it."""
    a, b = tensors([(LARGE[0], 1), (1, LARGE[1])], seed=3)
    steps, grads = 5, [a.abs() * b, tensors([(5,)], seed=4)[0]]

    def build(case, params):
        return case.build(params, lr=1e-3, weight_decay=0.0, engine="reference")

    def go(opt):
        for _ in range(steps):
            for p, g in zip(owned(opt), grads, strict=True):
                p.grad = g.clone()
            opt.step()
        return opt

    params = [(f"p{i}", Parameter(torch.ones_like(g))) for i, g in enumerate(grads)]
    old, new = go(build(old_case, params)), build(new_case, params)
    own = go(build(new_case, [(name, Parameter(p.detach().clone())) for name, p in params]))
    told = carry(old, new, "convert")
    for row, p, q in zip(told.rows, owned(new), owned(own), strict=True):
        fresh = [slot for slot, what in row.slots.items() if what.startswith("started fresh")]
        for slot, value in slots_of(new, p).items():
            if slot in fresh:
                assert not value.any()
            elif new_case.rule.slots[slot].of in ("gradient", "square"):
                torch.testing.assert_close(value, slots_of(own, q)[slot], rtol=1e-9, atol=1e-14)
        squares = [slot for slot in row.slots if new_case.rule.slots[slot].of == "square"]
        assert row.step == (0 if set(squares) & set(fresh) else steps)
        if old_case == new_case:
            assert not fresh
    assert bool(told.rates) == (old_case.rule.name != new_case.rule.name)


@pytest.mark.parametrize(
    ("old", "new", "fresh"),
    [
        ("AdamW", "Lion", []),
        ("AdamW", "SGD", []),
        ("AdamW", "Signum", []),
        ("AdamW", "LAMB", []),
        ("AdamW", "Adafactor", []),
        ("AdamW", "RMSprop", []),
        ("AdamW", "Adagrad", []),
        ("SGD", "Lion", []),
        ("Adafactor", "AdamW", ["m"]),
        ("RMSprop", "AdamW", ["m"]),
        ("AdamW", "LARS", ["m"]),
        ("Lion", "AdamW", ["m", "v"]),
        ("SGD", "Adagrad", ["v"]),
    ],
)
def test_what_has_a_counterpart_is_not_lost(old, new, fresh):
    params = named()
    before, after = make(old, params), make(new, params)
    walk(before, 3)
    for row in carry(before, after, "convert").rows:
        assert [slot for slot, what in row.slots.items() if what.startswith("started fresh")] == fresh


def test_row_and_column_means_of_v_become_adafactor_s_and_their_product_comes_back():
    params = [("w", Parameter(tensors([LARGE], 0)[0]))]
    adamw, factored, back = steepest.AdamW(params), steepest.Adafactor(params), steepest.AdamW(params)
    walk(adamw, 4)
    p = params[0][1]
    v = adamw.state[p]["v"] / (1 - 0.999**4)
    carry(adamw, factored, "convert")
    r, c = factored.state[p]["r"], factored.state[p]["c"]
    torch.testing.assert_close(r, v.mean([i for i, n in enumerate(r.shape) if n == 1], keepdim=True))
    torch.testing.assert_close(c, v.mean([i for i, n in enumerate(c.shape) if n == 1], keepdim=True))
    carry(factored, back, "convert")
    torch.testing.assert_close(back.state[p]["v"], r * c / v.mean() * (1 - 0.999**4))


@pytest.mark.parametrize("codec", ["int8", "fp8", "bf16", "fp16"])
def test_another_codec_decodes_and_encodes(codec):
    params = [("w", Parameter(tensors([(64, 128)], 0, torch.float32)[0]))]
    old, new, back = (steepest.AdamW(params, state=state) for state in (None, codec, None))
    walk(old, 3)
    with pytest.raises(SteepestError, match=f"w: m was float32 and is {codec} now.*'convert'"):
        carry(old, new, "keep")
    told = carry(old, new, "convert")
    assert told.rows[0].slots["m"] == f"from adamw's m float32, as {codec}"
    carry(new, back, "convert")
    p = params[0][1]
    for slot in ("m", "v"):
        largest = old.state[p][slot].abs().max()
        assert float((back.state[p][slot] - old.state[p][slot]).abs().max() / largest) < 0.04
        assert not torch.equal(back.state[p][slot], old.state[p][slot])
    mixed = steepest.AdamW(params, state={"m": codec})
    assert carry(old, mixed, "convert").rows[0].slots["v"] == "kept"
    assert carry(old, mixed, "zero_m").rows[0].slots == {"m": "zeroed", "v": "kept"}


def test_before_any_step_there_is_nothing_to_convert():
    _, new, told = pair("AdamW", "convert", steps=0)
    assert told.rows[0].slots["v"] == "started fresh: the old stage took no step"
    assert new.state[owned(new)[0]]["step"] == 0


@pytest.mark.parametrize("here", ["split24", "split32", "kahan"])
@pytest.mark.parametrize("there", ["split24", "split32", "kahan"])
@pytest.mark.parametrize("policy", ["convert", "fresh", "zero_m"])
def test_the_lower_bits_of_a_parameter_go_on_while_it_is_the_same(there, here, policy):
    params = [("w", Parameter(tensors([(64, 128)], 0, torch.bfloat16)[0]))]
    old, new = (steepest.AdamW(params, lr=1e-3, param=param) for param in (there, here))
    walk(old, 3)
    p, told = params[0][1], carry(old, new, policy)

    def master(opt, param):
        low = opt.state[p]["p.low"]
        if param == "kahan":
            return p.detach().float() + low.float()
        return (p.detach().float().view(torch.int32) + (low.int() << (8 if param == "split24" else 0))).view(
            torch.float32
        )

    assert old.state[p]["p.low"].any()
    if there == here:
        assert torch.equal(new.state[p]["p.low"], old.state[p]["p.low"])
        assert told.rows[0].slots["p"] == "lower bits kept"
    else:
        same = (master(new, here) - master(old, there)).abs() <= 2**-15 * p.detach().abs()
        assert float(same.float().mean()) > 0.99  # all but ties
        assert told.rows[0].slots["p"] == f"lower bits from {there}, as {here}"
    other = steepest.AdamW([("w", Parameter(p.detach() + 1))], param=here)
    assert carry(old, other, policy).rows[0].slots["p"] == "lower bits dropped"
    assert not other.state[owned(other)[0]]["p.low"].any()


# ---------------------------------------------------------------------- who goes with whom


@pytest.mark.parametrize(
    "name",
    [
        "base_model.model.layers.0.q.base_layer.weight",
        "module.layers.0.q.weight",
        "_orig_mod.layers.0.q.weight",
        "module._orig_mod.layers.0.q.weight",
        "layers._orig_mod.0.q.weight",
        "module.base_model.model.layers.0.q.weight",
        "layers.0.q.weight",
    ],
)
def test_wrappers_names_are_seen_through(name):
    assert canonical(name) == "layers.0.q.weight"


def test_new_ones_reshaped_ones_and_dropped_ones_are_told():
    def build(*shapes):
        return steepest.AdamW([(name, Parameter(torch.ones(shape))) for name, shape in shapes])

    old = build(("a", (3,)), ("embed", (4, 2)), ("gone", (2,)))
    walk(old, 2)
    new = build(("base_model.model.a", (3,)), ("embed", (5, 2)), ("a.lora_A", (2, 3)))
    told = carry(old, new, "keep")
    assert [(row.policy, row.step, row.old_rule) for row in told.rows] == [
        ("keep", 2, "adamw"),
        ("fresh", 0, None),
        ("fresh", 0, None),
    ]
    assert told.rows[1].slots["m"] == "started fresh: its shape was [4, 2]"
    assert told.rows[2].slots["v"] == "started fresh: new in this stage"
    assert told.dropped == ["gone"]
    text = str(told)
    assert "base_model.model.a: adamw, keep, step 2: m kept; v kept" in text and "left behind: gone" in text
    assert json.loads(json.dumps(told.to_json())) == told.to_json()
    assert told.to_json()["rows"][0]["slots"] == {"m": "kept", "v": "kept"}


def test_the_same_tensor_is_found_whatever_its_name():
    a, b = (p for _, p in named()[:2])
    old = steepest.AdamW([("model.a", a), ("b", b)])
    walk(old, 2)
    new = steepest.AdamW([("policy.backbone.a", a), ("b", Parameter(b.detach().clone()))])
    carry(old, new)
    assert bits(slots_of(new, a)) == bits(slots_of(old, a))
    assert bits(slots_of(new, owned(new)[1])) == bits(slots_of(old, b))


def test_two_that_would_share_a_name_keep_their_own():
    def build():
        return steepest.AdamW([("module.w", Parameter(torch.ones(2))), ("w", Parameter(torch.ones(2)))])

    old, new = build(), build()
    walk(old, 2)
    carry(old, new)
    for p, q in zip(owned(old), owned(new), strict=True):
        assert bits(slots_of(old, p)) == bits(slots_of(new, q))
    assert bits(slots_of(old, owned(old)[0])) != bits(slots_of(old, owned(old)[1]))


def test_frozen_parameters_take_no_part():
    params = named()
    old = steepest.AdamW(params)
    walk(old, 2)
    fresh = [(n, Parameter(p.detach().clone(), requires_grad=n != "p1")) for n, p in params]
    new = steepest.AdamW(fresh)
    told = carry(old, new)
    assert [row.name for row in told.rows] == ["p0", "p2"] and told.dropped == ["p1"]


def test_policies_by_rule_and_by_name_the_first_match_wins():
    def build(params):
        return steepest.Optimizer(params, routes=[Route("p0", "lion", lr=0.1), Route("*", "adamw", lr=0.1)])

    params = named()
    old, new = build(params), build(params)
    walk(old, 2)
    told = carry(old, new, {"p2": "zero_m", "adamw": {"rescale_v": 4.0}, "li*": "fresh"})
    assert [row.policy for row in told.rows] == ["fresh", "rescale_v", "zero_m"]
    mixed = steepest.AdamW(params)
    told = carry(old, mixed, {"lion": "convert", "*": "keep"})
    assert [(row.old_rule, row.policy) for row in told.rows] == [
        ("lion", "convert"),
        ("adamw", "keep"),
        ("adamw", "keep"),
    ]
    assert "lion -> adamw: learning rate x 3 to 10" in str(told)


@pytest.mark.parametrize(
    ("policy", "says"),
    [
        ("kep", "unknown moment policy 'kep'; did you mean 'keep'"),
        ({"*": "zero_n"}, "did you mean 'zero_m'"),
        ({"p0": "keep"}, r"no moment policy matches p1; add .* '\*': 'keep'"),
        ({"*": "keep", "q*": "zero"}, r"'q\*' matches no parameter"),
        ({"rescale_v": 0.0}, "rescale_v=0.0 must be"),
        ({"rescale_v": math.nan}, "rescale_v=nan must be"),
        (["keep", "zero_m"], "a list may hold"),
        (["zero_m", "zero_m"], "each once"),
        ([], "is no moment policy"),
        (3, "unknown moment policy '3'"),
    ],
)
def test_a_wrong_policy_is_one_sentence_and_nothing_moves(policy, says):
    old, new, _ = pair("AdamW")
    before, was = snapshot(new), snapshot(old)
    with pytest.raises(SteepestError, match=says):
        carry(old, new, policy)
    assert snapshot(new) == before and snapshot(old) == was


@pytest.mark.parametrize("policy", ["keep", "zero_m", "age_reset", {"rescale_v": 2.0}])
def test_what_is_for_one_rule_is_refused_between_two(policy):
    params = named()
    old, new = steepest.AdamW(params), steepest.Lion(params)
    with pytest.raises(SteepestError, match=r"p0 goes from adamw to lion.*'convert' or 'fresh'"):
        carry(old, new, policy)


def test_nothing_is_shared_and_the_old_one_is_not_changed():
    old, new, _ = pair("AdamW")
    before = bits([slots_of(old, p) for p in owned(old)])
    carry(old, new, "keep")
    assert (old.committed, new.committed) == (3, 0)  # schedules of the new stage start at its beginning
    walk(new, 2)
    assert bits([slots_of(old, p) for p in owned(old)]) == before


def test_every_change_of_rule_has_words_for_its_rate():
    assert len(RULES) > 5 and set(WORDS) >= {"keep", "convert"}
    for a in RULES:
        for b in RULES:
            assert "learning rate" in suggested_rate(a, b)
    assert suggested_rate("adamw", "adamw") == "the learning rate stays"
    assert "1/10 to 1/3" in suggested_rate("adamw", "lion")
    assert "anew" in suggested_rate("adamw", "of_my_own")
