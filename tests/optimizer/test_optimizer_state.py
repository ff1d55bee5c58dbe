"""State: there from construction, saved and loaded to the last bit, and every mismatch caught at load."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from optimizer_cases import (
    CONSTRUCTORS,
    SHAPES,
    WITH_MOMENTUM,
    apart,
    bits,
    differentiate,
    make,
    named,
    owned,
    parameters,
    snapshot,
    walk,
)
from torch.nn import Parameter

import steepest
from steepest import SteepestError, schedules

SLOTS = {
    "SGD": {"m"},
    "RMSprop": {"v"},
    "Adagrad": {"v"},
    "Adam": {"m", "v"},
    "AdamW": {"m", "v"},
    "Adafactor": {"v"},  # below the dialect's 128 nothing is factored
    "LAMB": {"m", "v"},
    "LARS": {"m"},
    "Lion": {"m"},
    "Signum": {"m"},
}


@pytest.mark.parametrize("name", CONSTRUCTORS)
def test_state_exists_from_construction(name):
    opt = make(name, parameters(torch.bfloat16))
    assert set(opt.state) == set(owned(opt))
    for p in owned(opt):
        slots = {k: t for k, t in opt.state[p].items() if k != "step"}
        assert set(slots) == SLOTS[name] and opt.state[p]["step"] == 0
        assert all(t.dtype == torch.float32 and t.shape == p.shape for t in slots.values())
    assert opt.state_bytes() == 4 * len(SLOTS[name]) * sum(p.numel() for p in owned(opt))


def test_adagrad_starts_from_its_initial_value():
    opt = steepest.Adagrad(parameters(), initial_accumulator_value=0.25)
    assert all(bool((state["v"] == 0.25).all()) for state in opt.state.values())


def test_a_factored_state_is_one_row_and_one_column():
    p = Parameter(torch.ones(256, 128))
    opt = steepest.Adafactor([p])
    assert {k: tuple(t.shape) for k, t in opt.state[p].items() if k != "step"} == {
        "r": (1, 128),
        "c": (256, 1),
    }
    assert opt.state_bytes() == 4 * (256 + 128)


def through_a_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", CONSTRUCTORS)
def test_a_loaded_optimizer_continues_to_the_last_bit(name, dtype):
    opt = make(name, named(dtype), lr=schedules.cosine(0.1, 12, warmup=2))
    walk(opt, 5)
    state = through_a_file(opt.state_dict())
    fresh = [(n, Parameter(p.detach().clone())) for (n, _), p in zip(named(dtype), owned(opt), strict=True)]
    other = make(name, fresh, lr=schedules.cosine(0.1, 12, warmup=2))
    other.load_state_dict(state)
    assert snapshot(other) == snapshot(opt) and other.committed == 5
    walk(opt, 4, first=5)
    walk(other, 4, first=5)
    assert snapshot(other) == snapshot(opt)


def test_a_loaded_state_is_a_copy():
    opt = steepest.AdamW(named(), lr=torch.tensor(0.1))
    walk(opt, 2)
    other = steepest.AdamW(named(), lr=torch.tensor(0.1))
    other.load_state_dict(opt.state_dict())
    before = snapshot(other)
    walk(opt, 2)
    opt.param_groups[0]["lr"].fill_(0.5)
    assert snapshot(other) == before


def test_a_permutation_of_names_is_matched_by_name():
    opt = steepest.AdamW(named(), lr=0.1)
    walk(opt, 3)
    pairs = [(n, Parameter(p.detach().clone())) for (n, _), p in zip(named(), owned(opt), strict=True)]
    other = steepest.AdamW(pairs[::-1], lr=0.1)
    other.load_state_dict(opt.state_dict())
    for (_, p), q in zip(pairs, owned(opt), strict=True):
        assert bits(other.state[p]) == bits(opt.state[q])


def test_without_names_the_order_decides():
    opt = steepest.AdamW(parameters(), lr=0.1)
    walk(opt, 3)
    other = steepest.AdamW(named(), lr=0.1)
    other.load_state_dict(opt.state_dict())
    assert other.committed == 3


def saved(maker):
    opt = maker()
    walk(opt, 2)
    return copy.deepcopy(opt.state_dict())


def renamed():
    return steepest.AdamW([(n.replace("p1", "q1"), p) for n, p in named()])


def two_groups():
    a, b, c = named()
    return steepest.AdamW([{"params": [a]}, {"params": [b, c]}])


MISMATCHES = {
    "renamed": (renamed, "no parameter 'p1'; it has 'q1'"),
    "shape": (lambda: steepest.AdamW(named(shapes=[(3, 4), (3,), (2, 2, 2)])), r"p0.*\[3, 4\].*\[4, 3\]"),
    "dtype": (lambda: steepest.AdamW(named(torch.float32)), "p0.*4x3 float32.*4x3 float64"),
    "rule": (lambda: steepest.Adam(named()), "group 0.*'adam'.*'adamw'"),
    "fewer": (lambda: steepest.AdamW(named(shapes=SHAPES[:2])), "has 2 parameters, this optimizer 3"),
    "slots": (lambda: steepest.AdamW(named(), amsgrad=True), "p0.*m, step, v, x.*m, step, v"),
    "groups": (two_groups, "2 parameter groups, this optimizer 1"),
    "torch": (lambda: torch.optim.AdamW(named()), "import_torch_state"),
}


@pytest.mark.parametrize("case", MISMATCHES)
def test_a_mismatch_names_both_sides_and_changes_nothing(case):
    maker, says = MISMATCHES[case]
    opt = steepest.AdamW(named())
    walk(opt, 1, first=7)
    before = snapshot(opt)
    with pytest.raises(SteepestError, match=says):
        opt.load_state_dict(saved(maker))
    assert snapshot(opt) == before


@pytest.mark.parametrize(
    ("name", "here", "there"),
    [
        ("SGD", {}, {"momentum": 0.9}),
        ("RMSprop", {}, {"centered": True}),
        ("RMSprop", {"momentum": 0.5}, {}),
        ("Adafactor", {}, {"beta1": 0.9}),
        ("Signum", {"momentum": 0.0}, {}),
    ],
)
def test_options_that_change_the_slots_are_a_mismatch(name, here, there):
    build = getattr(steepest, name)
    opt = build(named(), **here)
    with pytest.raises(SteepestError, match="build it with the rule and options it was saved with"):
        opt.load_state_dict(saved(lambda: build(named(), **there)))


def test_a_newer_format_is_refused():
    opt = steepest.AdamW(named())
    state = opt.state_dict()
    state["param_groups"][0]["steepest"]["version"] += 1
    with pytest.raises(SteepestError, match="update steepest"):
        opt.load_state_dict(state)


def test_a_state_that_lost_a_parameter_is_refused():
    opt = steepest.AdamW(named())
    state = opt.state_dict()
    del state["state"][1]
    with pytest.raises(SteepestError, match="lacks this parameter's entry"):
        opt.load_state_dict(state)


def test_a_saved_hyperparameter_out_of_range_is_refused_at_load():
    opt = steepest.AdamW(named(), lr=1e-3)
    state = opt.state_dict()
    state["param_groups"][0]["lr"] = -1.0
    with pytest.raises(SteepestError, match="saved group 0: lr"):
        opt.load_state_dict(state)
    assert opt.param_groups[0]["lr"] == 1e-3


def test_distributed_checkpoint_reads_and_writes_the_state():
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

    model = torch.nn.Linear(3, 2)
    opt = steepest.AdamW(model.parameters(), lr=1e-3)
    model(torch.ones(4, 3)).sum().backward()
    opt.step()
    saved = get_optimizer_state_dict(model, opt)
    fresh = steepest.AdamW(model.parameters(), lr=1e-3)
    set_optimizer_state_dict(model, fresh, saved)
    assert fresh.committed == 1
    for p in model.parameters():
        assert torch.equal(fresh.state[p]["v"], opt.state[p]["v"])
        assert fresh.state[p]["step"] == 1


def test_load_and_save_hooks_run():
    opt = steepest.AdamW(named())
    seen = []
    opt.register_state_dict_post_hook(lambda o, state: seen.append("saved"))
    opt.register_load_state_dict_pre_hook(lambda o, state: seen.append("before"))
    opt.register_load_state_dict_post_hook(lambda o: seen.append("after"))
    opt.load_state_dict(opt.state_dict())
    assert seen == ["saved", "before", "after"]


def by_pickle(opt):
    return pickle.loads(pickle.dumps(opt))


@pytest.mark.parametrize("clone", [copy.deepcopy, by_pickle])
@pytest.mark.parametrize("name", CONSTRUCTORS)
def test_a_copy_goes_its_own_way(name, clone):
    opt = make(name, named(), lr=schedules.linear(0.1, 10), max_grad_norm=1.0)
    walk(opt, 2)
    twin = clone(opt)
    assert snapshot(twin) == snapshot(opt) and type(twin) is type(opt)
    walk(twin, 2, first=2)
    assert (twin.committed, opt.committed) == (4, 2)
    walk(opt, 2, first=2)
    assert snapshot(twin) == snapshot(opt)
    twin.add_param_group({"params": [("late", Parameter(torch.ones(2)))]})
    walk(twin, 1)


@pytest.mark.parametrize("clone", [copy.deepcopy, by_pickle])
def test_a_copy_does_not_step_the_original_that_a_scheduler_holds(clone):
    opt = steepest.AdamW(named())
    torch.optim.lr_scheduler.StepLR(opt, 1)  # it wraps `opt.step`
    twin = clone(opt)
    before = snapshot(opt)
    walk(twin, 1)
    assert twin.committed == 1 and snapshot(opt) == before


def swapped(opt):
    """The optimizer's parameters exchanged for equal ones, as accelerate does when it shards a model."""
    for group in opt.param_groups:
        group["params"] = [Parameter(p.detach().clone()) for p in group["params"]]
    return opt


def test_parameters_exchanged_after_construction_keep_their_state():
    opt, plain = steepest.AdamW(named()), steepest.AdamW(named())
    walk(opt, 2)
    walk(plain, 2)
    walk(swapped(opt), 2, first=2)
    walk(plain, 2, first=2)
    assert snapshot(opt) == snapshot(plain) and len(opt.state) == 3


def test_parameters_exchanged_before_any_step_are_saved_and_loaded():
    opt = steepest.AdamW(named())
    walk(opt, 2)
    other = swapped(steepest.AdamW(named()))
    other.load_state_dict(opt.state_dict())
    assert [bits(other.state[p]) for p in owned(other)] == [bits(opt.state[p]) for p in owned(opt)]
    assert len(swapped(opt).state_dict()["state"]) == 3


def test_a_changed_order_keeps_each_parameter_s_state():
    opt = steepest.AdamW(parameters(shapes=[(3,), (3,)]))
    walk(opt, 1)
    before = {p: bits(opt.state[p]) for p in owned(opt)}
    opt.param_groups[0]["params"].reverse()
    opt.state_dict()
    assert {p: bits(opt.state[p]) for p in owned(opt)} == before


@pytest.mark.parametrize("name", CONSTRUCTORS)
def test_a_group_added_later_starts_from_its_own_step_one(name):
    first, late = parameters(shapes=SHAPES[:1]), parameters(shapes=SHAPES[1:], seed=1)
    opt = make(name, first, lr=0.1)
    walk(opt, 2)
    opt.add_param_group({"params": late, "lr": 0.05})
    assert all(opt.state[p]["step"] == 0 for p in late)
    alone = parameters(shapes=SHAPES[1:], seed=1)
    other = make(name, alone, lr=0.05)
    for step in range(3):
        differentiate(late, step)
        differentiate(alone, step)
        opt.step()
        other.step()
    if name != "LAMB":  # its clipping sees all groups
        assert apart(late, alone) == 0.0
    assert opt.state[late[0]]["step"] == 3 and opt.committed == 5


def test_a_group_may_bring_its_own_rule():
    first, late = parameters(seed=1), parameters()
    opt = steepest.AdamW(first, lr=0.1)
    opt.add_param_group({"params": late, "rule": "lion", "lr": 0.01})
    assert "betas" in opt.param_groups[1] and "amsgrad" not in opt.param_groups[1]
    assert opt.param_groups[1]["betas"] == (0.9, 0.99)
    alone = parameters()
    other = steepest.Lion(alone, lr=0.01)
    for step in range(3):
        differentiate(late, step)
        differentiate(alone, step)
        opt.step()
        other.step()
    assert apart(late, alone) == 0.0


def test_a_frozen_parameter_gets_its_state_when_it_is_trained():
    sides = []
    for library in (steepest, torch.optim):
        params = parameters()
        params[1].requires_grad_(False)
        opt = library.AdamW(params, lr=0.1)
        assert params[1] not in opt.state
        differentiate([params[0], params[2]], 0)
        opt.step()
        params[1].requires_grad_(True)
        walk(opt, 2, first=1)
        assert int(opt.state[params[1]]["step"]) == 2
        sides.append(params)
    assert apart(*sides) < 1e-12


def test_every_constructor_that_can_be_without_state_is_covered():
    assert set(WITH_MOMENTUM) == {"SGD"} and set(SLOTS) == set(CONSTRUCTORS)
    opt = steepest.SGD(parameters())
    assert opt.state_bytes() == 0 and all(state == {"step": 0} for state in opt.state.values())


def test_the_state_of_a_parameter_that_is_frozen_now_is_kept():
    w, b = torch.nn.Parameter(torch.ones(3, 2)), torch.nn.Parameter(torch.ones(2))
    opt = steepest.AdamW([w, b])
    w.grad, b.grad = torch.ones_like(w), torch.ones_like(b)
    opt.step()
    saved = opt.state_dict()
    b.requires_grad_(False).grad = None
    fresh = steepest.AdamW([w, b])
    assert b not in fresh.state
    fresh.load_state_dict(saved)
    assert fresh.state[b]["step"] == 1
    assert torch.equal(fresh.state[b]["m"], opt.state[b]["m"])
