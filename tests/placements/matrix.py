"""The matrix of placements: what every rule and codec comes to on ranks, beside one process."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from laws.cases import CASES, choice, tensors
from steepest import SteepestError
from steepest.codecs import PARAM_CODECS, SLOT_NAMES
from steepest.contract import Scope

SHAPES = {
    "weight": (64, 128),  # large enough for codecs, divides evenly by 1, 2 and 4
    "vocabulary": (257, 48),  # does not
    "small": (7, 6),
    "few": (2, 130),  # fewer rows than ranks: some have nothing
    "cube": (5, 3, 40),
    "vector": (13,),
    "one": (1,),
    "empty": (0, 4),
    "scalar": (),
    "frozen": (6, 4),
    "late": (9, 40),  # frozen in the first step
    "idle": (4, 4),  # has no gradient
}
STEPS = 3
PLACEMENTS = ("ddp", "zero1", "zero2", "fsdp", "hybrid")


@dataclass(frozen=True)
class Cell:
    """A rule's case, how its slots and its parameters are stored, clipped or not."""

    case: object
    state: str
    param: str | None
    clip: float | None

    def __str__(self):
        return "-".join(
            map(
                str,
                (
                    self.case,
                    self.state,
                    *([self.param] if self.param else []),
                    *(["clip"] if self.clip else []),
                ),
            )
        )

    @property
    def exact(self):
        """Whether no number depends on the order of a sum over ranks."""
        return self.case.rule.scope is Scope.ELEMENT and self.state != "factored" and self.clip is None

    def build(self, params, **options):
        shapes = [tuple(p.shape) for _, p in params]
        return self.case.build(
            params,
            lr=0.01,
            state=choice(self.case, self.state, shapes),
            param=self.param,
            max_grad_norm=self.clip,
            **options,
        )


def cells():
    """Every rule with every codec of slots; codecs of parameters, clipping and formulas take turns."""
    params = itertools.cycle([None, *PARAM_CODECS])
    clips = itertools.cycle([None, None, 0.5])
    known = set()
    for i, case in enumerate(CASES):
        slots = case.rule.name, *case.rule.slots_for(torch.Size(SHAPES["weight"]), case.full)
        names = SLOT_NAMES if slots not in known else [SLOT_NAMES[i % len(SLOT_NAMES)]]
        known.add(slots)
        for name in names:
            yield Cell(case, name, next(params), next(clips))


CELLS = list(cells())


def compare(rank, world, placements, picked):
    """For every picked cell and placement: the largest difference to one process, over parameters and state.

    A cell that is refused says so in words. Runs on every rank; each tells of its own parts.
    """
    meshes = _meshes(world)
    found = {}
    for cell in (CELLS[i] for i in picked):
        whole = _train(cell, None, meshes)
        for placement in placements:
            found[str(cell), placement] = _difference(cell, placement, meshes, whole)
    return found


def _meshes(world):
    from torch.distributed.device_mesh import init_device_mesh

    inner = 2 if world == 4 else world
    return {
        "fsdp": init_device_mesh("cpu", (world,)),
        "hybrid": init_device_mesh("cpu", (world // inner, inner)),
    }


def _train(cell, placement, meshes):
    """Values of parameters and of their state after some steps, by name; parts as (tensor, first row)."""
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    from steepest.placements.owned import Owned

    dtype = torch.bfloat16 if cell.param else torch.float32
    mesh = meshes.get(placement)
    ways = {1: [Shard(0)], 2: [Replicate(), Shard(0)]}

    def spread(x: Tensor) -> Tensor:
        if mesh is None or not x.ndim:
            return x.clone()
        return distribute_tensor(x.clone(), mesh, ways[mesh.ndim])

    values = tensors(SHAPES.values(), seed=3, dtype=dtype)
    params = {name: nn.Parameter(spread(x)) for name, x in zip(SHAPES, values, strict=True)}
    params["frozen"].requires_grad_(False)
    params["late"].requires_grad_(False)
    owned = Owned() if placement in ("zero1", "zero2") else None
    opt = cell.build(list(params.items()), placement=owned)
    for step in range(STEPS):
        params["late"].requires_grad_(step > 0)
        grads = dict(zip(SHAPES, tensors(SHAPES.values(), seed=50 + step, dtype=dtype), strict=True))
        for place, (name, p) in enumerate(params.items()):
            kept = p.requires_grad and name != "idle" and (placement != "zero2" or opt.placement.owns(place))
            p.grad = spread(grads[name]) if kept else None
        opt.step()
    assert opt.committed == STEPS
    held = {h.name: h for h in opt.holdings()}
    out = {}
    for name, h in held.items():
        first = h.shard.first if h.shard else 0
        out[name, "p"] = h.local.detach(), first
        cut = h.cut()
        for slot, value in (h.state or {}).items():
            if isinstance(value, Tensor):
                out[name, slot] = value, cut[slot].first if slot in cut else 0
            else:
                out[name, slot] = torch.tensor(value), 0
    return out


def _difference(cell, placement, meshes, whole):
    try:
        parts = _train(cell, placement, meshes)
    except SteepestError as error:
        return str(error)
    worst = 0.0
    assert {key for key in whole if key[1] == "p"} <= set(parts)
    for key, (part, first) in parts.items():
        expected = whole[key][0]
        if part.ndim:
            expected = expected[first : first + part.shape[0]]
        assert part.shape == expected.shape and part.dtype == expected.dtype, key
        if not torch.equal(part, expected):
            far = (part.double() - expected.double()).abs().max() / expected.double().abs().max().clamp(
                min=1e-3
            )
            worst = max(worst, float(far))
    return worst
