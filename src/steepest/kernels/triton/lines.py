"""One instruction of a value as text of Triton; shapes broadcast by themselves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from steepest.codecs import STRIDE, multiplier
from steepest.kernels.graph import Domain, Type, Value
from steepest.kernels.trace import Untraceable

if TYPE_CHECKING:
    from steepest.kernels.triton.text import Text

PLAIN: Mapping[str, str] = {
    "add": "{0} + {1}",
    "sub": "{0} - {1}",
    "mul": "{0} * {1}",
    "div": "tl.div_rn({0}, {1})",
    "neg": "-{0}",
    "abs": "tl.abs({0})",
    "sqrt": "tl.sqrt_rn({0})",
    "root": "tl.sqrt({0})",
    "exp": "tl.exp({0})",
    "log": "tl.log({0})",
    "tanh": "device.tanh({0})",
    "minimum": "tl.where(({0} < {1}) | ({0} != {0}), {0}, {1})",
    "maximum": "tl.where(({0} > {1}) | ({0} != {0}), {0}, {1})",
    "iadd": "tl.add({0}, {1}, sanitize_overflow=False)",
    "isub": "tl.sub({0}, {1}, sanitize_overflow=False)",
    "imul": "tl.mul({0}, {1}, sanitize_overflow=False)",
    "and": "{0} & {1}",
    "or": "{0} | {1}",
    "xor": "{0} ^ {1}",
    "iabs": "tl.abs({0})",
    "with_sign": "tl.where({1} < 0, -{0}, {0})",
    "shl": "{0} << {1}",
    "shr": "{0} >> {1}",
    "band": "{0} & {1}",
    "bor": "{0} | {1}",
    "atleast": "tl.where({0} < {1}, {1}, {0})",
    "atmost": "tl.where({0} > {1}, {1}, {0})",
    "iatleast": "tl.where({0} < {1}, {1}, {0})",
    "iatmost": "tl.where({0} > {1}, {1}, {0})",
}
"""Operands of the result's type. Division and root round as the standard says; whole numbers wrap around;
bounds let NaN pass, as torch.clamp."""

CASTS: Mapping[str, tuple[str, Type]] = {
    "bits": ("device.bits({0})", Type.FLOAT),
    "from_bits": ("device.from_bits({0})", Type.INT),
    "to_int": ("{0}.to(tl.int32)", Type.FLOAT),
    "to_float": ("{0}.to(tl.float32)", Type.INT),
    "round_bf16": ("device.round_bf16({0})", Type.FLOAT),
    "round_f16": ("{0}.to(tl.float16).to(tl.float32)", Type.FLOAT),
}
COMPARE: Mapping[str, str] = {"gt": ">", "ge": ">=", "lt": "<", "le": "<=", "eq": "==", "ne": "!="}


def instruction(text: Text, v: Value) -> str:
    """The expression that computes `v` from its operands."""
    if v.op in PLAIN:
        return PLAIN[v.op].format(*(text.use(a, v.type) for a in v.args))
    if v.op in CASTS:
        form, given = CASTS[v.op]
        return form.format(text.use(v.args[0], given))
    if v.op in COMPARE:
        types = [text.values[a].type for a in v.args if text.values[a].op != "literal"]
        kind = Type.INT if Type.INT in types else Type.FLOAT
        a, b = (text.use(x, kind) for x in v.args)
        return f"{a} {COMPARE[v.op]} {b}"
    if v.op == "pow":
        return _power(text, v)
    if v.op == "select":
        return _select(text, v)
    if v.op == "random":
        return f"device.word(place, key0, key1, {STRIDE}, {multiplier(v.attr)})"
    raise Untraceable(f"the GPU printer has no instruction for {v.op}.")


def _power(text: Text, v: Value) -> str:
    x, y = (text.use(a, Type.FLOAT) for a in v.args)
    if y == "2.0":
        return f"{x} * {x}"
    full = [f"tl.full((), {text.use(a, Type.FLOAT)}, tl.float32)" for a in v.args]
    x, y = (f if text.values[a].op == "literal" else o for a, f, o in zip(v.args, full, (x, y), strict=True))
    return f"device.power({x}, {y}).to(tl.float32)"


def _select(text: Text, v: Value) -> str:
    condition = text.values[v.args[0]]
    a, b = (text.use(x, v.type) for x in v.args[1:])
    if condition.op == "literal":
        return a if condition.attr else b
    return f"tl.where({text.use(v.args[0], Type.BOOL)}, {a}, {b})"


def computed(v: Value) -> bool:
    """Whether a value is computed where it is needed, and not loaded or written in place."""
    return v.op not in ("literal", "host", "input", "sum", "block_max") and v.domain is not Domain.HOST
