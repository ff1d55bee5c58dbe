"""The matrix of placements: what every rule and codec comes to on ranks, beside one process."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from laws.cases import CASES, choice, tensors
from steepest import SteepestError
from steepest.codecs import PARAM_CODECS, SLOT_NAMES, decode, stored_name, unpack
from steepest.contract import Scope
from steepest.optimizer.state import decode_slots
from steepest.placements import Offloaded, Owned

SHAPES = {
    "weight": (64, 128),  # large enough for codecs, divides evenly by 1, 2 and 4
    "vocabulary": (257, 48),  # does not
    "tall": (260, 130),  # a part is wider than it is tall, the whole is not
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
PLACEMENTS = ("ddp", "zero1", "zero2", "fsdp", "hybrid", "fsdp offloaded")
BOUND = 3e-5
"""Relative to the largest value of a tensor, where sums over ranks come in another order."""


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
    """For every picked cell and placement, how far one process is away (`_difference`). Each rank tells of
    its own parts."""
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
    """What an optimizer holds after some steps, by the name of the parameter."""
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    from steepest.placements.sharded import Sharded

    dtype = torch.bfloat16 if cell.param else torch.float32
    mesh = meshes.get(placement and placement.split()[0])
    ways = {1: [Shard(0)], 2: [Replicate(), Shard(0)]}

    def spread(x: Tensor) -> Tensor:
        if mesh is None or not x.ndim:
            return x.clone()
        return distribute_tensor(x.clone(), mesh, ways[mesh.ndim])

    values = tensors(SHAPES.values(), seed=3, dtype=dtype)
    params = {name: nn.Parameter(spread(x)) for name, x in zip(SHAPES, values, strict=True)}
    params["frozen"].requires_grad_(False)
    params["late"].requires_grad_(False)
    made = {"zero1": Owned, "zero2": Owned, "fsdp offloaded": lambda: Offloaded(Sharded())}
    opt = cell.build(list(params.items()), placement=made.get(placement, lambda: None)())
    for step in range(STEPS):
        params["late"].requires_grad_(step > 0)
        grads = dict(zip(SHAPES, tensors(SHAPES.values(), seed=50 + step, dtype=dtype), strict=True))
        for place, (name, p) in enumerate(params.items()):
            kept = p.requires_grad and name != "idle" and (placement != "zero2" or opt.placement.owns(place))
            p.grad = spread(grads[name]) if kept else None
        opt.step()
    assert opt.committed == STEPS
    return {held.name: held for held in opt.holdings()}


def _difference(cell, placement, meshes, whole):
    """0 for the same bits, else how far values are apart, in parts of what is allowed; a refusal's words."""
    try:
        parts = _train(cell, placement, meshes)
    except SteepestError as error:
        return str(error)
    return max(_far(held, whole[name]) for name, held in parts.items())


def _far(held, whole):
    """What is here of a parameter and of its state, beside the same part of the whole."""
    cut, first = held.cut(), held.shard.first if held.shard else 0

    def part(x, start, like):
        return x[start : start + like.shape[0]] if like.ndim else x

    pairs = [(held.local.detach(), part(whole.local.detach(), first, held.local))]
    for name, value in (held.state or {}).items():
        if not isinstance(value, Tensor):
            assert value == whole.state[name], (held.name, name)
            continue
        pairs.append((value, part(whole.state[name], cut[name].first if name in cut else 0, value)))
    for ours, theirs in pairs:
        assert ours.shape == theirs.shape and ours.dtype == theirs.dtype, held.name
    if all(torch.equal(ours, theirs) for ours, theirs in pairs):
        return 0.0
    mine, theirs = _values(held), _values(whole)
    steps = {slot: codec.step for slot, codec in held.codecs.items()}
    steps["p"] = 2.0**-8 if held.codecs["p"].lossy and len(held.codecs["p"].parts) == 1 else 2.0**-16
    # Where a sum differs in its last digits, a value may be rounded to the other side, by one code; and then
    # the next updates differ by as much of themselves.
    limits = {slot: BOUND + 3 * step for slot, step in steps.items()}
    limits["p"] += 0.1 * max(step for slot, step in steps.items() if slot != "p") if len(steps) > 1 else 0.0
    worst = 0.0
    for slot, ours in mine.items():
        start = 0 if ours.shape == theirs[slot].shape else first
        expected = part(theirs[slot], start, ours).double()
        if ours.numel():
            far = (ours.double() - expected).abs().max() / theirs[slot].double().abs().max().clamp(min=1e-3)
            worst = max(worst, float(far) / limits[slot.partition(".")[0]])
    return worst


def _values(held):
    """The values of a parameter and of its slots, decoded; of factored ones the means, which make a value
    only where all of them are."""
    means = {slot for slot, codec in held.codecs.items() if codec.name == "factored"}
    codecs = {slot: codec for slot, codec in held.codecs.items() if slot not in means}
    out = {} if held.state is None else decode_slots(held.state, codecs, held.local)
    out |= {name: x for name, x in (held.state or {}).items() if name.partition(".")[0] in means}
    out.pop("step", None)
    codec, stored = held.codecs["p"], {"p": held.local.detach(), **(held.state or {})}
    parts = {stored_name("p", part): of for part, of in codec.parts.items()}
    if all(name in stored for name in parts):
        out["p"] = decode(codec, "p", {n: unpack(stored[n], of, held.local.shape) for n, of in parts.items()})
    else:
        out["p"] = held.local.detach()
    return out
