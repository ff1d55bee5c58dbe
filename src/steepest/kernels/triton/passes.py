"""Printing a pass: a piece is a run of tiles of BLOCKS rows of the grid by 128 elements."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from steepest.kernels.graph import Domain, Type
from steepest.kernels.llvm import Layout
from steepest.kernels.schedule import Pass, Schedule, Stage
from steepest.kernels.triton.lines import instruction
from steepest.kernels.triton.text import ELEMENTS, WORK, Text, address

ARGUMENTS = (
    "pointers, facts, work, constants, scalars, partials, control, steps, "
    "ALIGNED: tl.constexpr, BLOCKS: tl.constexpr"
)


class PassText(Text):
    """totals: the sums that a piece writes, in order, telemetry after them."""

    def __init__(self, schedule: Schedule, layout: Layout, own: Pass) -> None:
        super().__init__(schedule, layout)
        self.own = own
        self.by_rows = any(v.domain in (Domain.ROW, Domain.COLUMN) for v in self.values)
        sums = [i for s in own.stages for i in s.sums]
        self.totals = [i for i in sums if self.values[i].domain is Domain.TENSOR]
        self.row_sums = [i for i in sums if self.values[i].domain is Domain.ROW]
        self.column_sums = [i for i in sums if self.values[i].domain is Domain.COLUMN]
        self.width = len(self.totals) + len(own.telemetry)
        self.used = [*dict.fromkeys((*own.loads, *own.stores, *map(self._vector, self._small_vectors())))]
        self.used += [f"sum.{i}" for i in self.row_sums] + [f"part.{i}" for i in self.column_sums]

    def _small_vectors(self) -> list[int]:
        """Slots and scratch vectors of rows and columns that this pass reads."""
        return [i for i in self.own.small if self.values[i].domain in (Domain.ROW, Domain.COLUMN)]

    def _vector(self, i: int) -> str:
        return str(self.values[i].attr) if self.values[i].op == "input" else f"kept.{i}"

    def _blocked(self, name: str) -> bool:
        return self.layout.names[name].per == "block"

    # ------------------------------------------------------------ the piece

    def text(self, name: str) -> str:
        with self.block("if tl.load(control) == 0.0:"):
            self.line("return")
        self.line("piece = tl.program_id(0)")
        self.line(f"work += piece * {len(WORK)}")
        for i, field in enumerate(WORK):  # blocks, rows and columns are counted in 32 bits, elements are not
            narrow = "" if field == "tensor" else ".to(tl.int32)"
            self.line(f"{field} = tl.load(work + {i}){narrow}")
        self.open_tensor(self.own.small)
        for i in self.own.small:
            if self.values[i].domain is Domain.TENSOR and self.values[i].op != "input":
                self.line(f"{self.name(i)} = tl.load({self.scalar(i)})")
                self.known.add(i)
        for used in self.used:
            self.open_memory(used)
        if any(v.op == "random" for v in self.values):
            seed, ordinal = self.fact("seed"), self.fact("ordinal")
            self.line(f"key0, key1 = device.tensor_key({seed}, tl.load(steps + group), {ordinal})")
            self.line(f"before = {self.fact('start')}")
        self.line("lane = tl.arange(0, 128)[None, :]")
        if self.layout.gridded:
            self.line("per_row = ((length + 127) // 128).to(tl.int32)")
        if any(self.layout.names[n].per == "pair" for n in self.used):
            self.line("half = tl.arange(0, 64)[None, :]")
            self.line("pitch = (length + 1) // 2")
            with self.block("if ALIGNED:"):
                self.line("pitch = tl.multiple_of(pitch, 8)")
        self._open_rows()
        for key in self._keys():
            self.line(f"sum_{key} = tl.zeros((BLOCKS, 128), tl.float32)")
        step = "128" if self.by_rows else "BLOCKS"
        with self.block(f"for start in range(first, last, {step}):"):
            self._tile()
        self._finish()
        return self.function(name, ARGUMENTS)

    def _open_rows(self) -> None:
        if not self.by_rows:
            return
        self.line("first = tl.multiple_of(first, 128)")
        self.line("rows_here = row + tl.arange(0, BLOCKS)[:, None]")
        self.line("here = rows_here < rows")
        for i in self.own.small:
            if self.values[i].domain is Domain.ROW:
                at = f"{address(self._vector(i))} + rows_here"
                self.line(f"{self.name(i)} = tl.load({at}, mask=here, other=0.0)")
                self.known.add(i)

    def _keys(self) -> list[object]:
        return [*self.totals, *self.row_sums, *(n for n, _ in self.own.telemetry)]

    # ------------------------------------------------------------ the tile

    def _tile(self) -> None:
        if self.by_rows:
            self.line("column = start")
            self.line("offset = rows_here.to(tl.int64) * length + start")
            if self.layout.gridded:
                self.line("block = rows_here * per_row + start // 128")
            self.line("inside = here & (lane < length - start)")
        else:
            self.line("block = start + tl.arange(0, BLOCKS)[:, None]")
            self.line("here = block < last")
            self._grid()
            self.line("inside = here & (lane < length - column)")
        if any(v.op == "random" for v in self.values):
            self.line("place = (offset + before).to(tl.int32) + lane")
        for stage in self.own.stages:
            for i in stage.block:
                self._block_value(i)
            for i in stage.values:
                self._element(i)
            self._sums(stage)
            self._stores(stage)

    def _grid(self) -> None:
        """Where blocks lie: in rows where something stored follows the grid, else in one row."""
        if self.layout.gridded:
            self.line("in_row = block // per_row")
            self.line("column = (block - in_row * per_row) * 128")
            self.line("offset = in_row.to(tl.int64) * length + column")
        else:
            self.line("column = block.to(tl.int64) * 128")
            self.line("offset = column")

    def _block_value(self, i: int) -> None:
        v = self.values[i]
        if i in self.known or v.op in ("literal", "host"):
            return
        if v.op == "input":
            self.line(f"{self.name(i)} = tl.load({address(v.attr)} + block, mask=here, other=0.0)")
        elif v.op == "block_max":
            x = self.use(v.args[0], Type.INT)
            self.line(f"{self.name(i)} = tl.max(tl.where(inside, {x}, 0), axis=1, keep_dims=True)")
        else:
            self.line(f"{self.name(i)} = {instruction(self, v)}")
        self.known.add(i)

    def _element(self, i: int) -> None:
        v = self.values[i]
        if i in self.known or v.op in ("literal", "host"):
            return
        if i in self.own.given:
            self._load(self.name(i), self.own.given[i])
        elif v.op == "input":
            self._load(self.name(i), v.attr)
        else:
            for a in v.args:
                self._column_value(a)
            self.line(f"{self.name(i)} = {instruction(self, v)}")
        self.known.add(i)

    def _column_value(self, i: int) -> None:
        """A value of columns is loaded where an element needs it."""
        if self.values[i].domain is Domain.COLUMN and i not in self.known:
            at = f"{address(self._vector(i))} + start + lane"
            self.line(f"{self.name(i)} = tl.load({at}, mask=lane < length - start, other=0.0)")
            self.known.add(i)

    def _sums(self, stage: Stage) -> None:
        telemetry = [(n, x) for n, x in self.own.telemetry if x in stage.values]
        for key, x in (*((i, self.values[i].args[0]) for i in stage.sums), *telemetry):
            masked = f"tl.where(inside, {self.use(x, Type.FLOAT)}, 0.0)"
            if key in self.column_sums:
                at = f"part_{key}_at + (row // BLOCKS) * length + start + lane"
                own = f"tl.sum({masked}, axis=0, keep_dims=True)"
                self.line(f"tl.store({at}, {own}, mask=lane < length - start)")
            else:
                self.line(f"sum_{key} += {masked}")

    # ------------------------------------------------------------ memory

    def _load(self, to: str, name: str) -> None:
        part, at = self.layout.names[name], address(name)
        if part.per == "pair":
            self.line(f"both = tl.load({self._pair(at)}, mask={_HALF}, other=0).to(tl.int32)")
            self.line(f"{to} = tl.interleave(both & 15, both >> 4)")
            return
        zero = "0.0" if part.dtype in (torch.float32, torch.float16) else "0"
        self.line(f"{to} = tl.load({at} + offset + lane, mask=inside, other={zero})")
        if part.dtype is torch.bfloat16:
            self.line(f"{to} = device.from_bits({to}.to(tl.int32) << 16)")
        elif part.dtype is not torch.float32:
            wide = "float32" if part.dtype is torch.float16 else "int32"
            self.line(f"{to} = {to}.to(tl.{wide})")

    def _stores(self, stage: Stage) -> None:
        for name, i in stage.stores:
            x = self.use(i, self.values[i].type)
            part, at = self.layout.names[name], address(name)
            if part.per == "block":
                self.line(f"tl.store({at} + block, {x}, mask=here)")
            elif part.per == "pair":
                halves = f"tl.reshape(tl.where(inside, {x}, 0), (BLOCKS, 64, 2))"
                self.line(f"low, high = tl.split({halves})")
                both = "(low | (high << 4)).to(tl.uint8)"
                self.line(f"tl.store({self._pair(at)}, {both}, mask={_HALF})")
            else:
                if part.dtype is torch.bfloat16:
                    x = f"(device.bits({x}) >> 16)"
                if part.dtype is not torch.float32:
                    x = f"{x}.to(tl.{ELEMENTS[part.dtype]})"
                self.line(f"tl.store({at} + offset + lane, {x}, mask=inside)")

    def _pair(self, at: str) -> str:
        row = "rows_here" if self.by_rows else "in_row"
        return f"{at} + {row} * pitch + column // 2 + half"

    # ------------------------------------------------------------ after the tiles

    def _finish(self) -> None:
        for i in self.row_sums:
            own = f"tl.sum(sum_{i}, axis=1, keep_dims=True)"
            self.line(f"tl.store(sum_{i}_at + part * rows + rows_here, {own}, mask=here)")
        keys: Sequence[object] = [*self.totals, *(n for n, _ in self.own.telemetry)]
        for number, key in enumerate(keys):
            at = f"partials + piece * {self.width} + {number}"
            self.line(f"tl.store({at}, tl.sum(sum_{key}.to(tl.float64)))")


_HALF = "here & (half * 2 < length - column)"
