"""What the printed functions have in common: lines, names, where numbers of a tensor lie."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch

from steepest.kernels.graph import Domain, Type
from steepest.kernels.llvm import Layout
from steepest.kernels.schedule import Schedule

FACTS = (
    *("length", "rows", "numel", "group", "ordinal", "first", "last"),
    *("row_parts", "column_parts", "seed", "start"),
)
"""Of a tensor, i64: elements in a row, rows, both multiplied; its group; its place among all parameters; its
pieces; the number of partial sums of a row and of a column; the seed of its noise; and the elements of the
whole tensor before it, where it is a part."""

WORK = ("tensor", "row", "first", "last", "part")
"""Of a piece, i64: its tensor; blocks first to last of the grid; or, where a kernel sees rows and columns,
BLOCKS rows from this one and columns first to last, the part-th range of them."""

ELEMENTS = {
    torch.float32: "float32",
    torch.bfloat16: "int16",
    torch.float16: "float16",
    torch.uint8: "uint8",
    torch.int8: "int8",
    torch.int16: "int16",
}
"""Type to its name in memory; a bfloat16 is the upper half of a float32."""


class Text:
    """One function. `known` are the values that have a name where the text is now."""

    def __init__(self, schedule: Schedule, layout: Layout) -> None:
        self.schedule, self.layout = schedule, layout
        self.values = schedule.code.values
        self.columns = {n: i for i, n in enumerate(layout.names)}
        self.constants = {v: i for i, v in enumerate(schedule.host)}
        self.lines: list[str] = []
        self.depth = 1
        self.known: set[int] = set()

    def line(self, text: str) -> None:
        self.lines.append("    " * self.depth + text)

    @contextmanager
    def block(self, head: str) -> Iterator[None]:
        """A block under a head; what is computed inside is forgotten outside."""
        self.line(head)
        known = set(self.known)
        self.depth += 1
        yield
        self.depth -= 1
        self.known = known

    def function(self, name: str, arguments: str) -> str:
        return "\n".join(["@triton.jit", f"def {name}({arguments}):", *self.lines])

    # ------------------------------------------------------------ names

    def name(self, i: int) -> str:
        """What a value is called: an input by its name, anything else by its number."""
        v = self.values[i]
        if v.op == "input":
            return plain_name(v.attr)
        return f"h{i}" if v.domain is Domain.HOST else f"x{i}"

    def use(self, i: int, type: Type) -> str:
        """A value as an operand of this type."""
        v = self.values[i]
        if v.op == "literal":
            return literal(v.attr, type)
        if type is Type.BOOL and v.domain is Domain.HOST:
            return f"({self.name(i)} != 0.0)"
        return self.name(i)

    # ------------------------------------------------------------ tensors

    def open_tensor(self, needed: Iterable[int]) -> None:
        """Facts of a tensor, and those of these values that are the same for all its elements."""
        self.line(f"facts += tensor * {len(FACTS)}")
        for name in ("length", "rows", "group"):
            self.line(f"{name} = {self.fact(name)}")
        with self.block("if ALIGNED:"):
            self.line("length = tl.multiple_of(length, 16)")
        for i in needed:
            v = self.values[i]
            if v.op == "input" and v.domain is Domain.TENSOR:
                fact = self.fact("length" if v.attr == "columns" else v.attr)
                self.line(f"{self.name(i)} = {fact}.to(tl.float32)")
            elif i in self.constants:
                at = f"group * {len(self.constants)} + {self.constants[i]}"
                self.line(f"{self.name(i)} = tl.load(constants + {at})")
            else:
                continue
            self.known.add(i)

    def open_memory(self, name: str) -> None:
        """The address of a stored tensor."""
        at, type = address(name), ELEMENTS[self.layout.names[name].dtype]
        where = f"pointers + tensor * {len(self.columns)} + {self.columns[name]}"
        self.line(f"{at} = tl.load({where}).to(tl.pointer_type(tl.{type}))")
        with self.block("if ALIGNED:"):
            self.line(f"{at} = tl.multiple_of({at}, 16)")

    def fact(self, name: str) -> str:
        """A fact of the tensor whose facts these are."""
        return f"tl.load(facts + {FACTS.index(name)})"

    def scalar(self, i: int) -> str:
        """Where a number of a tensor is kept between passes."""
        scalars = self.schedule.scalars
        return f"scalars + tensor * {len(scalars)} + {scalars.index(i)}"


def plain_name(name: str) -> str:
    """A name of the design as one of the language: "p", "g", "p_low", "h_lr"; the slot m is "s_m"."""
    own = name.split(".")[0] in ("p", "g", "h", "kept", "sum", "part")
    return name.replace(".", "_") if own else f"s_{name.replace('.', '_')}"


def address(name: str) -> str:
    """What the address of a stored tensor is called."""
    return f"{plain_name(name)}_at"


def literal(x: object, type: Type) -> str:
    """A number in the language."""
    if type is Type.BOOL:
        return str(bool(x))
    if type is Type.INT:
        return str(int(x))  # type: ignore[call-overload]
    number = float(x)  # type: ignore[arg-type]
    return repr(number) if abs(number) < float("inf") else f'float("{number}")'
