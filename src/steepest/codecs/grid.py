"""The grid of blocks. It depends on the global tensor's shape alone, so no shard and no engine moves it.

A tensor is seen as rows: the fewest trailing dimensions that hold a block, leaving at least the first
dimension to count rows (a vector is one row). Blocks of `BLOCK` elements lie inside a row, the last one of a
row may be shorter. Cutting a tensor along its first dimension therefore cuts no block.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

BLOCK = 128
"""Elements that share one scale."""

SMALLEST = 4096
"""Tensors of fewer elements are kept in float32: their state is small, their gradients matter."""

NARROWEST = 32
"""Rows shorter than this are kept in float32: their scales would cost more than a byte in eight."""


def grid(shape: Sequence[int]) -> tuple[int, int]:
    """(number of rows, elements in a row)."""
    if len(shape) < 2:
        return 1, math.prod(shape)
    first = len(shape) - 1
    while first > 1 and math.prod(shape[first:]) < BLOCK:
        first -= 1
    return math.prod(shape[:first]), math.prod(shape[first:])


def compressible(shape: Sequence[int]) -> bool:
    """Whether a tensor of this global shape is worth a lossy codec. A vector never is: it is one row, and a
    cut along its first dimension would cut blocks; vectors are a small part of any model."""
    return len(shape) > 1 and math.prod(shape) >= SMALLEST and grid(shape)[1] >= NARROWEST


def blocks(x: Tensor) -> Tensor:
    """x as (rows, blocks in a row, BLOCK), the last block of a row filled up with zeros."""
    rows, length = grid(x.shape)
    padded = torch.nn.functional.pad(x.reshape(rows, length), (0, -length % BLOCK))
    return padded.view(rows, -(-length // BLOCK), BLOCK)


def elements(scale: Tensor, shape: Sequence[int]) -> Tensor:
    """A number for every block, (rows, blocks in a row), given to every element of a tensor of this shape."""
    length = grid(shape)[1]
    return scale.repeat_interleave(BLOCK, 1)[:, :length].reshape(shape)
