"""The tables that a kernel reads: where tensors lie, how they are cut into pieces, room for sums."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from steepest.codecs import grid
from steepest.contract import Shard
from steepest.engines.parts import Turns
from steepest.kernels import Domain, Fold, Kernel, Pass, run_on_all_cores, team, threads_for
from steepest.kernels.llvm import FACTS, QUEUE, WORK

PIECES = 64
"""How many pieces there are at least, where the model is large enough: they are shared evenly."""

SMALLEST, LARGEST = 2**14, 2**17
"""Elements in a piece: enough that drawing one costs nothing, few enough to go around."""

SHARE = 2**15
"""Elements that are worth a thread."""

ROWS = 128
"""Rows in a piece whose columns are summed: the sums of a piece are 1/128 of its elements."""

CACHE = 2**24
"""Bytes that stay in the last cache from one pass to the next."""

Ints = NDArray[np.int64]


class Call(NamedTuple):
    """A function, the address of its arguments, its pieces (of a fold: tensors)."""

    function: int
    arguments: int
    first: int
    last: int


class Tables:
    """For one kernel and tensors of these shapes, in so many groups. shards: what parts they are.

    pointers: [tensors, names], to be filled at each step.  facts: [tensors, FACTS], of which the keys of the
    noise are to be filled.  constants: [groups, constants], to be filled.
    """

    def __init__(
        self,
        kernel: Kernel,
        shapes: Sequence[torch.Size],
        groups: Sequence[int],
        shards: Sequence[Shard],
    ) -> None:
        self.kernel, self.columns = kernel, {n: i for i, n in enumerate(kernel.layout.names)}
        count, total = len(shapes), sum(shape.numel() for shape in shapes)
        self._piece = min(max(total // PIECES, SMALLEST), LARGEST) // 1024 * 1024
        self.facts: Ints = np.zeros((count, len(FACTS)), np.int64)
        pieces: list[tuple[int, ...]] = []
        for t, shape in enumerate(shapes):
            rows, length = self._rectangle(shape)
            own = [(t, *piece) for piece in self._pieces(rows, length)]
            whole = shards[t].shape
            facts = {"length": length, "rows": rows, "group": groups[t], "start": shards[t].start}
            facts |= {"all_rows": whole[0] if kernel.by_rows else rows, "numel": whole.numel()}
            facts |= {"first": len(pieces), "last": len(pieces) + len(own)}
            self.facts[t] = [facts.get(name, 0) for name in FACTS]
            pieces += own
        self.pieces = np.array(pieces, np.int64).reshape(-1, len(WORK))
        self.firsts = self.facts[:, FACTS.index("first")]
        self.pointers: Ints = np.zeros((count, len(self.columns)), np.int64)
        self.constants = np.zeros((max(groups, default=0) + 1, len(kernel.schedule.host)), np.float32)
        self._scalars = np.zeros((count, len(kernel.schedule.scalars)), np.float32)
        self._queues = np.zeros((max(os.cpu_count() or 1, torch.get_num_threads()), QUEUE), np.int64)
        self._threads = np.zeros(2, np.int64)
        self._shares = max(1, -(-total // SHARE))
        self._give_scratch()
        self._prepare()

    def _rectangle(self, shape: torch.Size) -> tuple[int, int]:
        """How a tensor is seen: as its matrix, on the grid of blocks, or flat."""
        if self.kernel.by_rows:
            return shape[0], shape[1]
        return grid(shape) if self.kernel.layout.gridded else (1, shape.numel())

    def _pieces(self, rows: int, length: int) -> list[tuple[int, int, int, int]]:
        """(first row, rows, first column, columns) of each piece."""
        size = self._piece
        if rows and length >= 2 * size and not self.kernel.by_rows:
            return [(r, 1, c, min(size, length - c)) for r in range(rows) for c in range(0, length, size)]
        many = max(1, size // max(length, 1))
        if any(name.startswith("part.") for name in self.columns):
            many = max(many, ROWS)
        # One piece at least, with no rows in it: its sums are nothing, but they are there.
        return [(r, min(many, rows - r), 0, length) for r in range(0, max(rows, 1), many)]

    def _give_scratch(self) -> None:
        """Memory of the vectors that live between passes, one after another in one array."""
        names = self.kernel.schedule.vectors
        sizes = np.zeros((len(self.facts), len(names)), np.int64)
        length, rows, *_, first, last = self.facts.T
        for i, name in enumerate(names):
            per = self.kernel.layout.names[name].per
            sizes[:, i] = rows if per == "row" else length
            if name.startswith("part."):
                sizes[:, i] *= last - first
        sizes = -(-sizes // 16) * 16  # every vector begins on a line of the cache
        offsets = np.concatenate([[0], np.cumsum(sizes.ravel())])
        self._scratch = np.zeros(int(offsets[-1]) + 16, np.float32)
        for i, name in enumerate(names):
            own = offsets[:-1].reshape(sizes.shape)[:, i]
            self.pointers[:, self.columns[name]] = self._scratch.ctypes.data + 4 * own

    def _prepare(self) -> None:
        """The arguments of every function; the arrays they point to stay where they are."""
        tensors = np.zeros((len(self.facts), len(WORK)), np.int64)
        tensors[:, 0] = np.arange(len(self.facts))
        self._held: list[Any] = [tensors]
        self._calls: list[list[Call]] = [[] for _ in self._chunks()]
        self._sums: list[NDArray[np.float64]] = []
        self._shared: list[list[NDArray[Any]]] = []
        schedule = self.kernel.schedule
        totals = len(schedule.opening)
        sums = np.zeros((len(self.pieces), totals))
        work = zip(self.kernel.functions, schedule.work, self.kernel.printed[2], strict=True)
        for function, kind, width in work:
            own = tensors if isinstance(kind, Fold) else self.pieces
            if not isinstance(kind, Fold):
                sums, totals = np.zeros((len(own), width)), len(kind.totals)
                self._sums.append(sums)
            self._shared.append(self._sums_of(kind, sums[:, :totals]) if schedule.cut else [])
            for calls, (first, last) in zip(self._calls, self._chunks(), strict=True):
                if not isinstance(kind, Fold):
                    first, last = self.firsts[first], self.facts[last - 1, FACTS.index("last")]
                arrays = (
                    *(self.pointers, self.facts, own, self.constants, self._scalars, sums),
                    *(self._queues, self._threads),
                )
                addresses = [*(a.ctypes.data for a in arrays), team().number]
                arguments = (ctypes.c_void_p * len(addresses))(*addresses)
                self._held += [arguments, *arrays]
                calls.append(Call(function, ctypes.addressof(arguments), int(first), int(last)))

    def _sums_of(self, kind: Fold | Pass, totals: NDArray[np.float64]) -> list[NDArray[Any]]:
        """What others have to complete before this work: of each sum, the shares of the pieces of a tensor,
        one a row. totals: the sums over tensors in the table that it reads."""
        asked = kind.sums if isinstance(kind, Fold) else ()
        domains = {i: self.kernel.schedule.code.values[i].domain for i in asked}
        ranges = list(zip(self.firsts, self.facts[:, FACTS.index("last")], strict=True))
        found: list[NDArray[Any]] = []
        if Domain.TENSOR in domains.values():
            found += [totals[first:last] for first, last in ranges]
        for i in (i for i, domain in domains.items() if domain is Domain.COLUMN):
            starts = (self.pointers[:, self.columns[f"part.{i}"]] - self._scratch.ctypes.data) // 4
            for start, length, (first, last) in zip(starts, self.facts[:, 0], ranges, strict=True):
                own = self._scratch[start : start + (last - first) * length]
                found.append(own.reshape(last - first, length))
        return found

    def _chunks(self) -> list[tuple[int, int]]:
        """(first, last) of tensors that go through all passes before the next do: what a pass has read is
        then still in the cache for the one after it."""
        if len(self.kernel.schedule.passes) < 2 or self.kernel.schedule.cut:
            return [(0, len(self.facts))]
        room, starts = CACHE // self.kernel.touched, [0]
        filled = 0
        for t, size in enumerate(self.facts[:, FACTS.index("numel")].tolist()):
            if filled + size > room and t > starts[-1]:
                starts.append(t)
                filled = 0
            filled += size
        return list(zip(starts, [*starts[1:], len(self.facts)], strict=True))

    def point(self, name: str, tensors: Sequence[Tensor]) -> None:
        """Say where the tensors of this name lie."""
        self.pointers[:, self.columns[name]] = list(map(Tensor.data_ptr, tensors))

    def run(self) -> None:
        """All passes and folds."""
        for calls in self._calls:
            for call in calls:
                self._launch(call)

    def turns(self) -> Turns:
        """The same for a kernel of parts: hands out their sums, as one of the coroutines of a step."""
        for call, shared in zip(self._calls[0], self._shared, strict=True):
            if shared:
                vector = np.concatenate([x.sum(0, dtype=np.float64) for x in shared])
                yield torch.from_numpy(vector)
                ends = np.cumsum([x.shape[1] for x in shared])
                for x, whole in zip(shared, np.split(vector, ends[:-1]), strict=True):
                    x[0], x[1:] = whole, 0.0
            self._launch(call)

    def _launch(self, call: Call) -> None:
        function, arguments, first, last = call
        threads = min(threads_for(min(last - first, self._shares)), len(self._queues))
        self._queues[:threads, :2] = _queues(first, last, threads)
        self._threads[:] = threads, 0
        run_on_all_cores(function, arguments, threads)

    def totals(self) -> NDArray[np.float64]:
        """The reported sums of each tensor, [tensors, sums]: the last columns that passes wrote."""
        found: dict[str, NDArray[np.float64]] = {}
        for own, sums in zip(self.kernel.schedule.passes, self._sums, strict=True):
            if own.telemetry:
                rows = np.add.reduceat(sums[:, -len(own.telemetry) :], self.firsts, axis=0)
                found |= {name: rows[:, i] for i, (name, _) in enumerate(own.telemetry)}
        return np.stack([found[name] for name in self.kernel.schedule.code.sums], 1)


@cache
def _queues(first: int, last: int, threads: int) -> Ints:
    """Of each thread, its first piece and the one after its last."""
    cuts = np.linspace(first, last, threads + 1).astype(np.int64)
    return np.stack([cuts[:-1], cuts[1:]], 1)
