"""Models trained on ranks by torch's engines and stepped by ours: the numbers of one process."""

import copy

import pytest
import torch
import torch.distributed as dist
from torch import nn

import steepest
from placements.ranks import on_ranks
from steepest import Optimizer
from steepest.contract import Rule, Scope, zeros
from steepest.placements import release
from steepest.placements.place import KINDS, place
from steepest.placements.unused import EXCHANGE

WORLDS = [2, 3]
ROWS = 12


class Net(nn.Module):
    """Layers of odd sizes, a tied weight, a frozen one, and one that the loss does not know."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(37, 20)
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(20, 20), nn.LayerNorm(20)) for _ in range(3))
        self.head = nn.Linear(20, 37, bias=False)
        self.head.weight = self.embed.weight
        self.fixed = nn.Linear(20, 20)
        self.fixed.requires_grad_(False)

    def forward(self, ids):
        x = self.fixed(self.embed(ids))
        for layer in self.layers:
            x = x + torch.tanh(layer(x))
        return self.head(x)


def net():
    torch.manual_seed(5)
    return Net()


def batch(step):
    return torch.randint(37, (ROWS, 9), generator=torch.Generator().manual_seed(step))


def loss_of(model, ids):
    logits = model(ids[:, :-1])
    return nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())


def build(model, placement=None, rule="adamw", **options):
    return Optimizer(
        model.named_parameters(), rule, lr=1e-2, max_grad_norm=0.7, placement=placement, **options
    )


def alone(rule="adamw", steps=4, **options):
    """(losses, parameters) of one process on whole batches."""
    model = net()
    opt = build(model, rule=rule, **options)
    losses = []
    for step in range(steps):
        loss = loss_of(model, batch(step))
        loss.backward()
        opt.step()
        opt.zero_grad()
        losses.append(loss.item())
    return (
        losses,
        {name: p.detach() for name, p in model.named_parameters()},
        opt.telemetry() if opt.observes else {},
    )


def whole(p):
    return (p.full_tensor() if hasattr(p, "full_tensor") else p).detach().clone()


def named(placed):
    return {name.removeprefix("module."): p for name, p in placed.model.named_parameters()}


def together(rank, world, kind, rule, options):
    """The same on ranks, each with its rows, in two micro-batches a step."""
    placed = place(net(), kind, shard=1 if world == 3 else None)
    opt = build(placed.model, placed.placement, rule, **options)
    placed.attach()
    losses = []
    for step in range(4):
        halves = batch(step).chunk(2)
        mine = [half.chunk(world)[rank] for half in halves]
        with placed.holding():
            first = loss_of(placed.model, mine[0])
            (first / 2).backward()
        second = loss_of(placed.model, mine[1])
        (second / 2).backward()
        placed.finish()
        opt.step()
        opt.zero_grad()
        loss = (first + second).detach() / 2
        dist.all_reduce(loss)
        losses.append(loss.item() / world)
    told = opt.telemetry() if opt.observes else {}
    told = {name.removeprefix("module."): row for name, row in told.items()}
    return losses, {name: whole(p) for name, p in named(placed).items()}, told, opt.state_bytes()


def every_kind(rank, world, cases):
    return {
        (kind, rule): together(rank, world, kind, rule, options) for kind in KINDS for rule, options in cases
    }


CASES = [
    ("adamw", {"telemetry": True, "weight_decay": 0.1}),
    ("lamb", {}),
    ("adafactor", {}),
    ("lion", {"state": "bf16"}),
]


@pytest.mark.parametrize("world", WORLDS)
def test_training_on_ranks_is_training_on_one(world):
    told = on_ranks(world, every_kind, CASES)
    for rule, options in CASES:
        losses, params, moved = alone(rule, **options)
        for kind in KINDS:
            for rank in range(world):
                ours, values, seen, _ = told[rank][kind, rule]
                assert ours == pytest.approx(losses, abs=2e-5), (kind, rule)
                assert values.keys() == params.keys()
                for name, p in params.items():
                    torch.testing.assert_close(
                        values[name], p, rtol=2e-3, atol=2e-4, msg=f"{kind} {rule} {name}"
                    )
                assert seen.keys() == moved.keys()
                for name, row in moved.items():
                    assert seen[name]["grad_norm"] == pytest.approx(row["grad_norm"], rel=1e-3)


class Fork(nn.Module):
    """Goes left or right; its third way is never taken."""

    def __init__(self):
        super().__init__()
        self.ways = nn.ParameterList(torch.randn(20, 20) / 5 for _ in range(3))

    def forward(self, x, way):
        return x @ self.ways[way]


class Forked(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(7)
        self.layers = nn.ModuleList(Fork() for _ in range(2))
        self.out = nn.Linear(20, 3)

    def forward(self, x, way):
        for layer in self.layers:
            x = torch.tanh(layer(x, way))
        return self.out(x).square().mean()


def forks(step, rank):
    x = torch.randn(4, 20, generator=torch.Generator().manual_seed(10 * step + rank))
    return x, 0 if step == 2 else rank % 2  # in the third step all go left


def forked(rank, world, kinds):
    told = {}
    for kind in kinds:
        placed = place(Forked(), kind, unused=True)
        opt = Optimizer(placed.model.named_parameters(), "adamw", lr=1e-2, weight_decay=0.1,
                        placement=placed.placement)  # fmt: skip
        placed.attach()
        for step in range(4):
            placed.model(*forks(step, rank)).backward()
            placed.finish()
            opt.step()
            opt.zero_grad()
        told[kind] = {name: whole(p) for name, p in named(placed).items()}
    return told


def test_ranks_that_leave_out_different_parameters_train_as_one():
    """Zeros stand for what one rank lacks, and what all leave out does not even decay."""
    told = on_ranks(2, forked, KINDS)
    model = Forked()
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    opt = Optimizer(model.named_parameters(), "adamw", lr=1e-2, weight_decay=0.1)
    for step in range(4):
        for rank in range(2):
            (model(*forks(step, rank)) / 2).backward()
        opt.step()
        opt.zero_grad()
    for kind in KINDS:
        for name, p in model.named_parameters():
            torch.testing.assert_close(
                told[0][kind][name], p.detach(), msg=lambda m, k=kind, n=name: f"{k} {n}: {m}"
            )
            assert torch.equal(told[0][kind][name], start[name]) == ("ways.2" in name), (kind, name)


def older(rank, world):
    from torch.distributed.fsdp import FSDPModule

    delattr(FSDPModule, EXCHANGE)
    placed = place(net(), "fsdp", unused=True)
    loss_of(placed.model, batch(0)).backward()
    placed.finish()
    return placed.unused is None and all(
        p.grad is not None for p in placed.model.parameters() if p.requires_grad
    )


def test_a_torch_that_cannot_exchange_zeros_trains_what_uses_all():
    assert on_ranks(2, older) == [True, True]


def passes_twice(rank, world):
    release.BUCKET = 1
    placed = place(net(), "zero2")
    build(placed.model, placed.placement)
    placed.attach()
    loss_of(placed.model, batch(0)).backward()
    try:
        loss_of(placed.model, batch(1)).backward()
    except steepest.SteepestError as error:
        said = str(error)
    placed.finish()
    return said


def test_a_second_pass_after_gradients_were_sent_is_refused():
    assert all("holding()" in said for said in on_ranks(2, passes_twice))


def test_owned_state_is_an_even_share():
    (first, second) = on_ranks(2, every_kind, CASES[:1])
    sizes = [told["zero1", "adamw"][3] for told in (first, second)]
    largest = 37 * 20 * 8
    assert abs(sizes[0] - sizes[1]) <= largest and sum(sizes) == first["ddp", "adamw"][3]


def vetoes(rank, world, kind):
    placed = place(net(), kind)
    opt = build(placed.model, placed.placement)
    placed.attach()
    before = {name: whole(p).clone() for name, p in named(placed).items()}
    loss_of(placed.model, batch(0)).backward()
    placed.finish()
    bad = [p for p in placed.model.parameters() if p.grad is not None]
    if rank == 1 or kind == "zero2":
        local = opt.placement.local(bad[-1].grad)
        local.view(-1)[-1] = float("nan")
    opt.step()
    after = {name: whole(p) for name, p in named(placed).items()}
    same = all(torch.equal(after[name], value) for name, value in before.items())
    return opt.last_verdict.commit, opt.last_verdict.culprits, opt.skipped, same


def every_veto(rank, world):
    return {kind: vetoes(rank, world, kind) for kind in ("zero1", "zero2", "fsdp")}


def test_a_nan_on_one_rank_vetoes_on_all_and_names_it():
    told = on_ranks(2, every_veto)
    for found in told:
        for kind, (commit, culprits, skipped, same) in found.items():
            assert not commit and same and skipped == 1, kind
            assert (len(culprits) == 1 and "rank 1" in culprits[0]) or kind == "zero2", (kind, culprits)
    assert told[0] == told[1]


# ---------------------------------------------------------------------- state, in and out


def checkpointed(rank, world, folder):
    """Saved by torch's own distributed checkpoint and loaded into a fresh optimizer; and exported."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

    def made(seed):
        torch.manual_seed(seed)
        placed = place(Net(), "fsdp")
        return placed.model, build(placed.model, state="int8")

    model, opt = made(5)
    for step in range(2):
        loss_of(model, batch(step)).backward()
        opt.step()
        opt.zero_grad()
    saved = {"optimizer": get_optimizer_state_dict(model, opt)}
    dcp.save(saved, checkpoint_id=folder)
    other, fresh = made(6)
    into = {"optimizer": get_optimizer_state_dict(other, fresh)}
    dcp.load(into, checkpoint_id=folder)
    set_optimizer_state_dict(other, fresh, into["optimizer"])
    tensors, facts = opt.export_state()
    theirs, _ = fresh.export_state()
    same = tensors.keys() == theirs.keys() and all(torch.equal(tensors[n], theirs[n]) for n in tensors)
    return same, tensors, opt.shards(), facts


def test_state_goes_through_torch_s_distributed_checkpoint_and_is_whole_in_parts(tmp_path):
    told = on_ranks(3, checkpointed, str(tmp_path / "dcp"))
    assert all(same for same, *_ in told)
    model = net()
    opt = build(model, state="int8")
    for step in range(2):
        loss_of(model, batch(step)).backward()
        opt.step()
        opt.zero_grad()
    expected, facts = opt.export_state()
    whole_state = {}
    for name, tensor in expected.items():
        parts = [(shards[name].first, tensors[name]) for _, tensors, shards, _ in told if name in shards]
        found = (
            torch.cat([part for _, part in sorted(parts, key=lambda of: of[0])])
            if parts
            else told[0][1][name]
        )
        assert found.shape == tensor.shape, name
        whole_state[name] = found
    assert told[0][3]["parameters"].keys() == facts["parameters"].keys()
    fresh = build(net(), state="int8")
    fresh.import_state(whole_state, told[0][3])
    assert fresh.committed == 2


def resharded(rank, world, tensors, facts):
    placed = place(net(), "fsdp")
    opt = build(placed.model, state="int8")
    opt.import_state(tensors, facts)
    got, _ = opt.export_state()
    return got, opt.shards()


def test_a_whole_state_is_taken_in_parts():
    model = net()
    opt = build(model, state="int8")
    loss_of(model, batch(0)).backward()
    opt.step()
    tensors, facts = opt.export_state()
    for got, shards in on_ranks(2, resharded, copy.deepcopy(tensors), facts):
        assert shards
        for name, tensor in got.items():
            first = shards[name].first if name in shards else 0
            expected = tensors[name][first : first + tensor.shape[0]] if tensor.ndim else tensors[name]
            assert torch.equal(tensor, expected), name


# ---------------------------------------------------------------------- matrices


def _orthogonal(p, g, s, h):
    m = 0.9 * s.m + g
    return torch.linalg.qr(m).Q if m.ndim > 1 else m, {"m": m}


MATRIX = Rule(
    "orthogonal",
    _orthogonal,
    {"m": zeros},
    {name: steepest.rules.find_rule("adamw").hyper[name] for name in ("lr", "weight_decay")},
    Scope.MATRIX,
    "a rule of this test",
)


def matrices(rank, world):
    found = {}
    for kind in ("zero1", "fsdp", "hybrid"):
        _, values, _, size = together(rank, world, kind, MATRIX, {"engine": "reference"})
        found[kind] = values, size
    return found


def test_matrix_rules_see_whole_matrices_at_their_owners():
    _, params, _ = alone(MATRIX, engine="reference")
    for found in on_ranks(3, matrices):
        for kind, (values, _) in found.items():
            for name, p in params.items():
                torch.testing.assert_close(values[name], p, rtol=1e-3, atol=1e-3, msg=f"{kind} {name}")


# ---------------------------------------------------------------------- traffic


def counted(rank, world):
    out = {}
    for rule in ("adamw", "lamb"):
        placed = place(net(), "fsdp")
        opt = build(placed.model, rule=rule)
        loss_of(placed.model, batch(0)).backward()
        opt.placement.traffic()
        opt.step()
        out[rule] = opt.placement.traffic().collectives
    return out


def test_element_rules_say_nothing_and_tensor_rules_one_thing():
    for found in on_ranks(2, counted):
        assert found == {"adamw": 1, "lamb": 2}  # the verdict; and the sums over all tensors
