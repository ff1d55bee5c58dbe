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
def with_sign(k: Any, like: Any) -> Any:
    """A whole number that is not below zero, with the sign of another."""
    return torch.where(like < 0, -k, k)


@verb
def root(x: Any) -> Any:
    """The square root of a finite number, but for its last two bits: kernels may begin with an estimate."""
    return x.sqrt()


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


STRIDE = 0x85EBCA6B
"""From the hash of one element to that of the next, before they are mixed."""


def multiplier(number: int) -> int:
    """What makes the n-th word of an element from its hash: odd, so that no two hashes become the same."""
    return (0x735A2D97 + 2 * number * 0x9E3779B9) & 0xFFFFFFFF


def word(index: Any, key: tuple[int, int], number: int) -> Any:
    """A random int32 for each element, of which the upper bits are to be used: a product's lower bits know
    nothing of its factors' upper ones. index: int64, the element's place in the global tensor.

    It is a step of `mix` between two products, of which the first is a sum from one element to the next: five
    instructions an element, and one more for each further word.
    """
    first, second = key
    x = (index * STRIDE + first) & 0xFFFFFFFF
    x = (x ^ x >> 15 ^ second) * multiplier(number) & 0xFFFFFFFF
    return torch.where(x >= 2**31, x - 2**32, x).to(torch.int32)


UNIT = 2.0**-32 - 2.0**-50
"""Of `Noise.real`: it stays 2e-6 from either end, which is more than what is added to it is rounded by."""


class Noise:
    """Random numbers for stochastic rounding, drawn in the order of the codecs that ask.

    words: the n-th random word of every element; each draw takes one.
    """

    def __init__(self, words: Callable[[int], Any]) -> None:
        self.words, self.drawn = words, 0

    def _word(self) -> Any:
        self.drawn += 1
        return self.words(self.drawn - 1)

    def whole(self, count: int) -> Any:
        """Uniform among the whole numbers below 2^count."""
        return self._word() >> 32 - count & 2**count - 1

    def real(self) -> Any:
        """Uniform between -1/2 and 1/2, once multiplied by UNIT."""
        return to_float(self._word())


class Middle(Noise):
    """The middle of whatever might be drawn: rounding to nearest, where no step is taken."""

    def __init__(self) -> None:
        pass

    def whole(self, count: int) -> int:
        return 1 << (count - 1)

    def real(self) -> float:
        return 0.0
