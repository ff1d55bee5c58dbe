"""What a rank holds of tensors that lie over several: what it gives to a generation, and all of it again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from steepest.contract import Scope, Shard
from steepest.optimizer import Optimizer
from steepest.placements import find_placement
from steepest.training.checkpoint import Piece
from steepest.training.world import World

Given = Mapping[str, Tensor | Piece]
"""What a rank gives of a group; a tensor that all ranks have is given by rank 0."""


def parts(tensors: Mapping[str, Tensor], world: World) -> Given:
    """What this rank gives of tensors that all ranks have, or that are cut."""
    values = list(tensors.values())
    placement = find_placement(values)
    placement.bind(values, [Scope.ELEMENT] * len(values))
    out: dict[str, Tensor | Piece] = {}
    for name, value in tensors.items():
        shard, here = placement.shard(value), placement.local(value)
        if shard is not None and _first_copy([value]):
            out[name] = Piece(here, shard)
        elif shard is None and world.first:
            out[name] = here
    return out


def state_parts(optimizer: Optimizer, world: World) -> Given:
    """What this rank gives of an optimizer's state. Whole tensors are given by the first who has them."""
    shards, tensors = optimizer.shards(), optimizer.export_state()[0]
    told = world.gather([name for name in tensors if name not in shards])
    before = {name for names in told[: world.rank] for name in names}
    cut = _first_copy([p for group in optimizer.param_groups for p in group["params"]])
    pieces = {name: Piece(x, shards[name]) for name, x in tensors.items() if name in shards and cut}
    return pieces | {name: x for name, x in tensors.items() if name not in shards and name not in before}


def _first_copy(params: Sequence[Tensor]) -> bool:
    """Whether what is here of DTensors is, of all copies in a mesh, the one that is given."""
    cut: Any = next((p for p in params if hasattr(p, "device_mesh")), None)
    return cut is None or all(
        cut.device_mesh.get_local_rank(i) == 0 for i, own in enumerate(cut.placements) if own.is_replicate()
    )


def together(given: Mapping[str, Given], world: World) -> dict[str, dict[str, Tensor]]:
    """All tensors of all groups, whole, on every rank, from what each gives."""
    told = world.gather({group: {name: _plain(x) for name, x in own.items()} for group, own in given.items()})
    out: dict[str, dict[str, Tensor]] = {}
    for group in given:
        named: dict[str, list[tuple[Tensor, Shard | None]]] = {}
        for rank in told:
            for name, part in rank[group].items():
                named.setdefault(name, []).append(part)
        out[group] = {name: _whole(found) for name, found in named.items()}
    return out


def put(value: Tensor, whole: Tensor) -> None:
    """Copy into a tensor, of which only a part may lie here, what is its own of the whole."""
    with torch.no_grad():
        placement = find_placement([value])
        placement.bind([value], [Scope.ELEMENT])
        shard, here = placement.shard(value), placement.local(value)
        here.copy_(whole if shard is None else whole[shard.first :][: len(here)])


def _plain(part: Tensor | Piece) -> tuple[Tensor, Shard | None]:
    tensor, shard = (part.tensor, part.shard) if isinstance(part, Piece) else (part, None)
    return tensor.detach().cpu(), shard


def _whole(found: list[tuple[Tensor, Shard | None]]) -> Tensor:
    """A tensor from its pieces."""
    if len(found) == 1 and found[0][1] is None:
        return found[0][0]
    pieces = [(shard.first, len(part), i, part) for i, (part, shard) in enumerate(found) if shard]
    return torch.cat([part for *_, part in sorted(pieces, key=lambda piece: piece[:3])])
