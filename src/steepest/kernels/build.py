"""A rule, its codecs and a class of shapes as a kernel: traced, lowered, scheduled, printed, compiled."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch

from steepest.codecs import BLOCK, stored_name
from steepest.contract import Codec, Live, Part, Rule
from steepest.kernels.compile import asked_ahead, compile_functions, x86_lanes
from steepest.kernels.graph import Code, Domain, Lowering, Type, lower
from steepest.kernels.llvm import Layout, print_module
from steepest.kernels.schedule import Schedule, schedule
from steepest.kernels.trace import trace_coded

DOMAINS = {"row": Domain.ROW, "column": Domain.COLUMN, "block": Domain.BLOCK}
SHARE = {"element": 1.0, "pair": 0.5, "block": 1 / BLOCK, "row": 0.0, "column": 0.0}
"""How many numbers of a part there are for one element; rows and columns are few."""


@dataclass(frozen=True)
class Kernel:
    """A scheduled step and where its memory lies; `functions` compiles it when it is first needed."""

    schedule: Schedule
    layout: Layout
    draws: bool = field(init=False)
    by_rows: bool = field(init=False)

    def __post_init__(self) -> None:
        values = self.schedule.code.values
        object.__setattr__(self, "draws", any(v.op == "random" for v in values))
        small = (Domain.ROW, Domain.COLUMN)
        object.__setattr__(self, "by_rows", any(v.domain in small for v in values))

    @property
    def touched(self) -> float:
        """Bytes an element of all that passes read and write, each counted once."""
        names = {name for p in self.schedule.passes for name in (*p.loads, *p.stores)}
        return sum(_bytes(self.layout.names[name]) for name in names)

    @cached_property
    def printed(self) -> tuple[str, list[str], list[int]]:
        """The text, the names of its functions, the number of sums a piece of each writes."""
        return print_module(self.schedule, self.layout)

    @cached_property
    def functions(self) -> list[int]:
        """The addresses of the compiled functions, in the order of `schedule.work`."""
        text, names, _ = self.printed
        return compile_functions(text, names)

    @cached_property
    def constants(self) -> Callable[[Live], list[float]]:
        """From hyperparameters to the numbers that are computed once a step, in float64: one row of the table
        of constants. It is printed as one function, for a walk through the graph takes ten times as long."""
        code, asked = self.schedule.code, self.schedule.host
        known: dict[str, Any] = {}
        lines = ["def constants(h):"]
        for i in code.cone(asked, lambda i: False):
            v = code.values[i]
            if v.op == "literal":
                known[f"v{i}"] = v.attr
            elif v.op == "input":
                lines.append(f"v{i} = {v.attr}")
            else:
                known[f"f{i}"], names = v.attr
                words = [""] * (len(v.args) - len(names)) + [f"{name}=" for name in names]
                args = ", ".join(f"{word}v{a}" for word, a in zip(words, v.args, strict=True))
                lines.append(f"v{i} = f{i}({args})")
        lines.append(f"return [{', '.join(f'float(v{i})' for i in asked)}]")
        exec("\n    ".join(lines), known)
        constants: Callable[[Live], list[float]] = known["constants"]
        return constants


def _bytes(part: Part) -> float:
    return part.dtype.itemsize * SHARE[part.per]


def build(
    rule: Rule,
    h: Live,
    codecs: Mapping[str, Codec],
    grad: torch.dtype,
    vectors: Mapping[str, str],
    telemetry: bool,
    cut: bool = False,
) -> Kernel:
    """The kernel of one class of parameters.

    grad: the type of gradients.  vectors: slots that are means, by name: "row" where there is one for every
    row of a matrix, "column" for every column.  cut: for parts of tensors, whose sums others complete.
    Raises `Untraceable`, or whatever the rule raises on proxies.
    """
    parts: dict[str, Part] = {}
    for slot, codec in codecs.items():
        for name, part in codec.parts.items():
            per = vectors.get(slot, part.per)
            parts[stored_name(slot, name)] = Part(part.dtype, per)  # type: ignore[arg-type]
    parts["g"] = Part(grad)
    graph = trace_coded(rule, h, codecs, telemetry)
    types = {n: Type.INT for n, p in parts.items() if not p.dtype.is_floating_point}
    domains = {n: DOMAINS[p.per] for n, p in parts.items() if p.per in DOMAINS}
    exact = {s for s, c in codecs.items() if not c.lossy and list(c.parts) == [""] and s not in vectors}
    return assemble(lower(graph, domains, types), parts, exact, cut)


def assemble(code: Code, parts: Mapping[str, Part], exact: set[str], cut: bool = False) -> Kernel:
    """A kernel from code. parts: everything stored, by name.  exact: outputs that may be read back.  cut: as
    `build` has it."""
    widths = {name: _bytes(part) for name, part in parts.items()}
    found = schedule(code, widths, exact, cut)
    scratch = {
        name: Part(torch.float32, "row" if domain is Domain.ROW else "column")
        for name, domain in found.vectors.items()
    }
    blocked = any(part.per == "block" for part in parts.values())
    return Kernel(found, Layout({**parts, **scratch}, blocked, x86_lanes(), asked_ahead()))


def prepass(grad: torch.dtype) -> Kernel:
    """The sum of squares of each gradient, and how many of its elements are not finite: one reading."""
    lowering = Lowering.empty()
    g = lowering.input("g", Domain.ELEMENT)
    exponent = lowering.literal(0x7F800000)
    bits = lowering.emit("and", lowering.emit("bits", g, type=Type.INT), exponent, type=Type.INT)
    bad = lowering.emit("eq", bits, exponent, type=Type.BOOL)
    count = lowering.emit("select", bad, lowering.literal(1.0), lowering.literal(0.0))
    square = lowering.emit("mul", g, g)
    code = Code(tuple(lowering.values), lowering.inputs, {}, {"square": square, "bad": count})
    return assemble(code, {"g": Part(grad)}, set())
