"""One instruction of a value as text of LLVM, for one element or for a vector of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from steepest.codecs import STRIDE, multiplier
from steepest.kernels.graph import Type, Value
from steepest.kernels.llvm import x86
from steepest.kernels.llvm.text import literal, wide
from steepest.kernels.trace import Untraceable

if TYPE_CHECKING:
    from steepest.kernels.llvm.printer import Printer


BINARY = {
    "add": "fadd contract",
    "sub": "fsub contract",
    "mul": "fmul contract",
    "div": "fdiv",
    "iadd": "add",
    "isub": "sub",
    "imul": "mul",
    "and": "and",
    "or": "or",
    "xor": "xor",
    "shl": "shl",
    "shr": "ashr",
    "band": "and",
    "bor": "or",
}
"""contract: a product and a sum may become one instruction, rounded once."""
INTRINSIC = {
    **{"abs": "fabs", "sqrt": "sqrt", "root": "sqrt"},
    **{"exp": "exp", "log": "log", "tanh": "tanh", "pow": "pow"},
}
COMPARE = {"gt": ("ogt", "sgt"), "ge": ("oge", "sge"), "lt": ("olt", "slt"), "le": ("ole", "sle")}
EQUAL = {"eq": ("oeq", "eq"), "ne": ("une", "ne")}


def instruction(p: Printer, i: int, v: Value, width: int) -> str:
    """Print what computes `v`, and return its name."""
    if v.op in COMPARE or v.op in EQUAL:
        return _compare(p, v, width)
    if v.op in SPECIAL:
        return SPECIAL[v.op](p, v, width)
    of = wide(v.type.value, width)
    args = [p.use(a, width, v.type) for a in v.args]
    if v.op in BINARY:
        return p.let(f"{BINARY[v.op]} {of} {args[0]}, {args[1]}")
    if v.op == "root" and p.layout.x86 and p.divides:
        return x86.root(p, args[0], width)
    if v.op in INTRINSIC:
        return _intrinsic(p, INTRINSIC[v.op], of, args, width)
    raise Untraceable(f"the CPU printer has no instruction for {v.op}.")


def _intrinsic(p: Printer, name: str, of: str, args: list[str], width: int) -> str:
    suffix = "f32" if width == 1 else f"v{width}f32"
    called = f"@llvm.{name}.{suffix}"
    p.declare(f"{of} {called}({', '.join([of] * len(args))})")
    return p.let(f"call {of} {called}({', '.join(f'{of} {a}' for a in args)})")


def _compare(p: Printer, v: Value, width: int) -> str:
    types = [p.values[a].type for a in v.args if p.values[a].op != "literal"]
    whole = Type.INT in types
    kind = Type.INT if whole else Type.FLOAT
    a, b = (p.use(x, width, kind) for x in v.args)
    name = {**COMPARE, **EQUAL}[v.op][whole]
    return p.let(f"{'icmp' if whole else 'fcmp'} {name} {wide(kind.value, width)} {a}, {b}")


def _select(p: Printer, v: Value, width: int) -> str:
    c = p.values[v.args[0]]
    if v.args[0] in p.chosen:
        return p.use(v.args[1], width, v.type)
    single = c.op == "literal" or c.domain.value == 0  # one condition chooses whole vectors
    condition = p.use(v.args[0], 1 if single else width, Type.BOOL)
    of = wide(v.type.value, width)
    a, b = (p.use(x, width, v.type) for x in v.args[1:])
    return p.let(f"select {wide('i1', 1 if single else width)} {condition}, {of} {a}, {of} {b}")


def _bound(compare: str) -> Callable[[Printer, Value, int], str]:
    """x, or the bound where x is beyond it; NaN stays NaN, as in torch.clamp."""

    def text(p: Printer, v: Value, width: int) -> str:
        of, (x, bound) = wide(v.type.value, width), [p.use(a, width, v.type) for a in v.args]
        beyond = p.let(f"{compare} {of} {x}, {bound}")
        return p.let(f"select {wide('i1', width)} {beyond}, {of} {bound}, {of} {x}")

    return text


def _extremum(compare: str) -> Callable[[Printer, Value, int], str]:
    """The larger or the smaller of two; NaN if either is."""

    def text(p: Printer, v: Value, width: int) -> str:
        of, (a, b) = wide("float", width), [p.use(x, width, Type.FLOAT) for x in v.args]
        first = p.let(f"fcmp {compare} {of} {a}, {b}")
        chosen = p.let(f"select {wide('i1', width)} {first}, {of} {a}, {of} {b}")
        nan = p.let(f"fcmp uno {of} {b}, {b}")
        return p.let(f"select {wide('i1', width)} {nan}, {of} {b}, {of} {chosen}")

    return text


def _cast(text: str, given: Type) -> Callable[[Printer, Value, int], str]:
    def cast(p: Printer, v: Value, width: int) -> str:
        x = p.use(v.args[0], width, given)
        return p.let(f"{text} {wide(given.value, width)} {x} to {wide(v.type.value, width)}")

    return cast


def _neg(p: Printer, v: Value, width: int) -> str:
    return p.let(f"fneg {wide('float', width)} {p.use(v.args[0], width, Type.FLOAT)}")


def _round_bf16(p: Printer, v: Value, width: int) -> str:
    """To nearest, ties to even, by adding just below half of what is cut off; NaN stays NaN."""
    of, ints = wide("float", width), wide("i32", width)
    x = p.use(v.args[0], width, Type.FLOAT)

    def number(n: int) -> str:
        return literal(n, Type.INT, width)

    b = p.let(f"bitcast {of} {x} to {ints}")
    odd = p.let(f"and {ints} {p.let(f'lshr {ints} {b}, {number(16)}')}, {number(1)}")
    up = p.let(f"add {ints} {p.let(f'add {ints} {b}, {odd}')}, {number(0x7FFF)}")
    cut = p.let(f"bitcast {ints} {p.let(f'and {ints} {up}, {number(-0x10000)}')} to {of}")
    nan = p.let(f"fcmp uno {of} {x}, {x}")
    quiet = p.let(f"bitcast {ints} {number(0x7FC00000)} to {of}")
    return p.let(f"select {wide('i1', width)} {nan}, {of} {quiet}, {of} {cut}")


def _round_f16(p: Printer, v: Value, width: int) -> str:
    of, half = wide("float", width), wide("half", width)
    narrow = p.let(f"fptrunc {of} {p.use(v.args[0], width, Type.FLOAT)} to {half}")
    return p.let(f"fpext {half} {narrow} to {of}")


def _iabs(p: Printer, v: Value, width: int) -> str:
    of = wide("i32", width)
    called = f"@llvm.abs.{'i32' if width == 1 else f'v{width}i32'}"
    p.declare(f"{of} {called}({of}, i1)")
    return p.let(f"call {of} {called}({of} {p.use(v.args[0], width, Type.INT)}, i1 false)")


def _with_sign(p: Printer, v: Value, width: int) -> str:
    of, (k, like) = wide("i32", width), [p.use(a, width, Type.INT) for a in v.args]
    below = p.let(f"ashr {of} {like}, {literal(31, Type.INT, width)}")
    return p.let(f"sub {of} {p.let(f'xor {of} {k}, {below}')}, {below}")


def _random(p: Printer, v: Value, width: int) -> str:
    """The text of `codecs.verbs.word`; the first product is computed once a vector."""
    of = wide("i32", width)

    def number(n: int) -> str:
        return literal(n - 2**32 if n >= 2**31 else n, Type.INT, width)

    x = p.let(f"mul i32 {p.place()}, {STRIDE - 2**32}")
    x = p.let(f"add i32 {x}, {p.key(0, 1)}")
    if width > 1:
        strides = ", ".join(f"i32 {i * STRIDE & 0xFFFFFFFF}" for i in range(width))
        x = p.let(f"add {of} {p.repeated(x, 'i32', width)}, <{strides}>")
    x = p.let(f"xor {of} {x}, {p.let(f'lshr {of} {x}, {number(15)}')}")
    x = p.let(f"xor {of} {x}, {p.key(1, width)}")
    return p.let(f"mul {of} {x}, {number(multiplier(v.attr))}")


SPECIAL: Mapping[str, Callable[[Printer, Value, int], str]] = {
    "select": _select,
    "atleast": _bound("fcmp olt"),
    "atmost": _bound("fcmp ogt"),
    "iatleast": _bound("icmp slt"),
    "iatmost": _bound("icmp sgt"),
    "minimum": _extremum("ult"),
    "maximum": _extremum("ugt"),
    "neg": _neg,
    "iabs": _iabs,
    "with_sign": _with_sign,
    "bits": _cast("bitcast", Type.FLOAT),
    "from_bits": _cast("bitcast", Type.INT),
    "to_int": _cast("fptosi", Type.FLOAT),
    "to_float": _cast("sitofp", Type.INT),
    "round_bf16": _round_bf16,
    "round_f16": _round_f16,
    "random": _random,
}
