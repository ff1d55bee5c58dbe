"""The verbs of the codecs: bits, whole numbers, blocks and noise.

Like the verbs of the rules each is plain torch on tensors, and recorded when given proxies, so that one
text of a codec serves the reference engine and every kernel. Tensors here have the parameter's shape; whole
numbers are int32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch.overrides import handle_torch_function, has_torch_function

from steepest.codecs.grid import blocks, elements

F = TypeVar("F", bound=Callable[..., Any])

SIGN = -(2**31)
"""The sign bit of a float32, as int32."""


def verb(function: F) -> F:
    """Let proxies see the call instead of its body."""

    def call(x: Any, *rest: Any) -> Any:
        if has_torch_function((x, *rest)):
            return handle_torch_function(call, (x, *rest), x, *rest)
        return function(x, *rest)

    call.__name__, call.__doc__ = function.__name__, function.__doc__
    return call  # type: ignore[return-value]


@verb
def bits(x: Any) -> Any:
    """The 32 bits of a float32, as int32."""
    return x.view(torch.int32)


@verb
def from_bits(b: Any) -> Any:
    """The float32 of these 32 bits."""
    return b.view(torch.float32)


@verb
def to_int(x: Any) -> Any:
    """The whole part of a number, as int32."""
    return x.to(torch.int32)


@verb
def to_float(k: Any) -> Any:
    """A whole number as float32."""
    return k.to(torch.float32)


@verb
def to_bfloat16(x: Any) -> Any:
    """The nearest number that bfloat16 has, as float32."""
    return x.to(torch.bfloat16).to(torch.float32)


@verb
def to_float16(x: Any) -> Any:
    """The nearest number that float16 has, as float32."""
    return x.to(torch.float16).to(torch.float32)


@verb
def block_max(x: Any) -> Any:
    """The largest value in each element's block of the grid (`codecs.grid`); none may be below zero."""
    return elements(blocks(x).amax(-1), x.shape)


@verb
def row_mean(x: Any) -> Any:
    """The mean along the last dimension, which is kept with length one."""
    return x.mean(-1, keepdim=True)


@verb
def column_mean(x: Any) -> Any:
    """The mean along the last dimension but one, which is kept with length one."""
    return x.mean(-2, keepdim=True)


def mix(x: Any) -> Any:
    """32 bits scrambled: every bit of the result depends on every bit of x (lowbias32, Wellons 2018). Of a
    number, or of an array of uint64."""
    x = (x ^ x >> 16) * 0x21F0AAAD & 0xFFFFFFFF
    x = (x ^ x >> 15) * 0x735A2D97 & 0xFFFFFFFF
    return x ^ x >> 15


def tensor_key(seed: int, step: int, ordinal: Any) -> tuple[Any, Any]:
    """The two words that set apart the noise of one parameter in one step from that of all others.

    seed: the optimizer's.  step: the parameter's, from 1.  ordinal: its place among all parameters, or the
    places of many in an array of uint64.
    """
    first = mix(mix((seed + 0x9E3779B9 * step) & 0xFFFFFFFF) ^ (ordinal * 0x85EBCA6B & 0xFFFFFFFF))
    return first, mix(first + 0x9E3779B9 & 0xFFFFFFFF)


def word(index: Any, key: tuple[int, int], number: int) -> Any:
    """32 random bits (int32) for each element. index: int64, the element's place in the global tensor."""
    first, second = key
    x = ((index ^ first) & 0xFFFFFFFF) * 0x21F0AAAD + second & 0xFFFFFFFF
    x = (x ^ x >> 15 ^ (number * 0xC2B2AE35 & 0xFFFFFFFF)) * 0x735A2D97 & 0xFFFFFFFF
    x = x ^ x >> 15
    return torch.where(x >= 2**31, x - 2**32, x).to(torch.int32)


class Noise:
    """Random whole numbers for stochastic rounding, drawn in the order of the codecs that ask.

    words: the n-th word of 32 random bits of every element. One word serves several draws.
    """

    def __init__(self, words: Callable[[int], Any]) -> None:
        self.words, self.number, self.used = words, 0, 0

    def __call__(self, count: int, shift: int = 0) -> Any:
        """Uniform in [0, 2^count), shifted to the left."""
        if self.used + count > 32:
            self.number, self.used = self.number + 1, 0
        drawn, down = self.words(self.number), self.used - shift
        drawn = drawn >> down if down > 0 else drawn << -down if down else drawn
        self.used += count
        return drawn & (2**count - 1) << shift
