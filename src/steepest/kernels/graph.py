"""A traced step as a kernel computes it: typed values in their domains, down to single instructions.

The domain of a value says how often it is computed: once a step on the host, once a tensor, a row, a column,
a block of the grid, or for every element. Printers need nothing else to know where a line goes.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import torch

from steepest.codecs import verbs
from steepest.kernels.trace import ON_NUMBERS, Graph, Node, Untraceable, choose, random_word
from steepest.ops import mean_to


class Domain(Enum):
    """How often a value is computed; see `join`."""

    HOST = 0
    TENSOR = 1
    ROW = 2
    COLUMN = 3
    BLOCK = 4
    ELEMENT = 5


SMALL = (Domain.TENSOR, Domain.ROW, Domain.COLUMN)
INNER = (Domain.BLOCK, Domain.ELEMENT)


class Type(Enum):
    FLOAT = "float"
    INT = "i32"
    BOOL = "i1"


@dataclass(frozen=True, slots=True)
class Value:
    """One instruction. `op` is a name of OPS, or "input", "literal", "host", "sum", "block_max", "random".

    args: numbers of the operands.  attr: an input's name, a literal, a host function, a word's number.
    """

    op: str
    args: tuple[int, ...]
    domain: Domain
    type: Type
    attr: Any = None


@dataclass(frozen=True, slots=True)
class Code:
    """A whole step. Values are numbered by their place; outputs and sums map names to values.

    inputs:  name to value.  outputs: stored name to its new value.  sums: a name to an ELEMENT value whose
    total over each tensor is reported (telemetry).
    """

    values: tuple[Value, ...]
    inputs: Mapping[str, int]
    outputs: Mapping[str, int]
    sums: Mapping[str, int] = field(default_factory=dict)

    def cone(self, demands: Sequence[int], stop: Callable[[int], bool]) -> list[int]:
        """Everything that the demanded values need, in order; values at which `stop` holds are given."""
        seen: set[int] = set()
        todo = list(demands)
        while todo:
            i = todo.pop()
            if i not in seen:
                seen.add(i)
                if not stop(i):
                    todo.extend(self.values[i].args)
        return sorted(seen)


def join(domains: Sequence[Domain]) -> Domain:
    """The domain of an expression of values in these domains."""
    own = set(domains) - {Domain.HOST, Domain.TENSOR}
    if not own:
        return max(domains, key=lambda d: d.value, default=Domain.HOST)
    if len(own) == 1:
        return next(iter(own))
    return Domain.BLOCK if own == {Domain.ROW, Domain.BLOCK} else Domain.ELEMENT


F, N, B = Type.FLOAT, Type.INT, Type.BOOL
FLOAT_OPS: Mapping[Callable[..., Any], str] = {
    torch.add: "add",
    torch.sub: "sub",
    torch.mul: "mul",
    torch.div: "div",
    torch.neg: "neg",
    torch.abs: "abs",
    torch.sqrt: "sqrt",
    verbs.root: "root",
    torch.exp: "exp",
    torch.log: "log",
    torch.tanh: "tanh",
    torch.pow: "pow",
    torch.minimum: "minimum",
    torch.maximum: "maximum",
}
INT_OPS: Mapping[Callable[..., Any], str] = {
    torch.add: "iadd",
    torch.sub: "isub",
    torch.mul: "imul",
    torch.bitwise_and: "and",
    torch.bitwise_or: "or",
    torch.bitwise_xor: "xor",
    torch.bitwise_left_shift: "shl",
    torch.bitwise_right_shift: "shr",
    torch.abs: "iabs",
    verbs.with_sign: "with_sign",
}
COMPARE: Mapping[Callable[..., Any], str] = {
    torch.gt: "gt",
    torch.ge: "ge",
    torch.lt: "lt",
    torch.le: "le",
    torch.eq: "eq",
    torch.ne: "ne",
}
BOOL_OPS: Mapping[Callable[..., Any], str] = {torch.bitwise_and: "band", torch.bitwise_or: "bor"}
ROUNDS: Mapping[Callable[..., Any], str] = {verbs.to_bfloat16: "round_bf16", verbs.to_float16: "round_f16"}
CASTS: Mapping[Callable[..., Any], tuple[str, Type, Type]] = {
    verbs.bits: ("bits", F, N),
    verbs.from_bits: ("from_bits", N, F),
    verbs.to_int: ("to_int", F, N),
    verbs.to_float: ("to_float", N, F),
}

COUNTS = {
    (Domain.ELEMENT, Domain.TENSOR): "numel",
    (Domain.ELEMENT, Domain.ROW): "columns",
    (Domain.ELEMENT, Domain.COLUMN): "rows",
    (Domain.ROW, Domain.TENSOR): "rows",
    (Domain.COLUMN, Domain.TENSOR): "columns",
}
"""The input that holds how many values are summed from one domain to another."""


class Lowering:
    """Builds a `Code` from a `Graph`, one node after another."""

    def __init__(self, graph: Graph, domains: Mapping[str, Domain], types: Mapping[str, Type]) -> None:
        self.graph = graph
        self.values: list[Value] = []
        self.seen: dict[Value, int] = {}
        self.inputs: dict[str, int] = {}
        self.at: dict[int, int] = {}
        for i, constant in graph.constants.items():
            self.at[i] = self.literal(constant)
        for name, i in graph.inputs.items():
            domain = Domain.HOST if name.startswith("h.") else domains.get(name, Domain.ELEMENT)
            self.at[i] = self.input(name, domain, types.get(name, F))
        for node in graph.nodes:
            self.at[node.value] = self.node(node)

    @classmethod
    def empty(cls) -> Lowering:
        """For code that is not traced from a rule."""
        return cls(Graph((), {}, {}, (), {}), {}, {})

    def code(self) -> Code:
        outputs = {k: self.at[v] for k, v in self.graph.outputs.items() if not k.startswith("sum.")}
        sums = {k[4:]: self.at[v] for k, v in self.graph.outputs.items() if k.startswith("sum.")}
        return Code(tuple(self.values), self.inputs, outputs, sums)

    def put(self, op: str, args: Sequence[int], domain: Domain, type: Type, attr: Any = None) -> int:
        value = Value(op, tuple(args), domain, type, attr)
        if value not in self.seen:
            self.seen[value] = len(self.values)
            self.values.append(value)
        return self.seen[value]

    def input(self, name: str, domain: Domain, type: Type = F) -> int:
        if name not in self.inputs:
            self.inputs[name] = self.put("input", (), domain, type, name)
        return self.inputs[name]

    def literal(self, x: Any) -> int:
        kind = B if isinstance(x, bool) else N if isinstance(x, int) else F
        return self.put("literal", (), Domain.HOST, kind, x)

    def emit(self, op: str, *args: int, type: Type = F) -> int:
        return self.put(op, args, join([self.values[i].domain for i in args]), type)

    def host(self, op: Callable[..., Any], *args: int, **named: int) -> int:
        return self.put("host", (*args, *named.values()), Domain.HOST, F, (op, tuple(named)))

    def is_host(self, i: int) -> bool:
        return self.values[i].domain is Domain.HOST

    def _is_whole(self, i: int) -> bool:
        return self.values[i].domain is Domain.TENSOR

    def node(self, node: Node) -> int:
        args = [self.at[i] for i in node.args]
        named = {name: self.at[i] for name, i in node.kwargs}
        op = node.op
        if all(map(self.is_host, (*args, *named.values()))) and op in ON_NUMBERS.values():
            return self.host(op, *args, **named)
        if op is random_word:
            return self.put("random", (), Domain.ELEMENT, N, self.graph.constants[node.args[0]])
        if op is verbs.block_max:
            return self.block_max(args[0])
        if op in (torch.mean, torch.sum, torch.linalg.vector_norm):
            return self.whole(op, args[0])
        if op is mean_to:
            return self.mean(args[0], self.values[args[1]].domain)
        if op is verbs.row_mean:
            return self.mean(args[0], Domain.ROW)
        if op is verbs.column_mean:
            return self.mean(args[0], Domain.COLUMN)
        if op is torch.clone:
            return args[0]
        return self.element(op, args, named)

    # ------------------------------------------------------------ sums

    def sum(self, x: int, domain: Domain) -> int:
        """x summed down to a coarser domain; a value that is in it already is multiplied by its count."""
        own = self.values[x].domain
        if own is Domain.BLOCK:
            raise Untraceable("a rule may not sum what codecs keep a block.")
        if own in (Domain.HOST, domain):
            raise Untraceable("a rule may not sum a number.")
        return self.put("sum", (x,), domain, F)

    def mean(self, x: int, like: Domain) -> int:
        """The mean of x down to what `like` is constant along: rows of elements, all rows of a row value."""
        own = self.values[x].domain
        if own is like or own in (Domain.HOST, Domain.TENSOR):
            return x
        domain = like if own is Domain.ELEMENT else Domain.TENSOR
        return self.emit("div", self.sum(x, domain), self.input(COUNTS[own, domain], Domain.TENSOR))

    def whole(self, op: Callable[..., Any], x: int) -> int:
        own = self.values[x].domain
        if op is torch.linalg.vector_norm:
            return self.emit("sqrt", self.sum(self.emit("mul", x, x), Domain.TENSOR))
        total = self.sum(x, Domain.TENSOR)
        if op is torch.sum:
            return total
        return self.emit("div", total, self.input(COUNTS[own, Domain.TENSOR], Domain.TENSOR))

    def block_max(self, x: int) -> int:
        # The bits of what is not below zero are in the order of the numbers, with NaN above all.
        largest = self.put("block_max", (self.emit("bits", x, type=N),), Domain.BLOCK, N)
        return self.emit("from_bits", largest, type=F)

    # ------------------------------------------------------------ elements

    def element(self, op: Callable[..., Any], args: list[int], named: Mapping[str, int]) -> int:
        types = {self.values[i].type for i in args if not self.is_host(i)}
        if op in CASTS:
            name, given, made = CASTS[op]
            self.expect(types <= {given}, op, types)
            return self.emit(name, *args, type=made)
        if op in ROUNDS:
            return args[0] if self.is_bfloat16(args[0]) else self.emit(ROUNDS[op], *args)
        if op in (torch.where, choose):
            return self.select(args)
        if op is torch.clamp:
            return self.clamp(args, named)
        self.expect(len(types) == 1, op, types)
        if op in COMPARE:
            return self.emit(COMPARE[op], *args, type=B)
        if types == {B}:
            self.expect(op in BOOL_OPS, op, types)
            return self.emit(BOOL_OPS[op], *args, type=B)
        if types == {N}:
            self.expect(op in INT_OPS and not named, op, types)
            return self.emit(INT_OPS[op], *args, type=N)
        return self.float(op, args, named)

    def is_bfloat16(self, i: int) -> bool:
        """Whether a value has been cut to a bfloat16 already."""
        x = self.values[i]
        cut = self.values[x.args[0]] if x.op == "from_bits" else None
        return cut is not None and cut.op == "and" and self.values[cut.args[1]].attr == -0x10000

    def expect(self, holds: bool, op: Any, types: Any) -> None:
        if not holds:
            shown = ", ".join(sorted(t.name.lower() for t in types))
            raise Untraceable(f"kernels do not know {getattr(op, '__name__', op)} on {shown}.")

    def float(self, op: Callable[..., Any], args: list[int], named: Mapping[str, int]) -> int:
        if "alpha" in named and op in (torch.add, torch.sub):
            return self.float(op, [args[0], self.emit("mul", named["alpha"], args[1])], {})
        self.expect(not named, op, {F})
        if op is torch.lerp:
            return self.lerp(*args)
        if op is torch.reciprocal:
            return self.float(torch.div, [self.literal(1.0), *args], {})
        if op is torch.rsqrt:
            return self.float(torch.div, [self.literal(1.0), self.emit("sqrt", *args)], {})
        if op is torch.sign:
            one, zero = self.literal(1.0), self.literal(0.0)
            up = self.emit("select", self.emit("gt", args[0], zero, type=B), one, zero)
            down = self.emit("select", self.emit("lt", args[0], zero, type=B), one, zero)
            return self.emit("sub", up, down)
        if op is torch.mul and self.values[args[1]].attr == 1.0 and self.values[args[1]].op == "literal":
            return args[0]
        if op is torch.div and self.is_host(args[1]):  # one division a step instead of one an element
            return self.emit("mul", args[0], self.host(operator.truediv, self.literal(1.0), args[1]))
        if (
            op is torch.div and self._is_whole(args[1]) and self.values[args[0]].domain in INNER
        ):  # one a tensor
            return self.emit("mul", args[0], self.emit("div", self.literal(1.0), args[1]))
        self.expect(op in FLOAT_OPS, op, {F})
        return self.emit(FLOAT_OPS[op], *args)

    def lerp(self, a: int, b: int, weight: int) -> int:
        """As torch's kernel: from the nearer end, so that weights of 0 and 1 are exact."""
        if not self.is_host(weight):
            raise Untraceable("lerp takes a number as its weight.")
        near = self.host(operator.lt, weight, self.literal(0.5))
        factor = self.host(nearer, weight)
        base = self.emit("select", near, a, b)
        return self.emit("add", base, self.emit("mul", factor, self.emit("sub", b, a)))

    def select(self, args: list[int]) -> int:
        types = {self.values[i].type for i in args[1:] if not self.is_host(i)}
        types = types or {self.values[i].type for i in args[1:]}
        self.expect(len(types) == 1, torch.where, types)
        return self.emit("select", *args, type=types.pop())

    def clamp(self, args: list[int], named: Mapping[str, int]) -> int:
        bounds = dict(zip(("min", "max"), args[1:], strict=False)) | dict(named)
        x = args[0]
        prefix = "i" if self.values[x].type is N else ""
        for name, op in (("min", "atleast"), ("max", "atmost")):
            none = name not in bounds or (
                self.values[bounds[name]].op == "literal" and self.values[bounds[name]].attr is None
            )
            if not none:
                x = self.emit(prefix + op, x, bounds[name], type=self.values[x].type)
        return x


def nearer(weight: float) -> float:
    return weight if weight < 0.5 else weight - 1


def lower(graph: Graph, domains: Mapping[str, Domain], types: Mapping[str, Type]) -> Code:
    """The code of a traced step.

    domains: of the inputs that are not ELEMENT (means of rows, scales of blocks).  types: of those that are
    not FLOAT (codes).  Raises `Untraceable` for what kernels do not know.
    """
    return Lowering(graph, domains, types).code()
