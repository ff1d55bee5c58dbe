"""Printing a pass: pieces of rows, blocks of a row, vectors of a block."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from steepest.kernels.graph import Domain, Type
from steepest.kernels.llvm import x86
from steepest.kernels.llvm.printer import Layout, Printer
from steepest.kernels.llvm.text import some, wide
from steepest.kernels.schedule import Pass, Schedule, Stage

MANY, LANES = 3, 8
"""From so many sums on, each is kept in vectors of so many lanes, or of a whole register: registers are few,
and work between two additions is plenty."""

DIVIDED = {"div", "sqrt", "root"}
"""What the divider computes: it alone bounds a stage that has several."""


class PassPrinter(Printer):
    def __init__(self, schedule: Schedule, layout: Layout, own: Pass) -> None:
        super().__init__(schedule, layout)
        self.own = own
        sums = [i for s in own.stages for i in s.sums]
        self.totals = list(own.totals)
        self.row_sums = [i for i in sums if self.values[i].domain is Domain.ROW]
        self.column_sums = [i for i in sums if self.values[i].domain is Domain.COLUMN]
        self.used = [*dict.fromkeys((*own.loads, *own.stores, *self._vectors()))]
        self.row = self.column = ""
        self.column_at: dict[int, str] = {}
        # A sum is kept four times: a vector and a single number in float32, and both in float64.
        count = {i: self.values[i].args[0] for i in (*self.totals, *self.row_sums) if i in sums}
        self.added = [*((i, x) for i, x in count.items()), *((n, x) for n, x in own.telemetry)]
        self.few = max(LANES, layout.x86)
        self.lanes = self.width if len(self.added) < MANY else self.few
        self.far = {k: self._pair("double", "far", self.lanes) for k, _ in self.added}
        self.near = {k: self._pair("float", "near", self.lanes) for k, _ in self.added}
        self.maxima = {i: self._pair("i32", "largest", self.few) for s in own.stages for i in s.maxima}
        self.kept = {
            i: self.memory(self.values[i].type.value, "kept", layout.block)
            for s in own.stages
            for i in s.keeps
        }

    def _pair(self, kind: str, hint: str, width: int) -> tuple[str, str]:
        return self.memory(wide(kind, width), hint), self.memory(kind, hint)

    def _vectors(self) -> list[str]:
        """Slots and scratch vectors of rows and columns that this pass reads."""
        small = [self.values[i] for i in self.own.small]
        slots = [v.attr for v in small if v.op == "input" and v.domain in (Domain.ROW, Domain.COLUMN)]
        kept = [
            f"kept.{i}"
            for i in self.own.small
            if self.values[i].domain in (Domain.ROW, Domain.COLUMN) and self.values[i].op != "input"
        ]
        return [*slots, *kept]

    # ------------------------------------------------------------ pieces and rows

    def text(self, name: str) -> str:
        with self.pieces() as work:
            self.open_tensor(work["tensor"])
            for i in self.own.small:
                if self.values[i].domain is Domain.TENSOR and self.values[i].op != "input":
                    self.env[i, 1] = self.let(f"load float, ptr {self.scalar_at(work['tensor'], i)}")
            self._clear(self.far, "double", [k for k, _ in self.added], self.lanes)
            end = self.let(f"add i64 {work['column']}, {work['columns']}", "end")
            sums = {i: self._column_sum(i, work) for i in self.column_sums}
            last_row = self.let(f"add i64 {work['row']}, {work['rows']}", "last")
            for _ in self._versions():
                with self.loop(work["row"], last_row, 1, "row") as self.row:
                    self._row(work, end, sums)
            self._finish(work)
        return self.function(name)

    def _versions(self) -> Iterator[None]:
        """Twice where numbers of this step choose between vectors: once without the choices, for all of them
        saying yes, which is usual (a decay is above one half), and once for whatever they say. A choice is a
        branch and two moves for every vector."""
        chosen = {
            self.values[i].args[0] for s in self.own.stages for i in s.values if self.values[i].op == "select"
        }
        hosts = sorted(c for c in chosen if self.values[c].domain is Domain.HOST and c in self.constants)
        if not hosts:
            yield
            return
        usual, other, done = map(self.new, ("usual", "other", "chosen"))
        every = "true"
        for c in hosts:
            every = self.let(f"and i1 {every}, {self.use(c, 1, Type.BOOL)}")
        self.line(f"br i1 {every}, label {usual}, label {other}")
        for label, self.chosen in ((usual, set(hosts)), (other, set())):
            self.label(label)
            with self.scope():
                yield
            self.line(f"br label {done}")
        self.label(done)

    def _column_sum(self, i: int, work: dict[str, str]) -> str:
        """The address of this piece's own sum over its rows, set to zero."""
        own = self.let(f"sub i64 {work['piece']}, {self.facts['first']}")
        own = self.let(f"mul i64 {own}, {self.facts['length']}")
        base = self.at(self.bases[f"part.{i}"], "float", own)
        bytes_ = self.let(f"mul i64 {self.facts['length']}, 4")
        self.declare("void @llvm.memset.p0.i64(ptr, i8, i64, i1)")
        self.line(f"call void @llvm.memset.p0.i64(ptr {base}, i8 0, i64 {bytes_}, i1 false)")
        return base

    def _row(self, work: dict[str, str], end: str, column_sums: dict[int, str]) -> None:
        self.rows = {name: self.row_of(name, self.row) for name in self.used}
        self.column_at = column_sums
        for i in self.own.small:
            v = self.values[i]
            if v.domain is Domain.ROW:
                self.env[i, 1] = self.load(v.attr if v.op == "input" else f"kept.{i}", "0", 1)
        self._clear(self.far, "double", self.row_sums, self.lanes)
        block, rest = self.layout.block, work["column"]
        if len(self.own.stages) > 1:  # between two stages, what lies ready for a rest would be in the way
            whole = self.let(f"and i64 {work['columns']}, {-block}")
            rest = self.let(f"add i64 {rest}, {whole}", "rest")
            with self.loop(work["column"], rest, block, "whole") as start:
                self._block(start)
        with self.loop(rest, end, block, "block") as start:
            stop = self.let(f"add i64 {start}, {block}")
            stop = self.let(f"call i64 @llvm.smin.i64(i64 {stop}, i64 {end})", "stop")
            self.declare("i64 @llvm.smin.i64(i64, i64)")
            self._block(start, stop)
        for i in self.row_sums:
            total = self._total(self.far[i])
            narrow = self.let(f"fptrunc double {total} to float")
            self.line(f"store float {narrow}, ptr {self.at(self.bases[f'sum.{i}'], 'float', self.row)}")

    # ------------------------------------------------------------ blocks and their elements

    def _block(self, start: str, stop: str | None = None) -> None:
        """stop: where it ends, if it may not be whole."""
        self._clear(self.near, "float", [k for k, _ in self.added], self.lanes)
        self._clear(self.maxima, "i32", list(self.maxima), self.few)
        vectors = self.layout.block if stop is None else self.let(f"sub i64 {stop}, {start}")
        middle = self.let(f"add i64 {start}, {self.let(f'and i64 {vectors}, {-self.width}')}", "middle")
        known: set[int] = set()
        for stage in self.own.stages:
            self._block_values(stage, start, stop is None)
            with self.loop(start, middle, self.width, "column") as self.column:
                self._elements(stage, start, self.width, known)
            if stop is not None:
                with self.loop(middle, stop, 1, "single") as self.column:
                    self._elements(stage, start, 1, known)
            known |= set(stage.keeps)
        for key, _ in self.added:
            for near, far, width in zip(self.near[key], self.far[key], (self.lanes, 1), strict=True):
                floats, doubles = wide("float", width), wide("double", width)
                x = self.let(f"fpext {floats} {self.let(f'load {floats}, ptr {near}')} to {doubles}")
                old = self.let(f"load {doubles}, ptr {far}")
                self.line(f"store {doubles} {self.let(f'fadd {doubles} {old}, {x}')}, ptr {far}")

    def _block_values(self, stage: Stage, start: str, whole: bool) -> None:
        for i in stage.block:
            v = self.values[i]
            if v.op == "input":
                self.env[i, 1] = self.load(v.attr, start, 1)
            elif v.op == "block_max":
                self.env[i, 1] = self._largest(*self.maxima[i], whole)
            else:
                self.compute(i, 1)
        for name, i in stage.stores:
            if self.values[i].domain is Domain.BLOCK:
                self.store(name, self.use(i, 1, Type.FLOAT), start, 1)

    def _largest(self, many: str, one: str, whole: bool) -> str:
        of = wide("i32", self.few)
        name = f"@llvm.vector.reduce.smax.v{self.few}i32"
        self.declare(f"i32 {name}({of})")
        x = self.let(f"call i32 {name}({of} {self.let(f'load {of}, ptr {many}')})", "largest")
        if whole:
            return x
        self.declare("i32 @llvm.smax.i32(i32, i32)")
        y = self.let(f"load i32, ptr {one}")
        return self.let(f"call i32 @llvm.smax.i32(i32 {x}, i32 {y})", "largest")

    def _elements(self, stage: Stage, start: str, width: int, known: set[int]) -> None:
        self.divides = sum(self.values[i].op in DIVIDED for i in stage.values if i not in known) > 1
        for i in stage.values:
            self._element(i, start, width, known)
        telemetry = [(n, x) for n, x in self.own.telemetry if x in stage.values]
        for key, x in (*((i, self.values[i].args[0]) for i in stage.sums), *telemetry):
            if key in self.column_sums:
                self._add_column(key, x, width)
            else:
                self._add(self.near[key], x, width)
        for i in stage.maxima:
            self._raise_largest(i, width)
        for i in stage.keeps:
            of = wide(self.values[i].type.value, width)
            to = self._kept_at(i, start)
            self.line(f"store {of} {self.use(i, width, self.values[i].type)}, ptr {to}, align 4")
        for name, i in stage.stores:
            if self.values[i].domain is Domain.ELEMENT:
                self._store_element(name, i, width)

    def _store_element(self, name: str, i: int, width: int) -> None:
        v, part = self.values[i], self.layout.names[name]
        is_byte = part.dtype.itemsize == 1 and part.per == "element"
        if not (is_byte and width == x86.BYTES and self.layout.x86 == x86.AVX2):
            self.store(name, self.use(i, width, v.type), self.column, width)
            return
        if v.op == "with_sign":
            x = x86.signed_bytes(self, *(self.use(a, width, Type.INT) for a in v.args))
        else:
            x = x86.to_bytes(self, self.use(i, width, Type.INT), part.dtype is torch.uint8)
        self.line(
            f"store {wide('i8', width)} {x}, ptr {self.at(self.rows[name], 'i8', self.column)}, align 1"
        )

    def _element(self, i: int, start: str, width: int, known: set[int]) -> None:
        v = self.values[i]
        if i in known:
            of = wide(v.type.value, width)
            self.env[i, width] = self.let(f"load {of}, ptr {self._kept_at(i, start)}, align 4")
        elif i in self.own.given:
            self.env[i, width] = self.load(self.own.given[i], self.column, width)
        elif v.op == "input":
            self.env[i, width] = self.load(v.attr, self.column, width)
        else:
            for a in v.args:
                self._column_value(a, width)
            self.compute(i, width)

    def _column_value(self, i: int, width: int) -> None:
        """A value of columns is loaded where an element needs it."""
        v = self.values[i]
        if v.domain is Domain.COLUMN and (i, width) not in self.env:
            self.env[i, width] = self.load(v.attr if v.op == "input" else f"kept.{i}", self.column, width)

    def _kept_at(self, i: int, start: str) -> str:
        return self.at(self.kept[i], self.values[i].type.value, self.let(f"sub i64 {self.column}, {start}"))

    def place(self) -> str:
        first = self.let(f"mul i64 {self.row}, {self.facts['length']}")
        first = self.let(f"add i64 {first}, {self.facts['start']}")
        return self.let(f"trunc i64 {self.let(f'add i64 {first}, {self.column}')} to i32")

    # ------------------------------------------------------------ sums

    def _clear(self, pairs: dict, kind: str, keys: Sequence, width: int) -> None:
        zero = "0" if kind == "i32" else "0.0"
        for key in keys:
            many, one = pairs[key]
            self.line(f"store {wide(kind, width)} zeroinitializer, ptr {many}")
            self.line(f"store {kind} {zero}, ptr {one}")

    def _add(self, pair: tuple[str, str], x: int, width: int) -> None:
        whole, to = self.use(x, width, Type.FLOAT), pair[width == 1]
        lanes = min(width, self.lanes)
        of = wide("float", lanes)
        total = self.let(f"load {of}, ptr {to}")
        for first in range(0, width, lanes):
            part = whole if lanes == width else some(self, whole, "float", width, first, lanes)
            total = self.let(f"fadd contract {of} {total}, {part}")
        self.line(f"store {of} {total}, ptr {to}")

    def _add_column(self, i: int, x: int, width: int) -> None:
        of, to = wide("float", width), self.at(self.column_at[i], "float", self.column)
        old = self.let(f"load {of}, ptr {to}, align 4")
        new = self.let(f"fadd contract {of} {old}, {self.use(x, width, Type.FLOAT)}")
        self.line(f"store {of} {new}, ptr {to}, align 4")

    def _raise_largest(self, i: int, width: int) -> None:
        lanes = min(width, self.few)
        of, to = wide("i32", lanes), self.maxima[i][width == 1]
        name = f"@llvm.smax.{'i32' if width == 1 else f'v{self.few}i32'}"
        self.declare(f"{of} {name}({of}, {of})")
        x = self.use(self.values[i].args[0], width, Type.INT)
        largest = self.let(f"load {of}, ptr {to}")
        for first in range(0, width, lanes):
            part = x if lanes == width else some(self, x, "i32", width, first, self.few)
            largest = self.let(f"call {of} {name}({of} {largest}, {of} {part})")
        self.line(f"store {of} {largest}, ptr {to}")

    def _total(self, pair: tuple[str, str]) -> str:
        of = wide("double", self.lanes)
        name = f"@llvm.vector.reduce.fadd.v{self.lanes}f64"
        self.declare(f"double {name}(double, {of})")
        many = self.let(f"load {of}, ptr {pair[0]}")
        one = self.let(f"load double, ptr {pair[1]}")
        return self.let(f"call reassoc double {name}(double {one}, {of} {many})")

    def _finish(self, work: dict[str, str]) -> None:
        """Write the sums of this piece, and room for those that a fold leaves."""
        keys = [*self.totals, *(n for n, _ in self.own.telemetry)]
        if keys:
            own = self.let(f"mul i64 {work['piece']}, {len(keys)}")
            own = self.at("%args.partials", "double", own)
            for number, key in enumerate(keys):
                to = self.at(own, "double", str(number))
                total = self._total(self.far[key]) if key in self.far else "0.0"
                self.line(f"store double {total}, ptr {to}")
