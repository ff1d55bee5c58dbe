"""Whole tensors that each have an owner: ZeRO-1 and ZeRO-2."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Hashable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from steepest.contract import Scope, SteepestError
from steepest.placements.cost import assign, step_cost
from steepest.placements.placement import Measure, Placement
from steepest.placements.traffic import Mover, Traffic

PIECE, FLYING = 2**24, 4
"""Bytes that an owner hands over in one call, and calls that are under way at a time."""


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
        flying: deque[tuple[dist.Work, Tensor, Sequence[Tensor]]] = deque()
        for owner, load in self.loads(params):
            own = owner == self.mover.rank
            parts = [p.detach().view(-1) for p in load]
            flat = parts[0] if len(parts) == 1 else torch.cat(parts) if own else _room(parts)
            flying.append((self.mover.spread(flat, owner), flat, () if own else parts))
            if len(flying) == FLYING:
                _land(*flying.popleft())
        while flying:
            _land(*flying.popleft())

    def loads(self, params: Sequence[Tensor]) -> list[tuple[int, list[Tensor]]]:
        """What goes out in one call each, with its owner: parameters of one type up to `PIECE` bytes, or a
        larger one alone, which then is not copied. The largest first, whatever their order."""
        keys = [(self._owner[p], p.dtype) for p in params]
        loads = packed([p.nbytes for p in params], keys)
        return [(keys[load[0]][0], [params[i] for i in load]) for load in loads]

    def traffic(self) -> Traffic:
        return self.mover.traffic()


def packed(sizes: Sequence[int], keys: Sequence[Hashable]) -> list[list[int]]:
    """Places of parameters of these bytes that go out together: of one key, up to `PIECE`, or one alone. What
    has no bytes stays."""
    found: list[list[int]] = []
    filling: dict[Hashable, tuple[list[int], int]] = {}
    for i in sorted((i for i, size in enumerate(sizes) if size), key=lambda i: -sizes[i]):
        load, filled = filling.get(keys[i], ([], PIECE))
        if filled + sizes[i] > PIECE:
            load, filled = [], 0
            found.append(load)
        load.append(i)
        filling[keys[i]] = load, filled + sizes[i]
    return found


def _room(parts: Sequence[Tensor]) -> Tensor:
    return parts[0].new_empty(sum(part.numel() for part in parts))


def _land(work: dist.Work, flat: Tensor, parts: Sequence[Tensor]) -> None:
    """Wait for a load, and give each parameter what is its own. parts: none at the owner."""
    work.wait()
    if len(parts) > 1:
        for part, got in zip(parts, flat.split([part.numel() for part in parts]), strict=True):
            part.copy_(got)
