"""What x86 has instructions for and LLVM does not find: roots from an estimate, and, with AVX2, 32 numbers to
bytes. For AVX-512 LLVM packs bytes as well."""

from __future__ import annotations

from typing import TYPE_CHECKING

from steepest.kernels.graph import Type
from steepest.kernels.llvm.text import joined, literal, some, wide

if TYPE_CHECKING:
    from steepest.kernels.llvm.printer import Printer

AVX2, AVX512 = 8, 16
"""Numbers of 32 bits in a register."""
BYTES = 4 * AVX2
"""Numbers of eight bits in one of AVX2's."""
ALL = ", <16 x float> poison, i16 -1"
"""AVX-512 can leave elements as they were in another register; here, none."""

ESTIMATE = {
    AVX2: ("@llvm.x86.avx.rsqrt.ps.256", "<8 x float>", ""),
    AVX512: ("@llvm.x86.avx512.rsqrt14.ps.512", "<16 x float>, <16 x float>, i16", ALL),
}
"""By register: what estimates one over a root (to 3e-4, to 6e-5 of it), its arguments, and what follows the
numbers."""


def to_bytes(p: Printer, x: str, unsigned: bool) -> str:
    """32 numbers of 32 bits as bytes. One that no byte can hold becomes the nearest that one can."""
    words, octets = ("packusdw", "packuswb") if unsigned else ("packssdw", "packsswb")
    parts = [some(p, x, "i32", BYTES, first, AVX2) for first in range(0, BYTES, AVX2)]
    low, high = (_pack(p, words, "i32", *parts[i : i + 2]) for i in (0, 2))
    both = _pack(p, octets, "i16", low, high)
    # Either half of a register was packed by itself: groups of four bytes are in the order 0 2 4 6 1 3 5 7.
    of, order = wide("i32", AVX2), ", ".join(f"i32 {i // 2 + i % 2 * 4}" for i in range(AVX2))
    both = p.let(f"bitcast {wide('i8', BYTES)} {both} to {of}")
    both = p.let(f"shufflevector {of} {both}, {of} poison, <{AVX2} x i32> <{order}>")
    return p.let(f"bitcast {of} {both} to {wide('i8', BYTES)}")


def _pack(p: Printer, name: str, kind: str, a: str, b: str) -> str:
    bits = int(kind[1:])
    given, made = wide(kind, 256 // bits), wide(f"i{bits // 2}", 512 // bits)
    p.declare(f"{made} @llvm.x86.avx2.{name}({given}, {given})")
    return p.let(f"call {made} @llvm.x86.avx2.{name}({given} {a}, {given} {b})")


def signed_bytes(p: Printer, k: str, like: str) -> str:
    """32 numbers as bytes with the signs of 32 others; 0 where the other is 0."""
    of = wide("i8", BYTES)
    a, b = to_bytes(p, k, False), to_bytes(p, like, False)
    p.declare(f"{of} @llvm.x86.avx2.psign.b({of}, {of})")
    return p.let(f"call {of} @llvm.x86.avx2.psign.b({of} {a}, {of} {b})")


def root(p: Printer, x: str, width: int) -> str:
    """The square root of normal numbers, to 2e-7 of it: an estimate, and a step of Newton's. A single number
    goes the same way as many, so that it comes out the same."""
    lanes = p.layout.x86
    if width == 1:
        many = root(p, p.repeated(x, "float", lanes), lanes)
        return p.let(f"extractelement {wide('float', lanes)} {many}, i32 0")
    part, (name, kinds, further) = wide("float", lanes), ESTIMATE[lanes]
    p.declare(f"{part} {name}({kinds})")
    parts = [some(p, x, "float", width, first, lanes) for first in range(0, width, lanes)]
    parts = [p.let(f"call {part} {name}({part} {own}{further})") for own in parts]
    of, r = wide("float", width), joined(p, parts, "float", lanes)
    one, half = (literal(number, Type.FLOAT, width) for number in (1.0, 0.5))
    y = p.let(f"fmul contract {of} {x}, {r}")
    error = p.let(f"fsub contract {of} {one}, {p.let(f'fmul contract {of} {y}, {r}')}")
    step = p.let(f"fmul contract {of} {p.let(f'fmul contract {of} {y}, {half}')}, {error}")
    return p.let(f"fadd contract {of} {y}, {step}")
