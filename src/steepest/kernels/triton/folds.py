"""Printing a fold: one tensor a program; sums of its pieces, then loops over rows and over columns."""

from __future__ import annotations

from steepest.kernels.graph import Domain, Type
from steepest.kernels.llvm import Layout
from steepest.kernels.schedule import Fold, Loop, Schedule
from steepest.kernels.triton.lines import computed, instruction
from steepest.kernels.triton.text import FACTS, Text, address

ARGUMENTS = (
    "pointers, facts, constants, scalars, partials, control, ALIGNED: tl.constexpr, TILE: tl.constexpr"
)
GATHER = "pointers, facts, work, control, ALIGNED: tl.constexpr, TILE: tl.constexpr"
VECTORS = (Domain.ROW, Domain.COLUMN)


class FoldText(Text):
    """totals: the sums that the pass before has written, in order.  width: the columns of its table."""

    def __init__(self, schedule: Schedule, layout: Layout, own: Fold, totals: list[int], width: int) -> None:
        super().__init__(schedule, layout)
        self.own, self.totals, self.width = own, totals, width
        self.vector_sums = [i for i in own.sums if self.values[i].domain in VECTORS]

    def text(self, name: str) -> str:
        with self.block("if tl.load(control) == 0.0:"):
            self.line("return")
        self.line("tensor = tl.program_id(0).to(tl.int64)")
        self.open_tensor(self._needed())
        for used in self._used():
            self.open_memory(used)
        for i in self.own.given:
            if self.values[i].domain is Domain.TENSOR:
                self.line(f"{self.name(i)} = tl.load({self.scalar(i)})")
        for i in self.own.sums:
            if self.values[i].domain is Domain.TENSOR:
                pieces = f"{self.fact('first')}.to(tl.int32), {self.fact('last')}.to(tl.int32)"
                column = self.totals.index(i)
                total = f"device.total(partials, {pieces}, {self.width}, {column})"
                self.line(f"{self.name(i)} = {total}.to(tl.float32)")
        for scalars, loops in self.own.stages:
            for i in scalars:
                self._compute(i)
            for domain, loop in loops.items():
                self._loop(domain, loop)
        for i in self.own.keeps:
            self.line(f"tl.store({self.scalar(i)}, {self.use(i, Type.FLOAT)})")
        return self.function(name, ARGUMENTS)

    def gather(self, name: str) -> str:
        """The function that adds up, vector by vector, what the pieces of a tensor have left."""
        with self.block("if tl.load(control) == 0.0:"):
            self.line("return")
        self.line("own = work + tl.program_id(0).to(tl.int64) * 2")
        self.line("tensor, start = tl.load(own), tl.load(own + 1)")
        self.line(f"facts += tensor * {len(FACTS)}")
        for i in self.vector_sums:
            stored = self._stored(i)
            self.open_memory(stored)
            rows = self.values[i].domain is Domain.ROW
            count, parts = ("rows", "row_parts") if rows else ("length", "column_parts")
            sizes = f"{self.fact(count)}, {self.fact(parts)}"
            self.line(f"device.add_parts({address(stored)}, {sizes}, start, TILE)")
        return self.function(name, GATHER)

    def _needed(self) -> list[int]:
        cone = [i for scalars, _ in self.own.stages for i in scalars]
        cone += [i for _, loops in self.own.stages for loop in loops.values() for i in loop.values]
        return sorted({*cone, *(a for i in cone for a in self.values[i].args)})

    def _used(self) -> list[str]:
        loops = [loop for _, loops in self.own.stages for loop in loops.values()]
        names = [n for loop in loops for n, _ in loop.stores]
        names += [self._stored(i) for loop in loops for i in loop.values]
        return [*dict.fromkeys(filter(None, names))]

    def _stored(self, i: int) -> str:
        """Where a value of rows or columns lies in memory, if it does."""
        v = self.values[i]
        if v.domain not in VECTORS:
            return ""
        if v.op == "input":
            return str(v.attr)
        if i in self.own.sums:
            return f"sum.{i}" if v.domain is Domain.ROW else f"part.{i}"
        return self.own.given.get(i, "")

    def _compute(self, i: int) -> None:
        if i not in self.known and computed(self.values[i]):
            self.line(f"{self.name(i)} = {instruction(self, self.values[i])}")
            self.known.add(i)

    def _loop(self, domain: Domain, loop: Loop) -> None:
        for i in loop.sums:
            self.line(f"sum_{i} = tl.zeros((TILE,), tl.float64)")
        count = "rows" if domain is Domain.ROW else "length"
        with self.block(f"for start in range(0, {count}, TILE):"):
            self.line("at = start + tl.arange(0, TILE)")
            self.line(f"inside = at < {count}")
            for i in loop.values:
                if self.values[i].domain is not domain:
                    continue
                if stored := self._stored(i):
                    where = f"{address(stored)} + at, mask=inside, other=0.0"
                    self.line(f"{self.name(i)} = tl.load({where})")
                else:
                    self._compute(i)
            for i in loop.sums:
                x = self.use(self.values[i].args[0], Type.FLOAT)
                self.line(f"sum_{i} += tl.where(inside, {x}, 0.0).to(tl.float64)")
            for name, i in loop.stores:
                x = self.use(i, Type.FLOAT)
                self.line(f"tl.store({address(name)} + at, {x}, mask=inside)")
        for i in loop.sums:
            self.line(f"{self.name(i)} = tl.sum(sum_{i}).to(tl.float32)")
