"""The formats: each a pair of pure functions between a float32 value and the numbers that are stored.

    encode(x, noise) -> {part: value}        decode(parts) -> x

Values are seen one element at a time. A part of a floating type is rounded to nearest when it is stored;
where rounding is stochastic the value arrives exactly representable. Formats with a block scale store a
value between -1 and 1, relative to the largest of its block, and the scale in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from steepest.codecs.verbs import (
    SIGN,
    UNIT,
    Noise,
    bits,
    block_max,
    column_mean,
    from_bits,
    root,
    row_mean,
    to_float,
    to_int,
    with_sign,
)
from steepest.contract import Slots
from steepest.ops import atleast, atmost, sqrt, where

Encode = Callable[[Any, Noise], Mapping[str, Any]]
Decode = Callable[[Slots], Any]
Format = tuple[Encode, Decode]

TINY = 1e-37
"""Blocks whose largest value is below this are stored as zero: its inverse has no float32."""


def plain() -> Format:
    """The value itself, rounded to nearest by its type."""
    return lambda x, noise: {"": x}, lambda s: s.codes


def truncated() -> Format:
    """bfloat16, stochastic: 16 random bits are added to what is cut off, so that the mean is exact."""

    def encode(x: Any, noise: Noise) -> Mapping[str, Any]:
        return {"": from_bits((bits(x) + noise.whole(16)) & -0x10000)}

    return encode, lambda s: s.codes


def _inverse(scale: Any) -> Any:
    return where(scale > TINY, 1 / scale, 0.0)


def half(signed: bool, stochastic: bool) -> Format:
    """float16 relative to the block. `least`, added to the magnitude, makes steps below it equal."""
    least = 2.0**-14
    floor = 0.0 if signed else 2.0**-24  # v = 0 would divide by eps

    def encode(x: Any, noise: Noise) -> Mapping[str, Any]:
        size = abs(x) if signed else x
        scale = block_max(size) * (1 / (1 - least))  # so that the largest value is exact
        y = atleast(size * _inverse(scale), floor) + least
        if stochastic:
            y = from_bits((bits(y) + noise.whole(13)) & -0x2000)
        return {"": _signed(y, x) if signed else y, "scale": scale}

    def decode(s: Slots) -> Any:
        y = abs(s.codes) * s.scale - least * s.scale
        return _signed(y, s.codes) if signed else y

    return encode, decode


def _signed(size: Any, like: Any) -> Any:
    """`size` with the sign of another number."""
    return from_bits(bits(size) | (bits(like) & SIGN))


def float8(signed: bool, stochastic: bool) -> Format:
    """Eight bits by cutting a float32 after three bits of mantissa: a sign and 16 binades below the block's
    largest value, or 32 binades without a sign. `least` makes the steps of the smallest binade equal."""
    offset = (bits(torch.tensor(1.0)).item() >> 20) - (128 if signed else 256)
    least = from_bits(torch.tensor(offset << 20, dtype=torch.int32)).item()  # a power of two
    room = 0.9375 - 2.0**-15  # the largest value is just below the largest code, and never above it
    # Without a sign zero comes back as a sixteenth of the smallest step: v = 0 would divide by eps.
    zero = least if signed else least * (1 - 2.0**-4)

    def encode(x: Any, noise: Noise) -> Mapping[str, Any]:
        size = abs(x) if signed else x
        scale = block_max(size) * (1 / room)
        b = bits(size * _inverse(scale) + least)
        b = b + (noise.whole(20) if stochastic else 0x80000)
        code = (b >> 20) - offset
        return {"": with_sign(code, bits(x)) if signed else code, "scale": scale}

    def decode(s: Slots) -> Any:
        code = abs(s.codes) if signed else s.codes
        y = from_bits((code + offset) << 20) * s.scale - zero * s.scale
        return from_bits(bits(y) | (s.codes & SIGN)) if signed else y

    return encode, decode


def companded(levels: int, signed: bool, stochastic: bool, packed: bool) -> Format:
    """Whole numbers k up to `levels`, with steps that widen with the value: (k / levels)^2, or to the fourth
    without a sign, whose root is what a rule uses. `packed` keeps the sign in bit 3, for four bits."""
    square = levels**2
    # Of the root's argument. v = 0 would divide by eps: its code is 1 at least.
    least = 2.0**-60 if signed else (1 + 2.0**-20) / square
    above = 1 + 2.0**-13 if stochastic else 1.0  # of the scale: the largest is never rounded past the last

    def encode(x: Any, noise: Noise) -> Mapping[str, Any]:
        size = abs(x) if signed else x
        scale = block_max(size) * above
        y = size * _inverse(scale)
        if stochastic:
            # k + 1 with the probability of a straight line from k^2 to (k + 1)^2: y > k^2 + u (2 k + 1) is
            # root(y - u (1 - u)) - u > k, where u (1 - u) = 1/4 - c^2 for u = 1/2 + c. To the fourth: root(y)
            # for y, and three times that, nearly.
            drawn = noise.real()
            c = drawn * (UNIT / levels * (1.0 if signed else 3**0.5))
            y = y - 0.25 / square if signed else sqrt(y) - 0.75 / square
            y = root(atleast(y + c * c, least))
            k = y * levels + (drawn * UNIT + 0.5)
        else:
            k = sqrt(atleast(y if signed else sqrt(y), least)) * levels + 0.5
        k = to_int(k)
        if signed:
            k = k | (bits(x) >> 28 & 8) if packed else with_sign(k, bits(x))
        return {"": k, "scale": scale}

    def decode(s: Slots) -> Any:
        f = to_float(s.codes & 7 if signed and packed else s.codes)
        if not signed:  # by roots: a scale by levels to the fourth may lie below float32
            half = f * f * (sqrt(s.scale) * (1 / square))
            return half * half
        scale = s.scale * (1 / square)
        if packed:
            return from_bits(bits(f * f * scale) | (s.codes & 8) << 28)
        return f * abs(f) * scale

    return encode, decode


def rank_one() -> Format:
    """Row means and column means of a matrix: exact for what Adafactor needs (arXiv:1804.04235), a lossy
    choice elsewhere. Roots come before the product: r c may lie below float32."""

    def encode(x: Any, noise: Noise) -> Mapping[str, Any]:
        return {"row": row_mean(x), "column": column_mean(x)}

    def decode(s: Slots) -> Any:
        half = sqrt(s.row / atleast(column_mean(s.row), TINY)) * sqrt(s.column)
        return half * half

    return encode, decode


def split(low_bits: int) -> Format:
    """A float32 master as a bfloat16 and what it lacks: 16 bits more are exact, with 8 the last is rounded
    stochastically."""

    def encode(x: Any, noise: Noise) -> Mapping[str, Any]:
        b = bits(x)
        high = (b + 0x8000) & -0x10000
        low = b - high
        if low_bits == 8:
            low = atmost((low + noise.whole(8)) >> 8, 127)
        return {"": from_bits(high), "low": low}

    def decode(s: Slots) -> Any:
        low = s.low << 8 if low_bits == 8 else s.low
        return from_bits(bits(s.codes) + low)

    return encode, decode


def compensated() -> Format:
    """Kahan's: a bfloat16, and the rounding error of it in another."""

    def encode(x: Any, noise: Noise) -> Mapping[str, Any]:
        b = bits(x)
        high = from_bits((b + (0x7FFF + (b >> 16 & 1))) & -0x10000)
        return {"": high, "low": x - high}

    return encode, lambda s: s.codes + s.low
