"""What moves together is found once; whatever changes it between two steps is noticed."""

from __future__ import annotations

import copy

import pytest
import torch
from optimizer_cases import apart, differentiate, owned, parameters, walk
from torch.nn import Parameter

import steepest

SHAPES = ((64, 128), (5,), (3, 4))


def build(**options):
    return steepest.AdamW(parameters(torch.float32, SHAPES), lr=0.01, **options)


def buckets(opt, step=9):
    """What the engine is given at one step."""
    seen = []
    run = opt._engine.run
    opt._engine.run = lambda given: (seen.extend(given), run(given))[1]
    walk(opt, 1, first=step)
    opt._engine.run = run
    return seen


def test_a_layout_is_kept_while_only_gradients_and_numbers_change():
    opt = build(state="int8")
    (first, second), later = buckets(opt), []
    for step in range(3):
        opt.param_groups[0]["lr"] *= 0.5
        later.append(buckets(opt, step))
    for again in later:
        assert [b.params is of.params and b.stored["m"] is of.stored["m"] for b, of in
                zip(again, (first, second), strict=True)] == [True, True]  # fmt: skip
    assert [b.h.t for b, _ in later] == [2, 3, 4] and [b.ordinals for b in (first, second)] == [[0], [1, 2]]


def exchange_data(opt):
    for p in owned(opt):
        p.data = p.data.clone()


def exchange_parameters(opt):
    for group in opt.param_groups:
        group["params"] = [Parameter(p.detach().clone()) for p in group["params"]]


def exchange_state(opt):
    for state in opt.state.values():
        state["v"] = state["v"].clone()


def exchange_whole_states(opt):
    for p in owned(opt):
        opt.state[p] = copy.deepcopy(opt.state[p])


def reload(opt):
    opt.load_state_dict(copy.deepcopy(opt.state_dict()))


HARMLESS = [exchange_data, exchange_parameters, exchange_state, exchange_whole_states, reload]


@pytest.mark.parametrize("state", [None, "int8"])
@pytest.mark.parametrize("change", HARMLESS)
def test_what_is_exchanged_between_steps_is_used_from_then_on(change, state):
    ours, theirs = build(state=state), build(state=state)
    walk(ours, 3)
    walk(theirs, 3)
    change(ours)
    walk(ours, 2, first=3)
    walk(theirs, 2, first=3)
    assert apart(owned(ours), owned(theirs)) == 0.0
    for p, q in zip(owned(ours), owned(theirs), strict=True):
        assert all(torch.equal(ours.state[p][name], theirs.state[q][name]) for name in ("m", "v"))


def test_a_changed_second_moment_is_used():
    opt = build()
    walk(opt, 1)
    p = owned(opt)[0]
    opt.state[p]["v"] = torch.full_like(p, 1e30)
    before = p.detach().clone()
    walk(opt, 1)
    assert torch.allclose(p, before * (1 - 0.01 * 0.01), atol=1e-12)


def test_a_changed_step_count_is_used():
    opt = build()
    walk(opt, 1)
    opt.state[owned(opt)[1]]["step"] = 40
    assert sorted(b.h.t for b in buckets(opt)) == [2, 41]
    assert [opt.state[p]["step"] for p in owned(opt)] == [2, 41, 2]


def test_a_changed_type_of_parameters_is_a_bucket_of_its_own():
    opt = build()
    walk(opt, 1)
    owned(opt)[1].data = owned(opt)[1].data.bfloat16()
    found = {b.params[0].dtype: len(b.params) for b in buckets(opt)}
    assert found == {torch.float32: 2, torch.bfloat16: 1}


def test_gradients_that_come_and_go_and_change_their_type():
    opt = build()
    walk(opt, 1)
    differentiate(owned(opt), 1)
    owned(opt)[0].grad = None
    opt.step()
    assert [opt.state[p]["step"] for p in owned(opt)] == [1, 2, 2]
    (b, c) = buckets(opt)
    assert [b.h.t, c.h.t] == [2, 3]


def test_an_unfrozen_parameter_and_a_late_group_join():
    params = parameters(torch.float32, SHAPES)
    params[1].requires_grad_(False)
    opt = steepest.AdamW(params)
    differentiate([params[0], params[2]], 0)
    opt.step()
    params[1].requires_grad_(True)
    opt.step()
    assert opt.state[params[1]]["step"] == 0
    opt.add_param_group({"params": [Parameter(torch.ones(3))]})
    walk(opt, 1)
    assert [opt.state[p]["step"] for p in owned(opt)] == [3, 1, 3, 1]


@pytest.mark.parametrize("kind", ["sparse", "complex"])
def test_a_gradient_that_becomes_sparse_or_complex_is_refused(kind):
    opt = build(check_finite=False)
    walk(opt, 1)
    p = owned(opt)[0]
    before = p.detach().clone()
    if kind == "sparse":
        p.grad = torch.ones_like(p).to_sparse()
    else:
        p.data = p.data.to(torch.complex64)
        p.grad = torch.ones_like(p)
    with pytest.raises(steepest.SteepestError, match=kind):
        opt.step()
    assert torch.equal(p.to(torch.float32) if kind == "sparse" else p.real, before)
