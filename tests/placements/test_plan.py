"""A plan is exact in what is held, and grows with the number of ranks as it says."""

from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st

import steepest
from steepest.contract import Scope, SteepestError
from steepest.lab.bench import STORAGES, meta_model, parse_storage
from steepest.placements.blocks import blocks_of, units_of
from steepest.placements.moves import BUCKET, FIRST_BUCKET, Move, buckets
from steepest.placements.plan import PLACEMENTS, Model, plan, rows_held
from steepest.rules import CARDS, find_card

SHAPES = [(257, 96), (64,), (3, 40, 50), (1, 128), (7, 6), (), (1,), (130, 128)]
UNITS = [[torch.Size(s) for s in SHAPES[:3]], [torch.Size(s) for s in SHAPES[3:]]]
ALL = [shape for unit in UNITS for shape in unit]
MANY = sorted(set(PLACEMENTS) - {"one"})
RANKS = (64, 1024, 16_384)


def a_model(name="adamw", storage="fp32", units=UNITS, **changes):
    card, stored = find_card(name), parse_storage(storage)
    hyper = {**card.rule.defaults(), **card.settings}
    return Model(units, replace(card.rule, **changes), hyper, stored.state, stored.param, stored.dtype)


@pytest.fixture(scope="module")
def gpt2():
    return units_of(meta_model("gpt2-124m"))


def fitting():
    """Every card with every storage that its slots can have."""
    found = []
    for card in CARDS.values():
        for storage in STORAGES:
            chosen = parse_storage(storage).state
            slots = set(
                card.rule.slots_for(torch.Size((512, 512)), {**card.rule.defaults(), **card.settings})
            )
            if not isinstance(chosen, dict) or set(chosen) == slots:
                found.append((card.name, storage))
    return found


def test_there_is_much_to_plan():
    assert len(fitting()) >= 100 and len(MANY) == 5


@pytest.mark.parametrize(("name", "storage"), fitting())
def test_the_state_is_what_an_optimizer_allocates(name, storage):
    card, own = CARDS[name], a_model(name, storage)
    params = [torch.nn.Parameter(torch.zeros(shape, dtype=own.dtype)) for shape in SHAPES]
    opt = getattr(steepest, card.constructor)(params, **{**card.settings, **parse_storage(storage).options()})
    assert plan(own, "one", 1).state.tolist() == [opt.state_bytes()]
    for kind in MANY:
        assert plan(own, kind, 1).state.tolist() == [opt.state_bytes()], kind


@pytest.mark.parametrize("kind", MANY)
@pytest.mark.parametrize("storage", ["fp32", "int8", "split24/int4", "m=int8+v=factored"])
def test_all_ranks_together_hold_the_state_once_or_once_a_copy(kind, storage):
    own = a_model("adamw", storage)
    whole, found = plan(own, "one", 1), plan(own, kind, 24)
    copies = {"ddp": 24, "hybrid": 3}.get(kind, 1)
    twice = 0  # on every rank of a copy: numbers without a dimension to cut, and means of columns
    if kind in ("fsdp", "hybrid"):
        twice = sum(own.state_bytes(s) for s in ALL if not s)
        if "factored" in storage:
            twice += sum(4 * s[1] for s in ALL if len(s) == 2 and s.numel() >= 4096)
            assert twice > 500
    assert found.state.sum() == copies * whole.state.sum() + twice * (24 - copies)


@pytest.mark.parametrize("kind", MANY)
def test_one_rank_holds_everything_and_sends_nothing(kind):
    alone, found = plan(a_model(), "one", 1), plan(a_model(), kind, 1)
    assert found.held.tolist() == alone.held.tolist() and found.work.tolist() == alone.work.tolist()
    assert not found.moves and found.sent == found.collectives == 0 and found.balance == 1


@given(st.integers(0, 400), st.integers(1, 70))
def test_rows_are_cut_as_torch_cuts_them(rows, ranks):
    chunks = torch.chunk(torch.empty(rows, 2, device="meta"), ranks)
    sizes = [len(chunk) for chunk in chunks] + [0] * (ranks - len(chunks))
    assert rows_held(rows, ranks).tolist() == sizes


@given(st.lists(st.integers(1, 2_000_000), min_size=1, max_size=80))
def test_buckets_are_those_of_torch(counts):
    sizes = [4 * n for n in counts]
    backwards = [torch.empty(n, device="meta") for n in reversed(counts)]
    theirs, _ = dist._compute_bucket_assignment_by_size(backwards, [FIRST_BUCKET, BUCKET])
    assert buckets(sizes) == len(theirs)


def test_what_is_sent_of_a_collective():
    assert Move("g", "all-reduce", 4, 1, 1000).sent == 1500
    assert Move("g", "all-gather", 4, 2, 1000).sent == Move("g", "reduce-scatter", 4, 1, 1000).sent == 750
    assert Move("g", "all-reduce", 1, 1, 1000).sent == 0


# ---------------------------------------------------------------------- growth


@pytest.mark.parametrize("ranks", RANKS)
def test_fsdp_holds_a_share_and_at_most_a_slice_of_each_tensor_more(gpt2, ranks):
    alone, found = plan(a_model(units=gpt2), "one", 1), plan(a_model(units=gpt2), "fsdp", ranks)
    slices = sum(4 * shape[1:].numel() for unit in gpt2 for shape in unit)
    for whole, held in ((alone.parameters, found.parameters), (alone.gradients, found.gradients)):
        assert held.min() == held.max() <= whole.item() / ranks + slices
        assert held.max() >= whole.item() / ranks
    assert found.state.max() <= alone.state.item() / ranks + 2 * slices
    assert found.state.sum() == alone.state.item()


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("scope", [Scope.ELEMENT, Scope.TENSOR, Scope.MATRIX])
def test_an_owner_has_a_share_of_the_work_and_at_most_one_tensor_more(gpt2, ranks, scope):
    own = a_model("momentum", units=gpt2, scope=scope)
    alone, found = plan(own, "one", 1), plan(own, "zero1", ranks)
    largest = max(
        plan(replace(own, units=[[shape]]), "one", 1).work.item() for unit in gpt2 for shape in unit
    )
    assert found.work.sum() == alone.work.item()
    assert found.work.max() <= alone.work.item() / ranks + largest
    if scope is not Scope.MATRIX:  # then work is elements, and so is state
        most = max(own.state_bytes(shape) for unit in gpt2 for shape in unit)
        assert found.state.max() <= alone.state.item() / ranks + most


@pytest.mark.parametrize("kind", ["ddp", "fsdp", "hybrid"])
@pytest.mark.parametrize("scope", [Scope.ELEMENT, Scope.MATRIX])
def test_collectives_do_not_grow_with_ranks(gpt2, kind, scope):
    own = a_model("momentum", units=gpt2, scope=scope)
    counts = {plan(own, kind, ranks).collectives for ranks in RANKS}
    assert len(counts) == 1


@pytest.mark.parametrize("kind", ["ddp", "hybrid"])
def test_what_a_rank_sends_does_not_grow_with_ranks(gpt2, kind):
    few, many = plan(a_model(units=gpt2), kind, 64), plan(a_model(units=gpt2), kind, 16_384)
    assert few.sent <= many.sent <= 1.02 * few.sent


def test_a_hybrid_of_one_copy_is_fsdp(gpt2):
    a, b = plan(a_model(units=gpt2), "hybrid", 64, group=64), plan(a_model(units=gpt2), "fsdp", 64)
    assert a.held.tolist() == b.held.tolist() and a.moves == b.moves


def test_copies_hold_the_same(gpt2):
    found = plan(a_model(units=gpt2), "hybrid", 1024, group=8)
    assert found.held.view(-1, 8).unique(dim=0).shape == (1, 8)
    inside, between = (next(m for m in found.moves if m.verb == v) for v in ("reduce-scatter", "all-reduce"))
    assert (inside.ranks, between.ranks) == (8, 128) and between.bytes * 8 == inside.bytes


def test_zero_2_holds_only_the_gradients_that_it_owns(gpt2):
    first, second = (plan(a_model(units=gpt2), kind, 64) for kind in ("zero1", "zero2"))
    assert second.state.tolist() == first.state.tolist()
    assert second.parameters.tolist() == first.parameters.tolist()
    assert second.gradients.sum() == first.gradients[0] == first.gradients.max()


# ---------------------------------------------------------------------- units, mistakes


@pytest.mark.parametrize(("name", "count"), [("tiny", 2), ("gpt2-124m", 12), ("llama-1b", 16)])
def test_blocks_are_the_layers(name, count):
    model = meta_model(name)
    units = units_of(model)
    assert len(blocks_of(model)) == count and len(units) == 1 + count
    assert len({tuple(unit) for unit in units[1:]}) == 1
    assert sorted(s for unit in units for s in unit) == sorted(p.shape for p in model.parameters())


def test_a_parameter_of_two_blocks_counts_once():
    model = torch.nn.ModuleList([torch.nn.Linear(3, 4, bias=False), torch.nn.Linear(3, 4, bias=False)])
    model[1].weight = model[0].weight
    assert units_of(torch.nn.Sequential(model)) == [[], [torch.Size((4, 3))], []]


@pytest.mark.parametrize(
    ("kind", "ranks", "group", "words"),
    [
        ("fsdpp", 8, None, "did you mean 'fsdp'"),
        ("one", 2, None, "cannot have 2 ranks"),
        ("ddp", 0, None, "cannot have 0 ranks"),
        ("ddp", 8, 4, "has no groups"),
        ("hybrid", 8, 3, "choose a divisor of 8"),
        ("hybrid", 12, None, "groups of 8"),
    ],
)
def test_a_mistake_is_a_sentence(kind, ranks, group, words):
    with pytest.raises(SteepestError, match=words):
        plan(a_model(), kind, ranks, group)
