"""What passes and folds have in common: text, loops, names of values, memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from steepest.codecs import BLOCK
from steepest.contract import Part
from steepest.kernels.graph import Domain, Type
from steepest.kernels.llvm.lines import instruction
from steepest.kernels.llvm.text import literal, splat, wide
from steepest.kernels.schedule import Schedule

WIDTH = {False: 16, True: 32}
"""Elements computed at a time, without and with the blocks of codecs, which are long chains: two and four
registers of AVX2, four and eight of NEON."""

SPAN = 1024
"""Elements whose sum is kept in float32, where no codec has blocks."""

LINE = 64
"""Bytes in a line of the cache."""

ARGS = ("pointers", "facts", "work", "constants", "scalars", "partials", "queues", "threads", "number")
"""What a function is given, an array of pointers in this order.

pointers: i64 [tensors, names]: the address of every stored tensor and scratch vector.
facts: i64 [tensors, FACTS].  work: i64 [pieces, WORK].
constants: float [groups, constants].  scalars: float [tensors, scalars].
partials: double [pieces, sums], the sums of one pass; a fold is given those of the pass before.
queues: i64 [threads, QUEUE]: a thread's next piece, and the one after its last.
threads: i64: how many queues there are, how many threads have asked for a number.
number: a function that returns the number of the thread, i32; null where there is none.
"""

QUEUE = 16
"""Numbers from one queue to the next: two lines of the cache, which are fetched in pairs."""

FACTS = ("length", "rows", "group", "key0", "key1", "start", "all_rows", "numel", "first", "last")
"""Of a tensor: elements in a row, rows; its group; the keys of its noise; the elements of the whole tensor
before it, where it is a part, and all rows and all elements of that; its pieces, first to last."""

COUNTS = {"columns": "length", "rows": "all_rows", "numel": "numel"}
"""What sums are divided by to be means, and the fact that it is."""

WORK = ("tensor", "row", "rows", "column", "columns")
"""Of a piece: its tensor, and the rectangle of rows and columns. A fold has one piece a tensor."""

STORED = {
    torch.float32: ("float", 4),
    torch.bfloat16: ("i16", 2),
    torch.float16: ("half", 2),
    torch.uint8: ("i8", 1),
    torch.int8: ("i8", 1),
    torch.int16: ("i16", 2),
}
"""Type to its name in memory, and its bytes."""


@dataclass(frozen=True, slots=True)
class Layout:
    """What the printer must know of memory.

    names: the columns of the table of pointers, and how each is stored (scratch vectors too).
    blocked: whether rows are cut into the blocks of codecs.
    x86: how many numbers of 32 bits a register has whose instructions the text may use (8 AVX2, 16 AVX-512);
        0 if none.
    ahead: by how many bytes memory is asked for before it is loaded; 0 where the processor does so by itself.
    """

    names: Mapping[str, Part]
    blocked: bool
    x86: int = 0
    ahead: int = 0

    @property
    def gridded(self) -> bool:
        """Whether anything stored follows the rows of the grid."""
        return self.blocked or any(part.per == "pair" for part in self.names.values())

    @property
    def block(self) -> int:
        return BLOCK if self.blocked else SPAN


class Printer:
    """One function. Lines are collected in `lines`; what it keeps in memory stands in `allocas`."""

    def __init__(self, schedule: Schedule, layout: Layout) -> None:
        self.schedule, self.layout, self.width = schedule, layout, WIDTH[layout.blocked]
        self.values = schedule.code.values
        self.columns = {n: i for i, n in enumerate(layout.names)}
        self.constants = {v: i for i, v in enumerate(schedule.host)}
        self.scalars = {v: i for i, v in enumerate(schedule.scalars)}
        self.lines: list[str] = []
        self.allocas: list[str] = []
        self.declared: set[str] = set()
        self.fresh = 0
        self.env: dict[tuple[int, int], str] = {}  # (value, width) to its name, where it is known
        self.facts: dict[str, str] = {}
        self.bases: dict[str, str] = {}
        self.rows: dict[str, str] = {}
        self.divides = False  # whether the processor's divider has other work where the text is now
        self.chosen: set[int] = set()  # conditions that hold where the text is now

    # ------------------------------------------------------------ text

    def new(self, hint: str = "x") -> str:
        self.fresh += 1
        return f"%{hint}.{self.fresh}"

    def line(self, text: str) -> None:
        self.lines.append("  " + text)

    def let(self, text: str, hint: str = "x") -> str:
        name = self.new(hint)
        self.line(f"{name} = {text}")
        return name

    def label(self, name: str) -> None:
        self.lines.append(f"{name[1:]}:")

    def declare(self, signature: str) -> None:
        self.declared.add(signature)

    def memory(self, type: str, hint: str, count: int = 1) -> str:
        """Memory of this function, for a variable or a buffer."""
        name = self.new(hint)
        self.allocas.append(f"  {name} = alloca {type}, i32 {count}, align 64")
        return name

    @contextmanager
    def loop(self, start: str, end: str, step: int, hint: str) -> Iterator[str]:
        """for index in range(start, end, step); yields the index, i64."""
        counter = self.memory("i64", f"{hint}.counter")
        head, body, done = self.new(f"{hint}.head"), self.new(f"{hint}.body"), self.new(f"{hint}.done")
        self.line(f"store i64 {start}, ptr {counter}")
        self.line(f"br label {head}")
        self.label(head)
        index = self.let(f"load i64, ptr {counter}", hint)
        more = self.let(f"icmp slt i64 {index}, {end}")
        self.line(f"br i1 {more}, label {body}, label {done}")
        self.label(body)
        with self.scope():
            yield index
        following = self.let(f"add i64 {index}, {step}")
        self.line(f"store i64 {following}, ptr {counter}")
        self.line(f"br label {head}")
        self.label(done)

    @contextmanager
    def scope(self) -> Iterator[None]:
        """What is computed inside is forgotten outside."""
        saved = self.env, self.rows
        self.env, self.rows = dict(self.env), dict(self.rows)
        yield
        self.env, self.rows = saved

    def function(self, name: str) -> str:
        """The finished text."""
        given = [f"  %args.{a} = load ptr, ptr {self._arg(i)}" for i, a in enumerate(ARGS)]
        slots = [f"  %slot.{i} = getelementptr ptr, ptr %args, i64 {i}" for i in range(len(ARGS))]
        head = [f"define void @{name}(ptr %args) {{", "entry:", *slots, *given, *self.allocas]
        return "\n".join([*head, *self.lines, "  ret void", "}"])

    def _arg(self, i: int) -> str:
        return f"%slot.{i}"

    # ------------------------------------------------------------ work

    @contextmanager
    def pieces(self) -> Iterator[dict[str, str]]:
        """Draw pieces from this thread's queue, then from the others', until there are no more; yields the
        numbers of `WORK`, and "piece"."""
        head, other, body, done = map(self.new, ("draw", "other", "piece.body", "finished"))
        threads = self.let("load i64, ptr %args.threads", "threads")
        queue, left = self.memory("i64", "queue"), self.memory("i64", "left")
        self.line(f"store i64 {self._number(threads)}, ptr {queue}")
        self.line(f"store i64 {threads}, ptr {left}")
        self.line(f"br label {head}")
        self.label(head)
        own = self.let(f"mul i64 {self.let(f'load i64, ptr {queue}')}, {QUEUE}")
        own = self.at("%args.queues", "i64", own)
        piece = self.let(f"atomicrmw add ptr {own}, i64 1 monotonic", "piece")
        end = self.let(f"load i64, ptr {self.at(own, 'i64', '1')}", "end")
        more = self.let(f"icmp slt i64 {piece}, {end}")
        self.line(f"br i1 {more}, label {body}, label {other}")
        self.label(other)
        following = self.let(f"add i64 {self.let(f'load i64, ptr {queue}')}, 1")
        self.line(f"store i64 {self.let(f'urem i64 {following}, {threads}')}, ptr {queue}")
        still = self.let(f"sub i64 {self.let(f'load i64, ptr {left}')}, 1")
        self.line(f"store i64 {still}, ptr {left}")
        self.line(f"br i1 {self.let(f'icmp sgt i64 {still}, 0')}, label {head}, label {done}")
        self.label(body)
        own = self.at("%args.work", "i64", self.let(f"mul i64 {piece}, {len(WORK)}"))
        with self.scope():
            yield {"piece": piece} | {
                name: self.let(f"load i64, ptr {self.at(own, 'i64', str(i))}", name)
                for i, name in enumerate(WORK)
            }
        self.line(f"br label {head}")
        self.label(done)

    def _number(self, threads: str) -> str:
        """The queue this thread begins with: the same in every pass where threads are numbered, so that it
        finds in its caches what it has read before; else the first that nobody has begun with."""
        numbered, counted, known = map(self.new, ("numbered", "counted", "known"))
        number = self.memory("i64", "number")
        without = self.let("icmp eq ptr %args.number, null")
        self.line(f"br i1 {without}, label {counted}, label {numbered}")
        self.label(numbered)
        found = self.let(f"sext i32 {self.let('call i32 %args.number()')} to i64")
        self.line(f"store i64 {found}, ptr {number}")
        self.line(f"br label {known}")
        self.label(counted)
        asked = self.at("%args.threads", "i64", "1")
        found = self.let(f"atomicrmw add ptr {asked}, i64 1 monotonic")
        self.line(f"store i64 {found}, ptr {number}")
        self.line(f"br label {known}")
        self.label(known)
        return self.let(f"urem i64 {self.let(f'load i64, ptr {number}')}, {threads}", "queue")

    def open_tensor(self, tensor: str) -> None:
        """Load the facts, addresses and constants of a tensor; what is not used is optimized away."""
        own = self.at("%args.facts", "i64", self.let(f"mul i64 {tensor}, {len(FACTS)}"))
        self.facts = {
            name: self.let(f"load i64, ptr {self.at(own, 'i64', str(i))}", name)
            for i, name in enumerate(FACTS)
        }
        own = self.at("%args.pointers", "ptr", self.let(f"mul i64 {tensor}, {len(self.columns)}"))
        self.bases = {
            name: self.let(f"load ptr, ptr {self.at(own, 'ptr', str(i))}", name)
            for name, i in self.columns.items()
        }
        own = self.let(f"mul i64 {self.facts['group']}, {len(self.constants)}")
        own = self.at("%args.constants", "float", own)
        for value, i in self.constants.items():
            self.env[value, 1] = self.let(f"load float, ptr {self.at(own, 'float', str(i))}", "h")
        for i, v in enumerate(self.values):
            if v.op == "input" and v.domain is Domain.TENSOR:
                count = self.facts[COUNTS[v.attr]]
                self.env[i, 1] = self.let(f"sitofp i64 {count} to float", v.attr)

    def scalar_at(self, tensor: str, value: int) -> str:
        """The address of a scalar that is kept between passes."""
        own = self.let(f"mul i64 {tensor}, {len(self.scalars)}")
        return self.at("%args.scalars", "float", self.let(f"add i64 {own}, {self.scalars[value]}"))

    # ------------------------------------------------------------ values

    def use(self, i: int, width: int, type: Type) -> str:
        """The name of a value at this width; one number is repeated over a vector."""
        v = self.values[i]
        if v.op == "literal":
            return literal(v.attr, type, width)
        if type is Type.BOOL and v.domain is Domain.HOST:
            return self.let(f"fcmp une float {self.env[i, 1]}, 0.0")
        if (i, width) in self.env:
            return self.env[i, width]
        one = self.env[i, 1]
        self.env[i, width] = self.repeated(one, v.type.value, width)
        return self.env[i, width]

    def repeated(self, one: str, kind: str, width: int) -> str:
        """A vector of one number."""
        of = wide(kind, width)
        first = self.let(f"insertelement {of} poison, {kind} {one}, i32 0")
        return self.let(f"shufflevector {of} {first}, {of} poison, <{width} x i32> zeroinitializer")

    def compute(self, i: int, width: int) -> None:
        """Print a value whose operands are known, unless it is known itself."""
        v = self.values[i]
        if (i, width) not in self.env and (i, 1) not in self.env and v.op not in ("literal", "host"):
            self.env[i, width] = instruction(self, i, v, width)

    def place(self) -> str:
        """The place of the first element in its tensor, i32; a pass knows it."""
        raise NotImplementedError

    def key(self, number: int, width: int) -> str:
        """A key of the tensor's noise."""
        one = self.let(f"trunc i64 {self.facts[f'key{number}']} to i32")
        return one if width == 1 else self.repeated(one, "i32", width)

    # ------------------------------------------------------------ memory

    def at(self, base: str, type: str, index: str) -> str:
        return self.let(f"getelementptr inbounds {type}, ptr {base}, i64 {index}")

    def row_of(self, name: str, row: str) -> str:
        """The address at which a row of a stored tensor begins (for a vector of columns: the vector)."""
        part = self.layout.names[name]
        type, _ = STORED[part.dtype]
        if part.per == "column":
            return self.bases[name]
        if part.per == "row":
            return self.at(self.bases[name], type, row)
        length, many = self.facts["length"], {"element": 1, "pair": 2, "block": BLOCK}[part.per]
        if many > 1:
            length = self.let(f"udiv i64 {self.let(f'add i64 {length}, {many - 1}')}, {many}")
        return self.at(self.bases[name], type, self.let(f"mul i64 {row}, {length}"))

    def _ask(self, at: str, count: int) -> None:
        """Ask for so many bytes that lie ahead of an address. There may be none: asking never fails."""
        if self.layout.ahead:
            self.declare("void @llvm.prefetch.p0(ptr, i32, i32, i32)")
            for line in range(0, count, LINE):
                there = self.let(f"getelementptr i8, ptr {at}, i64 {self.layout.ahead + line}")
                self.line(f"call void @llvm.prefetch.p0(ptr {there}, i32 0, i32 3, i32 1)")

    def load(self, name: str, column: str, width: int) -> str:
        """A value from a stored tensor, as float or i32. column: i64, of the first element."""
        part, row = self.layout.names[name], self.rows[name]
        if part.per == "row":
            return self.let(f"load float, ptr {row}", name)
        if part.per == "block":
            return self.let(f"load float, ptr {self._block_at(row, column)}", name)
        if part.per == "pair":
            return self._load_pair(row, column, width)
        stored, size = STORED[part.dtype]
        at = self.at(row, stored, column)
        if part.per == "element" and width > 1:
            self._ask(at, width * size)
        x = self.let(f"load {wide(stored, width)}, ptr {at}, align {size}", name)
        ints, floats = wide("i32", width), wide("float", width)
        if part.dtype is torch.float16:
            return self.let(f"fpext {wide('half', width)} {x} to {floats}")
        if part.dtype is torch.float32:
            return x
        extend = "sext" if part.dtype in (torch.int8, torch.int16) else "zext"
        x = self.let(f"{extend} {wide(stored, width)} {x} to {ints}")
        if part.dtype is torch.bfloat16:
            x = self.let(f"shl {ints} {x}, {literal(16, Type.INT, width)}")
            x = self.let(f"bitcast {ints} {x} to {floats}")
        return x

    def store(self, name: str, x: str, column: str, width: int) -> None:
        """A float or i32 into a stored tensor; it has been rounded to what the type can hold."""
        part, row = self.layout.names[name], self.rows[name]
        if part.per in ("row", "block"):
            to = row if part.per == "row" else self._block_at(row, column)
            self.line(f"store float {x}, ptr {to}")
            return
        if part.per == "pair":
            self._store_pair(row, x, column, width)
            return
        stored, size = STORED[part.dtype]
        ints, floats = wide("i32", width), wide("float", width)
        if part.dtype is torch.bfloat16:
            x = self.let(f"bitcast {floats} {x} to {ints}")
            x = self.let(f"lshr {ints} {x}, {literal(16, Type.INT, width)}")
        if part.dtype is torch.float16:
            x = self.let(f"fptrunc {floats} {x} to {wide('half', width)}")
        elif part.dtype is not torch.float32:
            fits = "nuw" if part.dtype in (torch.bfloat16, torch.uint8) else "nsw"  # so that nothing masks it
            x = self.let(f"trunc {fits} {ints} {x} to {wide(stored, width)}")
        to = self.at(row, stored, column)
        self.line(f"store {wide(stored, width)} {x}, ptr {to}, align {size}")

    def _block_at(self, row: str, column: str) -> str:
        return self.at(row, "float", self.let(f"udiv i64 {column}, {BLOCK}"))

    def _load_pair(self, row: str, column: str, width: int) -> str:
        """Codes of four bits: the even element of a pair in the low half of its byte."""
        at = self.at(row, "i8", self.let(f"lshr i64 {column}, 1"))
        if width == 1:
            byte = self.let(f"load i8, ptr {at}")
            byte = self.let(f"zext i8 {byte} to i32")
            return self.let(f"and i32 {self.let(f'lshr i32 {byte}, {self._nibble(column)}')}, 15")
        half = wide("i8", width // 2)
        both = self.let(f"load {half}, ptr {at}, align 1")
        low, high = (
            self.let(f"and {half} {both}, {splat('i8', 15)}"),
            self.let(f"lshr {half} {both}, {splat('i8', 4)}"),
        )
        order = ", ".join(f"i32 {i // 2 + (i % 2) * (width // 2)}" for i in range(width))
        codes = self.let(f"shufflevector {half} {low}, {half} {high}, <{width} x i32> <{order}>")
        return self.let(f"zext {wide('i8', width)} {codes} to {wide('i32', width)}")

    def _store_pair(self, row: str, x: str, column: str, width: int) -> None:
        at = self.at(row, "i8", self.let(f"lshr i64 {column}, 1"))
        if width == 1:  # the other half of the byte stays
            shift = self._nibble(column)
            hole = self.let(f"xor i32 {self.let(f'shl i32 15, {shift}')}, 255")
            old = self.let(f"load i8, ptr {at}")
            old = self.let(f"and i32 {self.let(f'zext i8 {old} to i32')}, {hole}")
            new = self.let(f"or i32 {old}, {self.let(f'shl i32 {x}, {shift}')}")
            self.line(f"store i8 {self.let(f'trunc i32 {new} to i8')}, ptr {at}")
            return
        codes, half = wide("i8", width), wide("i8", width // 2)
        x = self.let(f"trunc {wide('i32', width)} {x} to {codes}")
        even, odd = (
            self.let(f"shufflevector {codes} {x}, {codes} poison, <{width // 2} x i32> <{order}>")
            for order in (", ".join(f"i32 {i}" for i in range(s, width, 2)) for s in (0, 1))
        )
        high = self.let(f"shl {half} {odd}, {splat('i8', 4)}")
        self.line(f"store {half} {self.let(f'or {half} {even}, {high}')}, ptr {at}, align 1")

    def _nibble(self, column: str) -> str:
        odd = self.let(f"trunc i64 {self.let(f'and i64 {column}, 1')} to i32")
        return self.let(f"shl i32 {odd}, 2")
