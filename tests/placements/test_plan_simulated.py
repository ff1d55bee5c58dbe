"""Plans against torch itself: FSDP2 on fake process groups of up to 16,384 ranks, models without weights."""

import itertools
from collections import Counter
from contextlib import contextmanager

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode

import steepest
from steepest.lab.bench import meta_model, parse_storage
from steepest.models import build_model
from steepest.placements.blocks import blocks_of, units_of
from steepest.placements.plan import Model, plan, rows_held
from steepest.rules import CARDS, RULES


def adamw(model):
    return Model(units_of(model), RULES["adamw"], RULES["adamw"].defaults())


@contextmanager
def a_rank(rank, world):
    """This process as one rank of many; what it is told by the others is what it said."""
    dist.init_process_group("fake", rank=rank, world_size=world, store=FakeStore())
    try:
        yield
    finally:
        dist.destroy_process_group()


def cut(model, world, group=None):
    shape, names = ((world,), ("parts",)) if group is None else ((world // group, group), ("copies", "parts"))
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=names)
    for module in (*blocks_of(model), model):
        fully_shard(module, mesh=mesh)
    return model


def bytes_of(tensor):
    return tensor.to_local().untyped_storage().nbytes()


SIMULATED = [
    ("gpt2-124m", 64, (0, 1, 21, 63)),
    ("gpt2-124m", 1024, (0, 1, 767, 1023)),
    ("gpt2-124m", 16_384, (0, 1, 16_383)),
    ("llama-1b", 64, (0, 63)),
    ("llama-1b", 1024, (1, 1023)),
    ("llama-1b", 16_384, (16_383,)),
]


@pytest.mark.parametrize(("name", "world", "ranks"), SIMULATED)
def test_every_rank_has_the_slices_that_are_planned(name, world, ranks):
    whole = meta_model(name)
    own, shapes = adamw(whole), Counter(p.shape for p in whole.parameters())
    planned = plan(own, "fsdp", world)
    assert shapes.total() > 100
    for rank in ranks:
        with a_rank(rank, world):
            # torch takes a second for each parameter at 16,384 ranks: one of each shape, counted as often
            # as there are such.
            model = one_of_each(shapes)
            params = list(cut(model, world).parameters())
            held = [p.to_local() for p in params]
            assert [tuple(p.shape) for p in held] == [
                (int(rows_held(s[0], world)[rank]), *s[1:]) for s in shapes
            ]
            assert (
                sum(n * bytes_of(p) for p, n in zip(params, shapes.values(), strict=True))
                == planned.parameters[rank]
            )
            state = [own.state_bytes(s, len(p)) for s, p in zip(shapes, held, strict=True)]
            assert state == [8 * p.numel() for p in held]
            assert (
                sum(n * size for size, n in zip(state, shapes.values(), strict=True)) == planned.state[rank]
            )


def one_of_each(shapes, device="meta", dtype=torch.float32):
    model = torch.nn.Module()
    for i, shape in enumerate(shapes):
        p = torch.nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        model.register_parameter(f"p{i}", p)
    return model


@pytest.mark.parametrize(("kind", "group"), [("fsdp", None), ("hybrid", 16)])
def test_a_whole_model_is_cut_as_planned(kind, group):
    planned = plan(adamw(meta_model("gpt2-124m")), kind, 64, group)
    for rank in (0, 17, 63):
        with a_rank(rank, 64):
            params = list(cut(meta_model("gpt2-124m"), 64, group).parameters())
            assert sum(map(bytes_of, params)) == planned.parameters[rank]
            assert sum(8 * p.to_local().numel() for p in params) == planned.state[rank]


PARTS = [(1024, 768), (300, 160), (768,), (5, 40, 64), (1, 200)]
STORED = ["fp32", "int8", "split24/int4"]


@pytest.mark.parametrize("name", CARDS)
def test_an_optimizer_allocates_the_state_that_is_planned(name):
    card = CARDS[name]
    hyper = {**card.rule.defaults(), **card.settings}
    for storage, world in itertools.product(map(parse_storage, STORED), (4, 512)):
        shapes = [torch.Size(shape) for shape in PARTS]
        own = Model([shapes], card.rule, hyper, storage.state, storage.param, storage.dtype)
        planned = plan(own, "fsdp", world)
        for rank in (0, 1, world - 1):
            with a_rank(rank, world):
                model = one_of_each(shapes, "cpu", storage.dtype)
                params = cut(model, world).parameters()
                opt = getattr(steepest, card.constructor)(params, **card.settings, **storage.options())
                assert opt.state_bytes() == planned.state[rank], (storage.name, world, rank)


VERBS = {
    "_allgather_base_": "all-gather",
    "_reduce_scatter_base_": "reduce-scatter",
    "allreduce_": "all-reduce",
}


class Calls(TorchDispatchMode):
    """The collectives that are called, and the bytes of the largest tensor of each."""

    def __init__(self):
        super().__init__()
        self.calls, self.bytes = Counter(), Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "c10d":
            verb = VERBS[func._schema.name.removeprefix("c10d::")]
            lists = (a if isinstance(a, (list, tuple)) else [a] for a in args)
            tensors = [x for a in lists for x in a if isinstance(x, torch.Tensor)]
            self.calls[verb] += 1
            self.bytes[verb] += max(x.numel() * x.element_size() for x in tensors)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("world", "group"), [(5, None), (64, None), (6, 3)])
def test_a_step_of_fsdp_calls_what_is_planned(world, group):
    kind = "fsdp" if group is None else "hybrid"
    with a_rank(1, world):
        model = build_model("tiny", vocab_size=257, context=8, seed=0)
        planned = plan(adamw(model), kind, world, group)
        cut(model, world, group)
        tokens = torch.zeros(2, 8, dtype=torch.long)
        with Calls() as seen:
            model(input_ids=tokens, labels=tokens).loss.backward()
        assert all(p.grad is not None for p in model.parameters())
        gradients = sum(bytes_of(p.grad) for p in model.parameters() if p.numel())
    moves = {m.verb: m for m in planned.moves if m.what != "verdict"}
    assert seen.calls == {verb: m.calls for verb, m in moves.items()} and len(moves) >= 2
    assert seen.bytes == {verb: m.bytes for verb, m in moves.items()}
    assert gradients >= planned.gradients[1]  # views of the flat buffer of their block
