"""How vectors and numbers are written."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

from steepest.kernels.graph import Type

if TYPE_CHECKING:
    from steepest.kernels.llvm.printer import Printer


def wide(kind: str, width: int) -> str:
    """The type of so many of a kind."""
    return kind if width == 1 else f"<{width} x {kind}>"


def literal(x: Any, type: Type, width: int) -> str:
    """A number in an instruction on values of this type. Floats are written by their bits, rounded once."""
    if type is Type.FLOAT:
        bits = struct.unpack("<Q", struct.pack("<d", struct.unpack("<f", struct.pack("<f", float(x)))[0]))[0]
        text = f"0x{bits:016X}"
    else:
        text = str(int(x)) if type is Type.INT else str(bool(x)).lower()
    return text if width == 1 else f"splat ({type.value} {text})"


def splat(kind: str, x: int) -> str:
    """A whole number in a vector of another kind."""
    return f"splat ({kind} {x})"


def some(p: Printer, x: str, kind: str, width: int, first: int, count: int) -> str:
    """So many elements of a vector of another width, from the first on."""
    of, places = wide(kind, width), ", ".join(f"i32 {first + i}" for i in range(count))
    return p.let(f"shufflevector {of} {x}, {of} poison, <{count} x i32> <{places}>")


def joined(p: Printer, parts: list[str], kind: str, width: int) -> str:
    """One vector of 1, 2, 4, ... vectors of a width."""
    while len(parts) > 1:
        of, places = wide(kind, width), ", ".join(f"i32 {i}" for i in range(2 * width))
        pairs = zip(parts[::2], parts[1::2], strict=True)
        parts = [p.let(f"shufflevector {of} {a}, {of} {b}, <{2 * width} x i32> <{places}>") for a, b in pairs]
        width *= 2
    return parts[0]
