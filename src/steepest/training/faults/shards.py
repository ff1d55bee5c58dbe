"""What ranks that have met are asked: tensors of odd sizes, cut and owned, against one process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from steepest.contract import Scope
from steepest.optimizer import Optimizer
from steepest.placements import Placement
from steepest.rules import find_card
from steepest.training.faults.bench import Bench, drawn
from steepest.training.faults.terms import demand
from steepest.training.world import World

SHAPES = ((7, 6), (257, 3), (1, 5), (2,), (1,), (), (0, 4))
"""Uneven, a vocabulary with a row too many, empty on all ranks but one, of one element, of none."""
STEPS = 3
BOUND = 1e-6
"""How far a rule that sums over a tensor may be from one process, relative to the largest element."""

Place = Callable[[list[nn.Parameter]], tuple[list[nn.Parameter], Placement | None]]


def odd_tensors(bench: Bench, world: World) -> str:
    """Every rank steps what is its own of these tensors; together it is what one process does."""
    rule = find_card(bench.rule).rule
    whole = _stepped(bench, lambda params: (params, None))
    for name, place in (("owned whole (ZeRO)", _owned), ("cut by rows (FSDP2)", _cut)):
        for shape, one, other in zip(SHAPES, whole, _stepped(bench, place), strict=True):
            if not one.numel():
                continue
            gap = float((one - other).abs().max())
            limit = 0.0 if rule.scope is Scope.ELEMENT else BOUND * float(one.abs().max())
            demand(gap <= limit, f"a tensor of shape {shape}, {name}, is {gap:g} away from one process")
    exact = "to the bit" if rule.scope is Scope.ELEMENT else f"within {BOUND:g}"
    return f"{len(SHAPES)} odd shapes over {world.size} ranks are those of one process {exact}"


def _stepped(bench: Bench, place: Place) -> list[Tensor]:
    """The parameters, whole, after a few steps under a placement."""
    whole = [nn.Parameter(drawn(torch.Size(shape), f"p{i}")) for i, shape in enumerate(SHAPES)]
    params, placement = place(whole)
    named = [(f"p{i}", p) for i, p in enumerate(params)]
    optimizer: Optimizer = bench.optimizer(named, placement=placement)
    for step in range(STEPS):
        for i, p in enumerate(params):
            p.grad = _like(p, drawn(torch.Size(SHAPES[i]), f"g{i}/{step}"))
        optimizer.step()
    return [_whole(p) for p in params]


def _owned(params: list[nn.Parameter]) -> tuple[list[nn.Parameter], Placement | None]:
    from steepest.placements.owned import Owned

    return params, Owned()


def _cut(params: list[nn.Parameter]) -> tuple[list[nn.Parameter], Placement | None]:
    return [nn.Parameter(_scattered(p)) if p.ndim and len(p) else p for p in params], None


def _scattered(whole: Tensor) -> Tensor:
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    return distribute_tensor(whole.detach(), mesh, [Shard(0)])


def _like(p: Any, grad: Tensor) -> Tensor:
    return _scattered(grad) if hasattr(p, "device_mesh") else grad


def _whole(p: Any) -> Tensor:
    with torch.no_grad():
        found = p.full_tensor() if hasattr(p, "full_tensor") else p
    return found.detach().clone()
