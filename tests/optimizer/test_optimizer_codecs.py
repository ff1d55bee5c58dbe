"""State and parameters in fewer bytes: chosen by constructor, group or route, saved, loaded and seen."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from optimizer_cases import CONSTRUCTORS, apart, bits, differentiate, make, owned, parameters, snapshot, walk
from torch.nn import Parameter

import steepest
from steepest import Optimizer, Route, SteepestError, schedules
from steepest.codecs import SLOT_NAMES, slot_codec
from steepest.contract import Slot
from steepest.optimizer import state
from steepest.optimizer.state import encode_slot

SHAPES = ((64, 128), (5,))
MATRIX = SHAPES[:1]


def two(dtype=torch.float32, seed=0):
    return [(f"p{i}", p) for i, p in enumerate(parameters(dtype, SHAPES, seed))]


def kinds(opt, i=0):
    """What the state of a parameter is made of."""
    return {k: t.dtype for k, t in opt.state[owned(opt)[i]].items() if k != "step"}


def test_what_is_kept_under_which_name():
    opt = steepest.AdamW(two(torch.bfloat16), state={"m": "int4", "v": "factored"}, param="split24")
    assert kinds(opt) == {
        "m": torch.uint8,
        "m.scale": torch.float32,
        "v.row": torch.float32,
        "v.column": torch.float32,
        "p.low": torch.int8,
    }
    assert kinds(opt, 1) == {"m": torch.float32, "v": torch.float32, "p.low": torch.int8}
    walk(opt, 2)
    assert set(kinds(opt)) == {"m", "m.scale", "v.row", "v.column", "p.low"}


@pytest.mark.parametrize("param", ["bf16", "split24", "split32", "kahan"])
def test_making_an_optimizer_changes_no_parameter(param):
    params = parameters(torch.bfloat16, SHAPES)
    before = bits(params)
    opt = steepest.AdamW(params, param=param, state="int8")
    assert bits(params) == before
    assert all(not s["p.low"].any() for s in opt.state.values() if "p.low" in s)


@pytest.mark.parametrize("state", ["bf16", "fp8", "int8", "int4"])
def test_an_accumulator_starts_from_its_initial_value(state):
    opt = steepest.Adagrad(parameters(torch.float32, MATRIX), state=state, initial_accumulator_value=0.1)
    exported = opt.export_torch_state()["state"][0]["sum"]
    torch.testing.assert_close(exported, torch.full(MATRIX[0], 0.1), rtol=2.0**-8, atol=0)


def test_a_group_and_a_route_may_choose_for_themselves():
    a, b = two()
    c, d = two(torch.bfloat16, seed=1)
    named = [("a", a[1]), ("b", b[1]), ("c", c[1]), ("d", d[1])]
    opt = steepest.AdamW(
        [{"params": named[:2]}, {"params": named[2:], "state": {"v": "fp8"}, "param": "kahan"}], state="int8"
    )
    rows = {row[0]: row[4] for row in opt.routing()}
    assert rows == {
        "a": "m int8, v int8, p float32",
        "b": "m float32, v float32, p float32",
        "c": "m float32, v fp8, p kahan",
        "d": "m float32, v float32, p kahan",
    }
    routed = Optimizer(named, routes=[Route("[ab]", "lion", state="int4"), Route("*", "adamw")], state="fp8")
    assert [row[4] for row in routed.routing()][:3] == [
        "m int4, p float32",
        "m float32, p float32",
        "m fp8, v fp8, p bfloat16",
    ]
    assert opt.routing_digest() != steepest.AdamW(named).routing_digest()
    walk(opt, 2)
    walk(routed, 2)


REFUSED = [
    ({"state": "int88"}, "unknown codec of slot m in group 0 'int88'; did you mean 'int8'"),
    ({"state": 8}, "group 0: state=8 must be the name of a codec"),
    ({"state": {"w": "int8"}}, "unknown slot of adamw in group 0 'w'"),
    ({"state": {"m": 8}}, "unknown codec of slot m in group 0 '8'"),
    ({"state": "bf16_rn"}, r"group 0: slot v moves by 0\.001 of itself a step and bf16_rn"),
    ({"state": {"m": "factored"}}, "group 0: slot m has both signs"),
    ({"state": {"x": "int8"}, "amsgrad": True}, "group 0: slot x is a maximum"),
    ({"param": "split24"}, "group 0: param='split24' is for bfloat16 parameters and these are float32"),
    ({"param": "split"}, "unknown codec of parameters in group 0 'split'"),
    ({"seed": -1}, "seed=-1 must be a whole number"),
    ({"seed": "one"}, "seed='one' must be a whole number"),
]


@pytest.mark.parametrize(("options", "says"), REFUSED, ids=[str(options) for options, _ in REFUSED])
def test_what_cannot_work_is_refused_at_construction(options, says):
    with pytest.raises(SteepestError, match=says):
        steepest.AdamW(two(), **options)


def test_a_refused_group_is_named_and_leaves_no_trace():
    opt = steepest.AdamW(two(), state="int8")
    before = snapshot(opt)
    late = [("late", Parameter(torch.ones(64, 128, dtype=torch.float64)))]
    with pytest.raises(SteepestError, match="group 1: int8 is for float32 and narrower"):
        opt.add_param_group({"params": late})
    assert snapshot(opt) == before and len(opt.param_groups) == 1
    opt.add_param_group({"params": late, "state": None})
    walk(opt, 1)


def test_frozen_parameters_of_any_type_are_no_obstacle():
    packed = Parameter(torch.zeros(64, 64, dtype=torch.uint8), requires_grad=False)
    opt = steepest.AdamW([packed, *parameters(torch.bfloat16, MATRIX)], state="int8", param="split24")
    differentiate(owned(opt)[1:], 0)
    opt.step()
    assert opt.routing()[0][4] == "" and packed not in opt.state


def test_a_scheduled_beta_is_refused_at_the_step_that_makes_it_impossible():
    opt = steepest.Lion(two(), betas=(0.9, lambda step: 0.9 if step < 2 else 0.999), state="bf16_rn")
    walk(opt, 2)
    before = snapshot(opt)
    with pytest.raises(SteepestError, match=r"group 0: slot m moves by 0\.001 of itself a step and bf16_rn"):
        walk(opt, 1)
    assert snapshot(opt) == before
    walk(steepest.Lion(two(), betas=(0.9, schedules.linear(0.99, 9)), state="bf16_rn"), 3)


def test_a_choice_changed_after_construction_is_an_error():
    opt = steepest.AdamW(two(), state={"m": "int8"})
    walk(opt, 1)
    opt.param_groups[0]["state"]["m"] = "int4"
    with pytest.raises(SteepestError, match="group 0: state and param are chosen when a group is made"):
        walk(opt, 1)


@pytest.mark.parametrize("name", CONSTRUCTORS)
def test_the_seed_decides_about_the_noise_and_is_saved(name):
    def run(seed, steps=3):
        opt = make(name, two(torch.bfloat16), lr=0.01, state="int8", param="bf16", seed=seed)
        walk(opt, steps)
        return opt

    assert snapshot(run(1)) == snapshot(run(1)) != snapshot(run(2))
    opt = run(1, steps=2)
    other = make(name, two(torch.bfloat16), lr=0.01, state="int8", param="bf16", seed=5)
    other.load_state_dict(copy.deepcopy(opt.state_dict()))
    with torch.no_grad():
        for p, q in zip(owned(other), owned(opt), strict=True):
            p.copy_(q)
    walk(opt, 2, first=2)
    walk(other, 2, first=2)
    assert other.seed == 1 and snapshot(other) == snapshot(opt)


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda opt: pickle.loads(pickle.dumps(opt))])
def test_a_copy_keeps_its_codecs(clone):
    opt = steepest.AdamW(two(torch.bfloat16), lr=0.1, state="int8", param="split24", telemetry=True)
    walk(opt, 2)
    twin = clone(opt)
    walk(opt, 1, first=2)
    walk(twin, 1, first=2)
    assert snapshot(twin) == snapshot(opt) and twin.telemetry() == opt.telemetry()


OTHERS = [
    (
        {"state": "int8"},
        {},
        "p0: saved with m as int8, this optimizer keeps float32; build it with state='int8'",
    ),
    (
        {},
        {"state": "int8"},
        "p0: saved with m as float32, this optimizer keeps int8; build it with state=None",
    ),
    (
        {"state": {"v": "fp8"}},
        {"state": {"v": "int8"}},
        "p0: saved with v as fp8, this optimizer keeps int8; build it with state={'v': 'fp8'}",
    ),
    (
        {"param": "split24"},
        {"param": "kahan"},
        "p0: saved with the parameter as split24, this optimizer keeps kahan; build it with param='split24'",
    ),
]


@pytest.mark.parametrize(("theirs", "ours", "says"), OTHERS)
def test_a_state_under_other_codecs_is_refused_with_both_named(theirs, ours, says):
    saved = steepest.AdamW(two(torch.bfloat16), **theirs)
    walk(saved, 1)
    opt = steepest.AdamW(two(torch.bfloat16), **ours)
    before = snapshot(opt)
    with pytest.raises(SteepestError) as caught:
        opt.load_state_dict(saved.state_dict())
    assert str(caught.value).startswith(says) and snapshot(opt) == before


def test_a_state_of_bfloat16_parameters_is_refused_by_float32_ones():
    saved = steepest.AdamW(two(torch.bfloat16), param="split24")
    with pytest.raises(SteepestError, match="saved group 0: param='split24' is for bfloat16 parameters"):
        steepest.AdamW(two()).load_state_dict(saved.state_dict())


def test_torch_s_state_is_encoded_when_taken_and_decoded_when_given():
    theirs = torch.optim.AdamW(parameters(torch.float32, SHAPES), lr=0.1)
    walk(theirs, 3)
    ours = steepest.AdamW(two(), lr=0.1, state={"m": "int8", "v": "fp8"})
    ours.import_torch_state(theirs.state_dict())
    assert kinds(ours) == {
        "m": torch.int8,
        "m.scale": torch.float32,
        "v": torch.uint8,
        "v.scale": torch.float32,
    }
    back = ours.export_torch_state()
    for i, held in theirs.state_dict()["state"].items():
        for key in ("exp_avg", "exp_avg_sq"):
            given, kept = held[key], back["state"][i][key]
            assert kept.dtype == torch.float32 and (kept - given).norm() < 0.05 * given.norm()
    again = torch.optim.AdamW(parameters(torch.float32, SHAPES), lr=0.1)
    again.load_state_dict(back)
    walk(again, 1)
    assert not {"state", "param"} & set(back["param_groups"][0])


def test_a_non_finite_gradient_moves_not_one_bit_of_codes():
    opt = steepest.AdamW(two(torch.bfloat16), state="int8", param="split24", telemetry=True)
    walk(opt, 2)
    before, seen = snapshot(opt), opt.telemetry()
    differentiate(owned(opt), 2)
    owned(opt)[0].grad[3, 3] = math.inf
    opt.step()
    assert snapshot(opt) == before and opt.last_verdict.culprits == ("p0",) and opt.telemetry() == seen


@pytest.mark.parametrize("engine", ["reference", "foreach"])
@pytest.mark.parametrize("state", [None, "int8"])
def test_telemetry_is_what_happened(engine, state):
    params = two()
    opt = steepest.SGD(
        params, lr=0.1, momentum=0.9, weight_decay=0.1, max_grad_norm=1.0, telemetry=True, engine=engine,
        state=state,
    )  # fmt: skip
    assert opt.telemetry() == {}
    before = [p.detach().clone() for _, p in params]
    walk(opt, 1)
    norm = opt.last_verdict.norm
    for (name, p), old in zip(params, before, strict=True):
        seen = opt.telemetry()[name]
        expected = {
            "grad_norm": p.grad.norm().item() / (norm + 1e-6),
            "update_norm": (p - old).norm().item(),
            "param_norm": p.norm().item(),
            "lost": 0,
        }
        assert seen == pytest.approx(expected, rel=1e-5)
    owned(opt)[0].grad = None
    opt.step()
    assert set(opt.telemetry()) == {"p1"}


@pytest.mark.parametrize("engine", ["reference", "foreach"])
def test_lost_updates_are_counted(engine):
    """A bfloat16 of 1 moves in steps of 1/256 and more: without help an update of 1e-4 is lost."""
    lost = {}
    for param in (None, "bf16", "split24"):
        p = Parameter(torch.ones(64, 128, dtype=torch.bfloat16))
        opt = steepest.SGD([p], lr=1e-4, param=param, telemetry=True, engine=engine)
        p.grad = torch.ones_like(p)
        p.grad[0] = 0.0  # nothing to lose
        opt.step()
        lost[param] = opt.telemetry()["parameter 0 of group 0"]["lost"]
    assert lost[None] == 63 * 128 and lost["split24"] == 0 and 0.9 < lost["bf16"] / lost[None] < 1


@pytest.mark.parametrize("engine", ["reference", "foreach"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", CONSTRUCTORS)
def test_looking_changes_nothing(name, dtype, engine):
    ours, theirs = parameters(dtype), parameters(dtype)
    walk(make(name, ours, telemetry=True, engine=engine), 3)
    walk(make(name, theirs, engine=engine), 3)
    assert apart(ours, theirs) == 0.0


def test_without_telemetry_there_is_none_to_see():
    with pytest.raises(SteepestError, match="build the optimizer with telemetry=True"):
        steepest.AdamW(two()).telemetry()


def test_unchecked_gradients_are_not_looked_at():
    opt = steepest.AdamW(two(), check_finite=False)
    opt._engine.measure = lambda grads: pytest.fail("it looked")
    walk(opt, 1)
    assert opt.committed == 1 and math.isnan(opt.last_verdict.norm)
    owned(opt)[1].grad[0] = math.nan
    opt.step()
    assert opt.committed == 2 and owned(opt)[1].isnan().sum() == 1


def test_clipping_looks_even_if_nobody_asks_for_a_check():
    ours, theirs = (steepest.AdamW(two(), max_grad_norm=0.1, check_finite=check) for check in (False, True))
    walk(ours, 2)
    walk(theirs, 2)
    assert apart(owned(ours), owned(theirs)) == 0.0 and ours.last_verdict == theirs.last_verdict


def test_unchecked_a_loss_scaler_still_decides():
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    opt = steepest.AdamW(two(), check_finite=False, lr=0.1)
    before = snapshot(opt)
    differentiate(owned(opt), 0, scale=1024.0)
    scaler.scale(torch.zeros(()))
    owned(opt)[0].grad[0, 0] = math.inf
    scaler.step(opt)
    assert snapshot(opt) == before and opt.skipped == 1


@pytest.mark.parametrize("shape", [(64, 257), (40, 3, 130), (257, 48)])
@pytest.mark.parametrize("name", [n for n in SLOT_NAMES if n != "factored" and not n.endswith("_rn")])
def test_a_slot_encoded_a_few_rows_at_a_time_is_the_slot_encoded_whole(monkeypatch, name, shape):
    """As large ones are when they are made, so that no copies of them are needed."""
    codec = slot_codec(name, "m", Slot(), torch.Size(shape), {}, torch.float32, "here")
    x = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    whole = encode_slot("m", codec, x)
    monkeypatch.setattr(state, "PIECE", 1000)
    parts = encode_slot("m", codec, x)
    assert codec.name == {"fp32": "float32"}.get(name, name) and whole.keys() == parts.keys()
    assert all(torch.equal(whole[part], parts[part]) for part in whole)
