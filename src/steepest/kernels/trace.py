"""A rule as data: run once with proxies in place of tensors and live numbers, it leaves its formula behind.

The graph is in single-assignment form, free of common subexpressions and of unused values, and its values
are typed: what is computed once a step on the host stands apart from what is computed on tensors. Engines
read it instead of the rule; live numbers are inputs, so no schedule ever causes a second trace.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import reduce
from numbers import Real
from typing import Any

import torch

from steepest.apply import advance, observe
from steepest.codecs import Noise, decode_all, encode_all, stored_name, verbs
from steepest.contract import Codec, Live, Rule, Slots
from steepest.ops import mean_to


class Untraceable(TypeError):
    """The rule asks a proxy for what only a tensor or number has, or uses an operation not known here."""


class Kind(Enum):
    """What is known of a value before there are tensors.

    HOST:  a Python number, computed once a step.
    FULL:  a floating tensor of the parameter's shape and the step's type.
    PART:  a floating tensor of another shape (a norm, row means, a product of them).
    OTHER: a mask, or one of two values chosen by a live number.
    """

    HOST = 0
    FULL = 1
    PART = 2
    OTHER = 3


@dataclass(frozen=True, slots=True)
class Node:
    """One operation: `value` = `op`(values of `args`, values of `kwargs` by name).

    `op` is a torch function, or a Python function if the result is a HOST number.
    """

    value: int
    op: Callable[..., Any]
    args: tuple[int, ...]
    kwargs: tuple[tuple[str, int], ...]

    @property
    def operands(self) -> tuple[int, ...]:
        return (*self.args, *(i for _, i in self.kwargs))


@dataclass(frozen=True, slots=True)
class Graph:
    """A traced step. Values are numbered; the name of a slot `m` is "s.m", of a hyperparameter "h.lr".

    inputs and outputs: name to value; the parameter is "p", its gradient "g".
    """

    kinds: tuple[Kind, ...]
    constants: Mapping[int, Any]
    inputs: Mapping[str, int]
    nodes: tuple[Node, ...]
    outputs: Mapping[str, int]


def choose(condition: Any, a: Any, b: Any) -> Any:
    """`a` if a live number says so, else `b`; either may be a number or a tensor."""
    return a if condition else b


def _clamp(x: Any, min: Any = None, max: Any = None) -> Any:
    # `builtins.max(x, low)` as `ops.atleast` writes it, so that ties and signs of zero agree.
    x = x if min is None or not min > x else min
    return x if max is None or not max < x else max


COMPARISONS: Mapping[Callable[..., Any], Callable[..., Any]] = {
    torch.gt: operator.gt,
    torch.ge: operator.ge,
    torch.lt: operator.lt,
    torch.le: operator.le,
    torch.eq: operator.eq,
    torch.ne: operator.ne,
    torch.bitwise_and: operator.and_,
    torch.bitwise_or: operator.or_,
}
REDUCTIONS = (
    *(torch.mean, torch.sum, torch.linalg.vector_norm),
    *(mean_to, verbs.row_mean, verbs.column_mean),
)
ON_NUMBERS: Mapping[Callable[..., Any], Callable[..., Any]] = {
    **COMPARISONS,
    torch.add: operator.add,
    torch.sub: operator.sub,
    torch.mul: operator.mul,
    torch.div: operator.truediv,
    torch.pow: operator.pow,
    torch.neg: operator.neg,
    torch.abs: operator.abs,
    torch.sqrt: math.sqrt,
    torch.clamp: _clamp,
    torch.where: choose,
}
"""Every operation on numbers that a rule may use, and the Python function that the reference would run."""

ELEMENTWISE = {
    *(torch.add, torch.sub, torch.mul, torch.div, torch.pow, torch.reciprocal, torch.neg),
    *(torch.abs, torch.sqrt, torch.rsqrt, torch.sign, torch.lerp, torch.clamp, torch.where),
    *(torch.minimum, torch.maximum, torch.exp, torch.log, torch.tanh),
    *COMPARISONS,
}
"""Every operation on tensors that a rule may use beside REDUCTIONS; each reads one element to write one."""


def random_word(number: int) -> Any:
    """32 random bits an element; a kernel knows the element's place and the tensor's key."""
    raise NotImplementedError("random words exist in kernels only; see codecs.word.")


CODING = {
    *(verbs.bits, verbs.from_bits, verbs.to_int, verbs.to_float, verbs.block_max),
    *(verbs.root, verbs.with_sign),
    *(verbs.to_bfloat16, verbs.to_float16),
    *(torch.bitwise_left_shift, torch.bitwise_right_shift, torch.bitwise_xor, random_word),
}
"""What codecs use beside ELEMENTWISE."""

ROUND: Mapping[torch.dtype, Callable[[Any], Any]] = {
    torch.bfloat16: verbs.to_bfloat16,
    torch.float16: verbs.to_float16,
}
"""What storing a value in a narrow type does to it."""


def _forward(func: Callable[..., Any]) -> Any:
    def call(self: Proxy, other: Any) -> Any:
        if isinstance(self, Number) and isinstance(other, Array):
            return NotImplemented  # the tensor's own reflected operator decides, as beside a real number
        return self.trace.record(func, (self, other), {})

    return call


def _reflected(func: Callable[..., Any]) -> Any:
    return lambda self, other: self.trace.record(func, (other, self), {})


def _swapped(func: Callable[..., Any]) -> Any:
    return lambda self, other: self.trace.record(func, (self, other), {})


class Proxy:
    """Stands for a value while the rule runs; whatever is done to it is recorded."""

    __slots__ = ("index", "trace")

    def __init__(self, trace: _Trace, index: int) -> None:
        self.trace, self.index = trace, index

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Proxy:
        kwargs = kwargs or {}
        first = next(a for a in (*args, *kwargs.values()) if isinstance(a, Proxy))
        return first.trace.record(func, args, kwargs)

    def _refuse(self) -> Any:
        raise Untraceable("a rule may not branch on a tensor or a live number; use ops.where.")

    __bool__ = __iter__ = __len__ = __index__ = __float__ = __int__ = _refuse
    __hash__ = object.__hash__

    __add__, __sub__, __mul__ = _forward(torch.add), _forward(torch.sub), _forward(torch.mul)
    __truediv__, __pow__ = _forward(torch.div), _forward(torch.pow)
    __gt__, __ge__, __lt__, __le__ = map(_forward, (torch.gt, torch.ge, torch.lt, torch.le))
    __eq__, __ne__ = _forward(torch.eq), _forward(torch.ne)
    __and__, __or__ = _forward(torch.bitwise_and), _forward(torch.bitwise_or)
    __xor__ = _forward(torch.bitwise_xor)
    __lshift__, __rshift__ = _forward(torch.bitwise_left_shift), _forward(torch.bitwise_right_shift)

    def __neg__(self) -> Any:
        return self.trace.record(torch.neg, (self,), {})

    def __abs__(self) -> Any:
        return self.trace.record(torch.abs, (self,), {})


class Number(Proxy):
    """A live hyperparameter, or an expression of such numbers alone."""

    __slots__ = ()

    __radd__, __rsub__, __rmul__ = _reflected(torch.add), _reflected(torch.sub), _reflected(torch.mul)
    __rtruediv__, __rpow__ = _reflected(torch.div), _reflected(torch.pow)


class Array(Proxy):
    """A tensor. Reflected operators are those of `torch.Tensor`, to the last bit."""

    __slots__ = ()

    __radd__, __rmul__ = _swapped(torch.add), _swapped(torch.mul)
    __rsub__, __rpow__ = _reflected(torch.sub), _reflected(torch.pow)

    def __rtruediv__(self, other: Any) -> Any:
        return self.trace.record(torch.reciprocal, (self,), {}) * other


class _Trace:
    """The graph as it grows."""

    def __init__(self) -> None:
        self.kinds: list[Kind] = []
        self.inputs: dict[str, int] = {}
        self.constants: dict[int, Any] = {}
        self.nodes: list[Node] = []
        self.seen: dict[Any, int] = {}

    def proxy(self, index: int) -> Proxy:
        return (Number if self.kinds[index] is Kind.HOST else Array)(self, index)

    def new(self, kind: Kind) -> int:
        self.kinds.append(kind)
        return len(self.kinds) - 1

    def input(self, name: str, kind: Kind) -> Proxy:
        self.inputs[name] = self.new(kind)
        return self.proxy(self.inputs[name])

    def value(self, x: Any) -> int:
        """The number of a value: a proxy's own, or a constant's."""
        if isinstance(x, Proxy):
            if x.trace is not self:
                raise Untraceable("a rule may not keep values from one call to the next.")
            return x.index
        if not (x is None or isinstance(x, Real)):
            raise Untraceable(f"a rule may not use the constant {x!r}.")
        key = type(x), repr(x)  # 1, 1.0 and True, 0.0 and -0.0 are equal but not the same
        if key not in self.seen:
            self.seen[key] = self.new(Kind.HOST)
            self.constants[self.seen[key]] = x
        return self.seen[key]

    def word(self, number: int) -> Proxy:
        return self.record(random_word, (Number(self, self.value(number)),), {})

    def record(self, func: Callable[..., Any], args: Iterable[Any], kwargs: Mapping[str, Any]) -> Proxy:
        operands = tuple(map(self.value, args))
        named = tuple((name, self.value(x)) for name, x in sorted(kwargs.items()))
        kinds = [self.kinds[i] for i in (*operands, *(i for _, i in named))]
        if any(self.kinds[i] is not Kind.HOST for _, i in named):
            raise Untraceable("a rule may pass numbers by keyword, not tensors.")
        op, kind = _typed(func, kinds)
        key = op, operands, named
        if key not in self.seen:
            self.seen[key] = self.new(kind)
            self.nodes.append(Node(self.seen[key], op, operands, named))
        return self.proxy(self.seen[key])

    def graph(self, outputs: Mapping[str, Any]) -> Graph:
        ends = {name: self.end(name, x) for name, x in outputs.items()}
        used = set(ends.values())
        kept = []
        for node in reversed(self.nodes):
            if node.value in used:
                used.update(node.operands)
                kept.append(node)
        return Graph(tuple(self.kinds), self.constants, self.inputs, tuple(reversed(kept)), ends)

    def end(self, name: str, x: Any) -> int:
        """The value an output ends with. What may be another input's memory is copied before it changes."""
        value = self.value(x)
        if self.kinds[value] is Kind.HOST or not (name in self.inputs or name.startswith("sum.")):
            raise Untraceable(f"a rule must return a tensor for {name!r}, and only for slots it has.")
        borrowed = {*self.inputs.values(), *(n.value for n in self.nodes if n.op is choose)}
        if value in borrowed and value != self.inputs.get(name):
            return self.record(torch.clone, (x,), {}).index
        return value


def _typed(func: Callable[..., Any], kinds: list[Kind]) -> tuple[Callable[..., Any], Kind]:
    """The operation as it will be executed, and the kind of its result."""
    if all(kind is Kind.HOST for kind in kinds) and func in ON_NUMBERS:
        return ON_NUMBERS[func], Kind.HOST
    if func is torch.where and kinds[0] is Kind.HOST:
        return choose, Kind.OTHER
    if func in REDUCTIONS:
        return func, Kind.PART
    if func is torch.clone:
        return func, Kind.OTHER
    if func in CODING:
        return func, Kind.OTHER
    if func not in ELEMENTWISE:
        raise Untraceable(f"{getattr(func, '__name__', func)} is not an operation of rules.")
    if func in COMPARISONS:
        return func, Kind.OTHER
    if func is torch.where:
        kinds = kinds[1:]
    return func, next((k for k in (Kind.FULL, Kind.PART) if k in kinds), Kind.OTHER)


def trace(rule: Rule, h: Live, slots: Iterable[str]) -> Graph:
    """One step of `rule` as a graph, for parameters that have these slots.

    Of `h` only the structure counts: which values are numbers, and what the fixed ones are. Raises
    whatever the rule raises when it is given proxies; such a rule has to be run as it is.
    """
    trace = _Trace()
    p, g = trace.input("p", Kind.FULL), trace.input("g", Kind.FULL)
    own = Slots(
        **{
            name: trace.input(f"s.{name}", Kind.PART if rule.slots[name].shape else Kind.FULL)
            for name in slots
        }
    )
    fixed = structure(rule, h)
    live = Live(
        **{name: fixed[name] if name in fixed else trace.input(f"h.{name}", Kind.HOST) for name in vars(h)}
    )
    new_p, new_slots = advance(rule, p, g, own, live)
    return trace.graph({"p": new_p, **{f"s.{name}": x for name, x in new_slots.items()}})


def trace_coded(rule: Rule, h: Live, codecs: Mapping[str, Codec], telemetry: bool) -> Graph:
    """A whole step from stored numbers to stored numbers: decode, condition, rule, apply, encode.

    codecs: of the parameter, "p", and of its slots by name. With `telemetry` the graph has the further
    outputs "sum.g", "sum.u", "sum.p" and, where the parameter's codec is lossy, "sum.lost"
    (`apply.observe`), to be summed over each tensor.
    """
    trace = _Trace()
    names = [stored_name(slot, part) for slot, codec in codecs.items() for part in codec.parts]
    stored = {name: trace.input(name, Kind.OTHER) for name in names}
    g = trace.input("g", Kind.OTHER)
    fixed = structure(rule, h)
    live = Live(
        **{name: fixed[name] if name in fixed else trace.input(f"h.{name}", Kind.HOST) for name in vars(h)}
    )
    p, slots = decode_all(codecs, stored)
    new_p, new_slots = advance(rule, p, g, slots, live)
    types = {stored_name(s, part): of.dtype for s, c in codecs.items() for part, of in c.parts.items()}
    new = {
        name: ROUND[types[name]](x) if types[name] in ROUND else x
        for name, x in encode_all(codecs, new_p, new_slots, Noise(trace.word)).items()
    }
    outputs = dict(new)
    if telemetry:
        parts = [stored_name("p", part) for part in codecs["p"].parts]
        same = [new[name] == stored[name] for name in parts]
        kept = reduce(operator.and_, same) if codecs["p"].lossy else None
        sums = observe(rule, p, new_p, g, kept, live)
        outputs |= {f"sum.{name}": x for name, x in sums.items()}
    return trace.graph(outputs)


def structure(rule: Rule, h: Live) -> dict[str, Any]:
    """The hyperparameters that shape the formula: declared fixed, or no number (None, a flag, a name)."""
    return {
        name: value
        for name, value in vars(h).items()
        if isinstance(value, bool)
        or not isinstance(value, (int, float, Real))  # the abstract class last: it takes long to ask
        or (name in rule.hyper and not rule.hyper[name].live)
    }
