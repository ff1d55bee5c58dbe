"""Whole matrices out of parts, at their owners, for rules that multiply matrices; and their parts again."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from steepest.contract import Scope
from steepest.placements.cost import assign, step_cost
from steepest.placements.traffic import Arriving, Mover

BATCH = 2**25
"""Elements that are under way at a time, over all ranks: the next batch travels while one is put together."""


@dataclass(frozen=True)
class Cut:
    """A matrix that is cut over the ranks of a group. rows: how many each rank holds.  whole: at its owner,
    where the rule reads and writes it; None elsewhere."""

    p: Tensor
    owner: int
    rows: tuple[int, ...]
    whole: Tensor | None

    @property
    def width(self) -> int:
        """Elements of a row."""
        return self.p.shape[1:].numel()


@dataclass
class Matrices:
    """The matrices of one group of ranks, owners balanced by the cost of their steps."""

    mover: Mover
    cuts: list[Cut] = field(default_factory=list)

    def bind(self, params: Sequence[Tensor], here: Sequence[Tensor]) -> None:
        """Choose owners. here: the rows that this rank holds of each."""
        owners = assign([step_cost(p.shape, Scope.MATRIX) for p in params], self.mover.world)
        self.cuts = []
        for p, part, owner in zip(params, here, owners, strict=True):
            chunk = -(-p.shape[0] // self.mover.world)
            rows = tuple(min(max(p.shape[0] - r * chunk, 0), chunk) for r in range(self.mover.world))
            own = owner == self.mover.rank
            self.cuts.append(Cut(p, owner, rows, part.new_empty(p.shape) if own else None))

    def owner(self, p: Tensor) -> int:
        return next(cut.owner for cut in self.cuts if cut.p is p)

    def whole(self, p: Tensor) -> Tensor | None:
        """A matrix at its owner."""
        return next(cut.whole for cut in self.cuts if cut.p is p)

    def gather(self, cuts: Sequence[Cut], parts: Sequence[Tensor], into: Sequence[Tensor | None]) -> None:
        """Parts to their owners, who put them together. into: whole tensors, at their owners."""
        before: tuple[list[int], Arriving] | None = None
        for batch in [*_batches(cuts), []]:
            now = (batch, self._send(cuts, parts, batch)) if batch else None
            if before is not None:
                self._put(cuts, into, *before)
            before = now

    def _send(self, cuts: Sequence[Cut], parts: Sequence[Tensor], batch: Sequence[int]) -> Arriving:
        world, rank = self.mover.world, self.mover.rank
        own: list[list[Tensor]] = [[] for _ in range(world)]
        counts = [0] * world
        for i in batch:
            own[cuts[i].owner].append(parts[i].reshape(-1))
            if cuts[i].owner == rank:
                counts = [n + cuts[i].rows[r] * cuts[i].width for r, n in enumerate(counts)]
        sent = [sum(x.numel() for x in xs) for xs in own]
        flat = torch.cat([x for xs in own for x in xs]) if any(own) else parts[0].new_empty(0)
        return self.mover.exchange(flat, sent, counts)

    def _put(
        self, cuts: Sequence[Cut], into: Sequence[Tensor | None], batch: Sequence[int], arriving: Arriving
    ) -> None:
        got, first = arriving.wait(), 0
        mine = [i for i in batch if cuts[i].owner == self.mover.rank]
        for r in range(self.mover.world):
            for i in mine:
                whole, rows = into[i], cuts[i].rows
                assert whole is not None
                size, start = rows[r] * cuts[i].width, sum(rows[:r])
                whole[start : start + rows[r]] = got[first : first + size].view(rows[r], *whole.shape[1:])
                first += size

    def scatter(self, cuts: Sequence[Cut], parts: Sequence[Tensor]) -> None:
        """Every rank's rows of the whole matrices, from their owners into `parts`."""
        world, rank = self.mover.world, self.mover.rank
        for batch in _batches(cuts):
            mine = [cuts[i] for i in batch if cuts[i].owner == rank]
            sent: list[Tensor] = []
            counts = []
            for r in range(world):
                rows = [(c, sum(c.rows[:r])) for c in mine]
                out = [c.whole[s : s + c.rows[r]].reshape(-1) for c, s in rows if c.whole is not None]
                counts.append(sum(x.numel() for x in out))
                sent += out
            theirs = [sum(parts[i].numel() for i in batch if cuts[i].owner == r) for r in range(world)]
            flat = torch.cat(sent) if sent else parts[0].new_empty(0)
            got, first = self.mover.exchange(flat, counts, theirs).wait(), 0
            for r in range(world):
                for i in batch:
                    if cuts[i].owner == r:
                        parts[i].copy_(got[first : first + parts[i].numel()].view_as(parts[i]))
                        first += parts[i].numel()


def batches(kinds: Sequence[tuple[str, tuple[int, ...]]]) -> list[list[int]]:
    """Places of matrices that travel together: of one type, and one shape after another. kinds: of each."""
    found: list[list[int]] = []
    filled = 0
    for i in sorted(range(len(kinds)), key=lambda i: kinds[i]):
        if not found or filled > BATCH or kinds[i][0] != kinds[found[-1][0]][0]:
            found.append([])
            filled = 0
        found[-1].append(i)
        filled += math.prod(kinds[i][1])
    return found


def _batches(cuts: Sequence[Cut]) -> list[list[int]]:
    return batches([(str(cut.p.dtype), tuple(cut.p.shape)) for cut in cuts])
