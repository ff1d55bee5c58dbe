"""Drop-in use: torch's own arguments give torch's own numbers, however the parameters are given."""

from __future__ import annotations

import inspect

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from optimizer_cases import (
    CONSTRUCTORS,
    Tied,
    apart,
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
from steepest import SteepestError

TORCH = ("SGD", "RMSprop", "Adagrad", "Adam", "AdamW", "Adafactor")
ENGINES = {"foreach", "maximize", "capturable", "differentiable", "fused"}

# Positional arguments as a user of torch.optim writes them, then keywords.
CALLS = [
    ("SGD", (0.1, 0.9, 0.2, 0.01), {}),
    ("SGD", (0.1, 0.9, 0, 0.01, True), {}),
    ("SGD", (), {"lr": 0.1, "momentum": 0.5, "maximize": True}),
    ("SGD", (0.1,), {"weight_decay": 0.1, "maximize": True}),
    ("RMSprop", (0.01, 0.9, 1e-6, 0.01, 0.5, True), {}),
    ("RMSprop", (), {"lr": 0.01, "centered": True, "momentum": 0.9}),
    ("Adagrad", (0.1, 0.05, 0.01, 0.1, 1e-9), {}),
    ("Adagrad", (), {"lr": 0.1, "initial_accumulator_value": 0.5}),
    ("Adam", (0.01, (0.8, 0.95), 1e-6, 0.1, True), {}),
    ("Adam", (), {"lr": 0.01, "weight_decay": 0.1, "maximize": True}),
    ("AdamW", (0.01, (0.8, 0.95), 1e-6, 0.1, True), {}),
    ("AdamW", (), {"lr": 0.01, "betas": (0.7, 0.9), "foreach": False}),
]


@pytest.mark.parametrize(("name", "args", "options"), CALLS)
def test_the_same_call_gives_the_same_numbers(name, args, options):
    ours, theirs = parameters(), parameters()
    walk(getattr(steepest, name)(ours, *args, **options), 6)
    walk(getattr(torch.optim, name)(theirs, *args, **options), 6)
    assert apart(ours, theirs) < 1e-12


@pytest.mark.parametrize("lr", [1e-2, 0.6])
def test_torch_s_adafactor_is_a_dialect(lr):
    eps = (torch.finfo(torch.float64).eps, 1e-3)
    ours, theirs = parameters(), parameters()
    walk(steepest.Adafactor(ours, lr, -0.7, eps, 1.2, 0.1, dialect="torch"), 6)
    walk(torch.optim.Adafactor(theirs, lr, -0.7, eps, 1.2, 0.1), 6)
    assert apart(ours, theirs) < 1e-12


def test_adafactor_takes_torch_s_unset_eps():
    ours, theirs = parameters(torch.float32), parameters(torch.float32)
    walk(steepest.Adafactor(ours, eps=(None, 1e-3), dialect="torch"), 6)
    walk(torch.optim.Adafactor(theirs, eps=(None, 1e-3)), 6)
    assert apart(ours, theirs) < 1e-6


@pytest.mark.parametrize("name", TORCH)
def test_arguments_stand_in_torch_s_order_with_torch_s_defaults(name):
    theirs = inspect.signature(getattr(torch.optim, name)).parameters.values()
    ours = list(inspect.signature(getattr(steepest, name)).parameters.values())
    positional = [p for p in theirs if p.kind is p.POSITIONAL_OR_KEYWORD and p.name not in ENGINES]
    assert len(positional) > 4
    for mine, its in zip(ours, positional, strict=False):
        assert mine.name == its.name
        if name != "Adafactor" or mine.name not in ("eps", "d"):  # left to the dialect
            assert mine.default == its.default


@pytest.mark.parametrize("name", TORCH)
def test_torch_s_defaults_give_torch_s_numbers(name):
    ours, theirs = parameters(torch.float32), parameters(torch.float32)
    walk(getattr(steepest, name)(ours, **({"dialect": "torch"} if name == "Adafactor" else {})), 5)
    walk(getattr(torch.optim, name)(theirs), 5)
    assert apart(ours, theirs) < 2e-6


@pytest.mark.parametrize("name", CONSTRUCTORS)
def test_every_way_to_give_parameters_gives_the_same_steps(name):
    torch.manual_seed(0)
    models = [Tied() for _ in range(5)]
    for model in models:
        model.load_state_dict(models[0].state_dict())
    opts = [
        make(name, models[0]),
        make(name, models[1].parameters()),
        make(name, list(models[2].named_parameters())),
        make(name, [{"params": models[3].parameters()}]),
        make(name, [{"params": list(models[4].named_parameters())}]),
    ]
    for opt in opts:
        assert isinstance(opt, torch.optim.Optimizer)
        walk(opt, 3)
    for opt in opts[1:]:
        assert apart(owned(opt), owned(opts[0])) == 0.0
    assert opts[0].name_of(0, 0) == opts[4].name_of(0, 0) == "embed.weight"
    assert opts[1].name_of(0, 1) == "parameter 1 of group 0"


@pytest.mark.parametrize("name", CONSTRUCTORS)
def test_the_engine_changes_no_bit_in_float64(name):
    ours, theirs = parameters(), parameters()
    one, other = make(name, ours, foreach=True), make(name, theirs, foreach=False)
    assert (one.engine, other.engine) == ("foreach", "reference")
    walk(one, 4)
    walk(other, 4)
    assert snapshot(one) == snapshot(other)


@st.composite
def a_call(draw):
    """(name, groups of shapes, options of the whole, options of each group)."""
    small = st.floats(0, 0.5)
    unit = st.floats(0, 0.99)
    options = {
        "AdamW": {"betas": st.tuples(unit, unit), "amsgrad": st.booleans(), "eps": st.floats(1e-10, 1e-3)},
        "SGD": {"momentum": unit, "dampening": st.floats(0, 1)},
        "RMSprop": {
            "alpha": st.floats(0.1, 0.99),
            "momentum": unit,
            "centered": st.booleans(),
            "eps": st.floats(1e-6, 1e-3),
        },
        "Adagrad": {"lr_decay": small, "eps": st.floats(1e-10, 1e-3)},
    }
    name = draw(st.sampled_from(sorted(options)))
    shapes = st.lists(st.lists(st.integers(1, 4), max_size=3), min_size=1, max_size=3)
    own = {"lr": small, "weight_decay": small, **options[name]}
    groups = draw(
        st.lists(st.tuples(shapes, st.fixed_dictionaries({}, optional=own)), min_size=1, max_size=3)
    )
    if name == "Adagrad":  # torch takes it from the constructor alone, also where a group has its own
        own["initial_accumulator_value"] = small
    whole = draw(st.fixed_dictionaries({"maximize": st.booleans()}, optional=own))
    return name, groups, whole


@settings(max_examples=60, deadline=None)
@given(a_call())
def test_any_groups_and_options_step_as_torch_s(call):
    name, groups, whole = call
    sides = []
    for library in (steepest, torch.optim):
        asked = [{"params": parameters(shapes=shapes), **own} for shapes, own in groups]
        opt = getattr(library, name)(asked, **whole)
        walk(opt, 3)
        sides.append(owned(opt))
    assert apart(*sides) < 1e-9


@pytest.mark.parametrize("lr", [torch.tensor(0.01), torch.tensor([0.01]), torch.tensor(0.01).double()])
def test_lr_may_be_a_tensor(lr):
    ours, theirs = parameters(), parameters()
    opt = steepest.AdamW(ours, lr=lr)
    assert opt.param_groups[0]["lr"] is lr
    walk(opt, 3)
    lr.fill_(0.05)
    walk(opt, 3, first=3)
    other = steepest.AdamW(theirs, lr=0.01)
    walk(other, 3)
    other.param_groups[0]["lr"] = 0.05
    walk(other, 3, first=3)
    assert apart(ours, theirs) < 1e-8  # a float32 lr is 0.01 to seven places


def test_betas_may_be_tensors():
    ours, theirs = parameters(), parameters()
    walk(
        steepest.AdamW(
            ours, betas=(torch.tensor(0.9, dtype=torch.float64), torch.tensor(0.99, dtype=torch.float64))
        ),
        4,
    )
    walk(steepest.AdamW(theirs, betas=(0.9, 0.99)), 4)
    assert apart(ours, theirs) < 1e-12


@pytest.mark.parametrize("name", CONSTRUCTORS)
def test_a_closure_runs_with_gradients_and_its_loss_comes_back(name):
    params = parameters()
    opt = make(name, params)
    seen = []

    def closure():
        opt.zero_grad()
        loss = sum((p**2).sum() for p in params)
        seen.append(torch.is_grad_enabled())
        loss.backward()
        return loss

    with torch.no_grad():
        before = [p.clone() for p in params]
        first = opt.step(closure)
    assert seen == [True]
    assert first.item() == pytest.approx(sum((p**2).sum().item() for p in before))
    assert opt.committed == 1 and opt.step() is None


def test_step_hooks_run_around_the_step():
    params = parameters()
    opt = steepest.Lion(params, lr=0.1)
    order = []
    opt.register_step_pre_hook(lambda o, args, kwargs: order.append(("pre", o.committed)))
    opt.register_step_post_hook(lambda o, args, kwargs: order.append(("post", o.committed)))
    walk(opt, 2)
    assert order == [("pre", 0), ("post", 1), ("pre", 1), ("post", 2)]


def test_zero_grad_forgets_or_zeroes():
    params = parameters()
    opt = steepest.AdamW(params)
    differentiate(params, 0)
    opt.zero_grad(set_to_none=False)
    assert all(p.grad is not None and not p.grad.any() for p in params)
    opt.zero_grad()
    assert all(p.grad is None for p in params)


def test_a_step_without_gradients_is_not_a_step():
    opt = steepest.AdamW(parameters(), lr=steepest.schedules.linear(0.1, 10))
    before = snapshot(opt)
    opt.step()
    assert snapshot(opt) == before and opt.committed == 0


def test_gradients_are_left_as_they_are():
    params = parameters()
    opt = steepest.SGD(
        params, lr=0.1, weight_decay=0.1, maximize=True, max_grad_norm=0.1, max_grad_value=0.01
    )
    differentiate(params, 0)
    before = [p.grad.clone() for p in params]
    opt.step()
    assert all(torch.equal(p.grad, g) for p, g in zip(params, before, strict=True))


def test_a_parameter_without_gradient_counts_its_own_steps_as_in_torch():
    sides = []
    for library in (steepest, torch.optim):
        params = parameters()
        opt = library.AdamW(params, lr=0.05)
        for step in range(6):
            differentiate(params, step)
            if step % 2:
                params[1].grad = None
            opt.step()
        sides.append(params)
        assert int(opt.state[params[1]]["step"]) == 3 and int(opt.state[params[0]]["step"]) == 6
    assert apart(*sides) < 1e-12


def test_low_precision_parameters_keep_full_precision_state():
    for dtype in (torch.bfloat16, torch.float16):
        params = parameters(dtype)
        opt = steepest.AdamW(params, lr=1e-2)
        walk(opt, 3)
        assert {t.dtype for p in params for k, t in opt.state[p].items() if k != "step"} == {torch.float32}
        assert all(p.dtype == dtype for p in params)


@pytest.mark.parametrize("kind", ["sparse", "complex"])
def test_sparse_and_complex_gradients_are_refused_in_one_sentence(kind):
    if kind == "sparse":
        embedding = torch.nn.Embedding(6, 2, sparse=True)
        params = [*embedding.parameters(), Parameter(torch.ones(2))]
        (embedding(torch.tensor([1, 2])).sum() + params[1].sum()).backward()
    else:
        params = [Parameter(torch.ones(2, dtype=torch.complex64))]
        params[0].real.sum().backward()
    opt = steepest.SGD(params, lr=0.1)
    before = [p.detach().clone() for p in params]
    with pytest.raises(SteepestError, match=kind):
        opt.step()
    assert all(torch.equal(p, old) for p, old in zip(params, before, strict=True))
    assert opt.committed == 0


def test_ascending_is_descending_on_the_negative():
    for name in CONSTRUCTORS:
        ours, theirs = parameters(), parameters()
        up, down = make(name, ours, maximize=True), make(name, theirs)
        for step in range(3):
            differentiate(ours, step)
            differentiate(theirs, step, scale=-1.0)
            up.step()
            down.step()
        assert apart(ours, theirs) == 0.0, name


def test_named_groups_keep_their_names():
    pairs = named()
    opt = steepest.AdamW([{"params": pairs[:1], "lr": 0.1}, {"params": pairs[1:]}], lr=0.2)
    kept = "m float64, v float64, p float64"
    assert opt.routing() == [
        ["p0", [4, 3], "adamw", 0.01, kept],
        ["p1", [3], "adamw", 0.01, kept],
        ["p2", [2, 2, 2], "adamw", 0.01, kept],
    ]
    assert [group["lr"] for group in opt.param_groups] == [0.1, 0.2]


def test_tensor_betas_are_live_numbers_and_cause_no_second_trace():
    from steepest.engines import foreach
    from steepest.rules import adamw

    p = torch.ones(4, requires_grad=True)
    beta = torch.tensor(0.8)
    opt = steepest.AdamW([p], betas=(beta, torch.tensor(0.95)), foreach=True)
    known = []
    for value in (0.8, 0.7, 0.6):
        beta.fill_(value)
        p.grad = torch.ones_like(p)
        opt.step()
        known.append(len(foreach._PROGRAMS[adamw.formula]))
    assert known[0] == known[1] == known[2]
