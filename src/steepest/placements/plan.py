"""What every rank of a placement holds, computes and sends in a step, from declarations alone.

No rank is started and no tensor allocated: shapes, a rule's slots and scope, its codecs, and how torch cuts
and gathers, are all it takes. So a plan is as exact for 16,384 ranks as for two.

Held are parameters, gradients and state between steps, as an optimizer, DistributedDataParallel (gradients
are views of its buckets) and FSDP2 allocate them; activations and an allocator's slack are not in it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from steepest.codecs import codec_bytes, param_codec, slot_codec
from steepest.contract import Rule, Scope, SteepestError, compute_dtype, expand, unknown
from steepest.placements.cost import assign, step_cost
from steepest.placements.matrices import batches
from steepest.placements.moves import Move, buckets
from steepest.placements.owned import FLYING, PIECE, packed
from steepest.placements.release import loads

NUMBER = 8
"""Bytes of a number of which ranks make sums: float64."""


@dataclass(frozen=True)
class Model:
    """A model, and how all its parameters are stepped and stored.

    units: shapes of the parameters that are in no block, then block by block.
    hyper: every hyperparameter of the rule, by torch's names.  state, param: as an optimizer takes them.
    dtype: of parameters and gradients.
    sums:  how many sums over tensors a step adds up where tensors are cut, for each time that it does.
    """

    units: Sequence[Sequence[torch.Size]]
    rule: Rule
    hyper: Mapping[str, Any]
    state: str | Mapping[str, str] | None = None
    param: str | None = None
    dtype: torch.dtype = torch.float32
    sums: Sequence[int] = ()

    @property
    def shapes(self) -> list[torch.Size]:
        """Of all parameters."""
        return [shape for unit in self.units for shape in unit]

    def bytes(self, shapes: Iterable[torch.Size]) -> list[int]:
        """Of parameters of these shapes, or of their gradients."""
        return [shape.numel() * self.dtype.itemsize for shape in shapes]

    def state_bytes(self, shape: torch.Size, rows: int | None = None) -> int:
        """Bytes of a parameter's state where this many slices of its first dimension are held; None: all.

        The whole's shape decides about slots and codecs. A slot with as many slices as the parameter is cut
        alongside; one of a single slice (means of columns) is whole wherever a part is.
        """
        compute = compute_dtype(torch.empty(0, dtype=self.dtype, device="meta"))
        live = vars(expand({name: self.hyper[name] for name in self.rule.hyper}, 1))
        param, here = param_codec(self.param, self.dtype), _part(shape, shape, rows)
        total = codec_bytes(param, here) - math.prod(here) * param.parts[""].dtype.itemsize
        for name, own in self.rule.slots_for(shape, self.hyper).items():
            codec = slot_codec(self.state, name, self.rule.slots[name], shape, live, compute)
            total += codec_bytes(codec, _part(own, shape, rows))
        return total


@dataclass(frozen=True)
class Plan:
    """One step of a model under a placement, on every rank.

    group:   ranks that share one copy of what the placement divides; the others hold further copies.
    parameters, gradients, state: bytes that each rank holds between steps, int64 (ranks,).
    work:    what the update costs each rank, by `step_cost`, int64 (ranks,).
    passing: bytes beside them that a rank holds for a moment: whole parameters and gradients of FSDP2's
             blocks at their most, pieces of parameters on their way from their owners.
    moves:   all that is sent in a step of one micro-batch.
    """

    placement: str
    ranks: int
    group: int
    parameters: Tensor
    gradients: Tensor
    state: Tensor
    work: Tensor
    passing: int
    moves: tuple[Move, ...]

    @property
    def held(self) -> Tensor:
        """Bytes that each rank holds between steps."""
        return self.parameters + self.gradients + self.state

    @property
    def balance(self) -> float:
        """The largest work of a rank by the mean: 1 is even."""
        mean = self.work.double().mean().item()
        return self.work.max().item() / mean if mean else 1.0

    @property
    def collectives(self) -> int:
        """Calls in a step."""
        return sum(move.calls for move in self.moves)

    @property
    def sent(self) -> int:
        """Bytes that a rank sends in a step, the busiest one where they differ."""
        return sum(move.sent for move in self.moves)


def plan(model: Model, placement: str, ranks: int, group: int | None = None) -> Plan:
    """The plan of a model over this many ranks.

    placement: "one", "ddp", "zero1", "zero2", "fsdp" or "hybrid".
    group:     for "hybrid": how many ranks share one copy of the model; 8 if not given.
    """
    if placement not in PLACEMENTS:
        raise unknown("placement", placement, PLACEMENTS)
    if ranks < 1 or (placement == "one" and ranks > 1):
        raise SteepestError(f"placement {placement!r} cannot have {ranks} ranks; choose another of either.")
    if group is not None and placement != "hybrid":
        raise SteepestError(f"placement {placement!r} has no groups of ranks; leave the group out.")
    if placement == "hybrid":
        group = min(8, ranks) if group is None else group
        if group < 1 or ranks % group:
            raise SteepestError(f"{ranks} ranks cannot form groups of {group}; choose a divisor of {ranks}.")
    return PLACEMENTS[placement](placement, model, ranks, group or ranks)


def rows_held(rows: int, ranks: int) -> Tensor:
    """Slices of a first dimension on each rank: ceil(rows / ranks) while they last, as torch.chunk has it."""
    chunk = -(-rows // ranks)
    return (rows - chunk * torch.arange(ranks)).clamp(0, chunk)


def _whole(name: str, model: Model, ranks: int, group: int) -> Plan:
    """Every rank holds and steps everything; gradients are averaged."""
    shapes, sizes = model.shapes, model.bytes(model.shapes)
    state = sum(model.state_bytes(shape) * n for shape, n in Counter(shapes).items())
    work = sum(step_cost(shape, model.rule.scope) for shape in shapes)
    every = torch.ones(ranks, dtype=torch.int64)
    moves = _between(Move("gradients", "all-reduce", ranks, buckets(sizes), sum(sizes)))
    held = every * sum(sizes)
    return Plan(name, ranks, 1, held, held, every * state, every * work, 0, moves)


def _owned(name: str, model: Model, ranks: int, group: int) -> Plan:
    """Every parameter has an owner, who has its state and steps it; zero2: and its gradient."""
    shapes, sizes = model.shapes, model.bytes(model.shapes)
    costs = [step_cost(shape, model.rule.scope) for shape in shapes]
    owners = assign(costs, ranks)
    state = {shape: model.state_bytes(shape) for shape in set(shapes)}

    def by_owner(values: Iterable[int]) -> Tensor:
        return _add_at(owners, values, ranks)

    everything, owned = torch.full((ranks,), sum(sizes)), by_owner(sizes)
    averaged = Move("gradients", "all-reduce", ranks, buckets(sizes), sum(sizes))
    # Beside each gradient goes one number more: whether there is any.
    sent, calls = (
        sum(sizes) + len(shapes) * model.dtype.itemsize,
        len(loads([s.numel() for s in shapes], owners)),
    )
    reduced = Move("gradients to their owners", "reduce", ranks, calls, sent)
    moves = _between(
        reduced if name == "zero2" else averaged,
        Move("verdict", "all-reduce", ranks, 1, 3 * NUMBER),
        Move("parameters from their owners", "broadcast", ranks, len(packed(sizes, owners)), sum(sizes)),
    )
    return Plan(
        name,
        ranks,
        ranks,
        parameters=everything,
        gradients=owned if name == "zero2" else everything,
        state=by_owner(state[shape] for shape in shapes),
        work=by_owner(costs),
        passing=min(FLYING * PIECE, sum(sizes)) if moves else 0,
        moves=moves,
    )


def _cut(name: str, model: Model, ranks: int, group: int) -> Plan:
    """Every parameter is cut over the ranks of a group along its first dimension, as FSDP2's fully_shard does
    it: parameters and gradients are filled up to equal parts, blocks are whole only while they compute.

    What a rule of scope MATRIX steps has owners in the group, who keep it whole too, with its state.
    """
    by_matrix = model.rule.scope is Scope.MATRIX
    matrices = [shape for shape in model.shapes if by_matrix and shape]
    tally, copies = Counter(model.shapes) - Counter(matrices), ranks // group
    costs, sizes = [step_cost(shape, Scope.MATRIX) for shape in matrices], model.bytes(matrices)
    owners, states = assign(costs, group), [model.state_bytes(shape) for shape in matrices]

    def over_group(size: Callable[[torch.Size, int | None], int], values: Iterable[int]) -> Tensor:
        parts = (n * _by_rows(size, shape, group) for shape, n in tally.items())
        return sum(parts, _add_at(owners, values, group)).repeat(copies)

    owned = int(_add_at(owners, sizes, group).max())
    padded = [sum(model.bytes(_chunk(shape, group) for shape in unit)) for unit in model.units]
    whole = [group * size for size in padded]
    rest, blocks = whole[0], [*sorted(whole[1:], reverse=True), 0, 0]
    used, calls = sum(size > 0 for size in whole), len(batches([("", tuple(shape)) for shape in matrices]))
    sent = sum(model.bytes(_chunk(shape, group) for shape in matrices))
    moves = _between(
        # The rest stays whole from forward to backward; blocks are put together for each of the two.
        Move("parameters", "all-gather", group, 2 * used - (rest > 0), 2 * sum(whole) - rest),
        Move("gradients", "reduce-scatter", group, used, sum(whole)),
        Move("gradients, between copies", "all-reduce", copies, used, sum(padded)),
        Move("verdict", "all-reduce", group, 1, 4 * NUMBER),
        Move("sums over tensors", "all-reduce", group, len(model.sums), NUMBER * sum(model.sums)),
        Move("matrices and gradients to their owners", "all-to-all", group, 2 * calls, 2 * sent),
        Move("matrices from their owners", "all-to-all", group, calls, owned),
    )
    # Parameters and gradients of the rest and of a block, parameters of the block that comes next.
    backward = 2 * rest + 2 * blocks[0] + blocks[1] if moves else 0
    return Plan(
        name,
        ranks,
        group,
        parameters=sum(padded) + _add_at(owners, sizes, group).repeat(copies),
        gradients=torch.full((ranks,), sum(padded)),
        state=over_group(model.state_bytes, states),
        work=over_group(lambda shape, rows: step_cost(_part(shape, shape, rows), Scope.ELEMENT), costs),
        passing=max(backward, owned),
        moves=moves,
    )


PLACEMENTS: Mapping[str, Callable[[str, Model, int, int], Plan]] = {
    "one": _whole,
    "ddp": _whole,
    "zero1": _owned,
    "zero2": _owned,
    "fsdp": _cut,
    "hybrid": _cut,
}
"""How each placement is planned: from its name, a model, ranks, and ranks in a group."""


def _part(own: torch.Size, shape: torch.Size, rows: int | None) -> torch.Size:
    """A slot of this own shape where so many slices of a parameter of this shape are held."""
    if rows is None or own[:1] != shape[:1]:
        return own
    return torch.Size((rows, *own[1:]))


def _chunk(shape: torch.Size, group: int) -> torch.Size:
    """What FSDP2 keeps of a parameter on every rank: the first rank has all of it, others may fill it up."""
    return _part(shape, shape, -(-shape[0] // group) if shape else None)


def _by_rows(size: Callable[[torch.Size, int | None], int], shape: torch.Size, group: int) -> Tensor:
    """A size on each rank of a group; what has no first dimension is whole everywhere."""
    if not shape:
        return torch.full((group,), size(shape, None))
    different, place = rows_held(shape[0], group).unique(return_inverse=True)
    return torch.tensor([size(shape, rows) for rows in different.tolist()])[place]


def _add_at(owners: Sequence[int], values: Iterable[int], ranks: int) -> Tensor:
    """What each rank has of values that have owners."""
    at, added = (torch.tensor([*x], dtype=torch.int64) for x in (owners, values))
    return torch.zeros(ranks, dtype=torch.int64).index_add_(0, at, added)


def _between(*moves: Move) -> tuple[Move, ...]:
    """Those that are made at all."""
    return tuple(move for move in moves if move.ranks > 1 and move.calls)
