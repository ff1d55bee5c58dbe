"""Printing a fold: one tensor a piece; sums of its pieces, then loops over rows and over columns."""

from __future__ import annotations

from steepest.kernels.graph import Domain, Type
from steepest.kernels.llvm.printer import Layout, Printer
from steepest.kernels.llvm.text import wide
from steepest.kernels.schedule import Fold, Loop, Schedule


class FoldPrinter(Printer):
    """totals: the sums in the table of partials, in order; the pass before has written them, or made room.
    width: the columns of the table."""

    def __init__(self, schedule: Schedule, layout: Layout, own: Fold, totals: list[int], width: int) -> None:
        super().__init__(schedule, layout)
        self.own, self.totals, self.partials = own, totals, width
        self.small = {
            i: self.memory("double", "sum") for _, loops in own.stages for x in loops.values() for i in x.sums
        }

    def text(self, name: str) -> str:
        with self.pieces() as work:
            tensor = work["tensor"]
            self.open_tensor(tensor)
            for i in self.own.given:
                if self.values[i].domain is Domain.TENSOR:
                    self.env[i, 1] = self.let(f"load float, ptr {self.scalar_at(tensor, i)}")
            for i in self.own.sums:
                if self.values[i].domain is Domain.TENSOR:
                    self.env[i, 1] = self._add_partials(i)
            for scalars, loops in self.own.stages:
                for i in scalars:
                    self.compute(i, 1)
                for domain, loop in loops.items():
                    self._loop(domain, loop)
            for i in self.own.keeps:
                to = self.scalar_at(tensor, i)
                self.line(f"store float {self.use(i, 1, Type.FLOAT)}, ptr {to}")
        return self.function(name)

    def _add_partials(self, i: int) -> str:
        total = self.memory("double", "total")
        self.line(f"store double 0.0, ptr {total}")
        with self.loop(self.facts["first"], self.facts["last"], 1, "part") as piece:
            at = self.let(f"mul i64 {piece}, {self.partials}")
            at = self.let(f"add i64 {at}, {self.totals.index(i)}")
            x = self.let(f"load double, ptr {self.at('%args.partials', 'double', at)}")
            old = self.let(f"load double, ptr {total}")
            self.line(f"store double {self.let(f'fadd double {old}, {x}')}, ptr {total}")
        return self.let(f"fptrunc double {self.let(f'load double, ptr {total}')} to float")

    def _loop(self, domain: Domain, loop: Loop) -> None:
        length = self.facts["rows" if domain is Domain.ROW else "length"]
        whole = self.let(f"and i64 {length}, {-self.width}")
        names = {n for n, _ in loop.stores} | {self._name(i) for i in loop.values}
        self.rows = {name: self.bases[name] for name in names if name}
        for i in loop.sums:
            self.line(f"store double 0.0, ptr {self.small[i]}")
        for start, end, width in (("0", whole, self.width), (whole, length, 1)):
            with self.loop(start, end, width, "vector") as index:
                for i in loop.values:
                    self._value(i, domain, index, width)
                for i in loop.sums:
                    self._add(i, width)
                for name, i in loop.stores:
                    of, to = wide("float", width), self.at(self.rows[name], "float", index)
                    self.line(f"store {of} {self.use(i, width, Type.FLOAT)}, ptr {to}, align 4")
        for i in loop.sums:
            total = self.let(f"load double, ptr {self.small[i]}")
            if i in self.own.left:
                self._leave(i, total)
            else:
                self.env[i, 1] = self.let(f"fptrunc double {total} to float")

    def _leave(self, i: int, total: str) -> None:
        """Put a sum where those of the tensor's first piece stand."""
        at = self.let(f"mul i64 {self.facts['first']}, {self.partials}")
        at = self.let(f"add i64 {at}, {self.totals.index(i)}")
        self.line(f"store double {total}, ptr {self.at('%args.partials', 'double', at)}")

    def _name(self, i: int) -> str:
        """Where a value of rows or columns lies in memory, if it does."""
        v = self.values[i]
        if v.op == "input" and v.domain in (Domain.ROW, Domain.COLUMN):
            return str(v.attr)
        if i in self.own.given:
            return self.own.given[i]
        if i in self.own.sums and v.domain in (Domain.ROW, Domain.COLUMN):
            return f"sum.{i}" if v.domain is Domain.ROW else f"part.{i}"
        return ""

    def _value(self, i: int, domain: Domain, index: str, width: int) -> None:
        v = self.values[i]
        if v.domain is not domain:
            return
        if v.op == "sum" and domain is Domain.COLUMN and i in self.own.sums:
            self.env[i, width] = self._add_columns(i, index, width)
        elif name := self._name(i):
            at = self.at(self.rows[name], "float", index)
            self.env[i, width] = self.let(f"load {wide('float', width)}, ptr {at}, align 4", "v")
        else:
            self.compute(i, width)

    def _add_columns(self, i: int, index: str, width: int) -> str:
        """The sum of a column over the pieces of its tensor."""
        of = wide("float", width)
        total = self.memory(of, "column")
        self.line(f"store {of} {'0.0' if width == 1 else 'zeroinitializer'}, ptr {total}")
        pieces = self.let(f"sub i64 {self.facts['last']}, {self.facts['first']}")
        with self.loop("0", pieces, 1, "part") as piece:
            at = self.let(f"mul i64 {piece}, {self.facts['length']}")
            at = self.at(self.rows[f"part.{i}"], "float", self.let(f"add i64 {at}, {index}"))
            x = self.let(f"load {of}, ptr {at}, align 4")
            old = self.let(f"load {of}, ptr {total}")
            self.line(f"store {of} {self.let(f'fadd {of} {old}, {x}')}, ptr {total}")
        return self.let(f"load {of}, ptr {total}")

    def _add(self, i: int, width: int) -> None:
        x = self.use(self.values[i].args[0], width, Type.FLOAT)
        x = self.let(f"fpext {wide('float', width)} {x} to {wide('double', width)}")
        if width > 1:
            name = f"@llvm.vector.reduce.fadd.v{width}f64"
            self.declare(f"double {name}(double, {wide('double', width)})")
            x = self.let(f"call reassoc double {name}(double -0.0, {wide('double', width)} {x})")
        old = self.let(f"load double, ptr {self.small[i]}")
        self.line(f"store double {self.let(f'fadd double {old}, {x}')}, ptr {self.small[i]}")
