"""Whole tensors that each have an owner: ZeRO-1 and ZeRO-2."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from steepest.contract import Scope, SteepestError
from steepest.placements.cost import assign, step_cost
from steepest.placements.placement import Measure, Placement
from steepest.placements.traffic import Mover, Traffic

PIECE = 2**24
"""Bytes that an owner hands over at a time."""


class Owned(Placement):
    """Every rank holds all parameters; state, and the step, belong to one owner each.

    Whole tensors are owned, so rules of every scope run as they are and say nothing to anybody; owners are
    chosen so that elements are balanced. After a step everybody is given what its owner has made of a
    parameter. Gradients have to be reduced before: to all (ZeRO-1, as DistributedDataParallel does), or to
    their owners (ZeRO-2, `ToOwners`).

    group: of the ranks that hold the same model; None for all.
    """

    name = "owned"
    moves = True

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        if not dist.is_initialized():
            raise SteepestError(
                "there is no process group to own parameters in; start with torchrun, and call "
                "torch.distributed.init_process_group() first."
            )
        self.mover = Mover(group)
        self._owner: dict[Tensor, int] = {}
        self._places: list[Tensor] = []

    def bind(self, params: Sequence[Tensor], scopes: Sequence[Scope]) -> None:
        if not all(p.is_contiguous() for p in params):
            raise SteepestError("a parameter is not contiguous in memory; call .contiguous() on it first.")
        self._places = list(params)
        named = zip(params, scopes, strict=True)
        costs = {p: step_cost(p.shape, scope) for p, scope in named if p not in self._owner}
        self._owner |= zip(costs, assign([*costs.values()], self.mover.world), strict=True)

    def owns(self, place: int) -> bool:
        return self.owner(self._places[place]) == self.mover.rank

    def owner(self, p: Tensor) -> int:
        """The rank that owns a parameter."""
        return self._owner[p]

    def survey(
        self, measure: Measure, params: Sequence[Tensor], grads: Sequence[Tensor], flag: bool
    ) -> tuple[float, bool, int]:
        own = [g for p, g in zip(params, grads, strict=True) if self._owner[p] == self.mover.rank]
        found = (measure(own) ** 2 if own else 0.0, float(flag), len(own))
        vector = torch.tensor(found, dtype=torch.float64)
        self.mover.add_up(vector)
        square, flags, count = vector.tolist()
        return math.sqrt(square), bool(flags), int(count)

    def add_rows(self, rows: Tensor, params: Sequence[Tensor]) -> None:
        self.mover.add_up(rows)

    def tell(self, mine: Any) -> list[Any]:
        return self.mover.tell(mine)

    def gather(self, state: dict[int, Any]) -> dict[int, Any]:
        told = self.mover.tell(state)
        return dict(sorted((place, own) for part in told for place, own in part.items()))

    def publish(self, params: Sequence[Tensor]) -> None:
        for dtype in dict.fromkeys(p.dtype for p in params):
            own: list[list[Tensor]] = [[] for _ in range(self.mover.world)]
            for p in params:
                if p.dtype == dtype:
                    own[self._owner[p]].append(p)
            self._publish(own, dtype)

    def _publish(self, own: Sequence[Sequence[Tensor]], dtype: torch.dtype) -> None:
        """own: each rank's parameters. All hand over as much as the one with the most, piece by piece."""
        mine, device = own[self.mover.rank], self.mover.device
        longest = max(sum(p.numel() for p in ps) for ps in own)
        if not longest:
            return
        size = min(longest, PIECE // dtype.itemsize)
        for start in range(0, longest, size):
            piece = torch.zeros(size, dtype=dtype, device=device)
            for flat, first in _overlaps(mine, start, size):
                piece[first : first + flat.numel()] = flat
            for rank, got in enumerate(self.mover.collect(piece)):
                if rank != self.mover.rank:
                    for flat, first in _overlaps(own[rank], start, size):
                        flat.copy_(got[first : first + flat.numel()])

    def traffic(self) -> Traffic:
        return self.mover.traffic()


def _overlaps(params: Sequence[Tensor], start: int, size: int) -> list[tuple[Tensor, int]]:
    """Of parameters laid end to end: what lies in a piece, as flat views, and where in the piece each is."""
    found = []
    ends = accumulate(p.numel() for p in params)
    for p, end in zip(params, ends, strict=True):
        first = end - p.numel()
        a, b = max(first, start), min(end, start + size)
        if a < b:
            found.append((p.detach().view(-1)[a - first : b - first], a - start))
    return found
