"""From values to stored tensors and back, exactly: shapes, bytes, packing.

A value has the parameter's shape. What is stored once a block is the same in all elements of the block, and
what is stored in pairs is two values of four bits: packing drops the repetition, unpacking restores it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from steepest.codecs.grid import BLOCK, elements, grid
from steepest.contract import Codec, Part


def part_shape(part: Part, shape: Sequence[int]) -> tuple[int, ...]:
    """The shape of the stored tensor for a value of this shape."""
    rows, length = grid(shape)
    match part.per:
        case "pair":
            return rows, (length + 1) // 2
        case "block":
            return rows, -(-length // BLOCK)
        case "row":
            return (*shape[:-1], 1)
        case "column":
            return (*shape[:-2], 1, shape[-1])
    return tuple(shape)


def codec_bytes(codec: Codec, shape: Sequence[int]) -> int:
    """Bytes of everything the codec stores for a value of this shape."""
    return sum(math.prod(part_shape(p, shape)) * p.dtype.itemsize for p in codec.parts.values())


def pack(value: Tensor, part: Part, shape: Sequence[int]) -> Tensor:
    """The stored form of a value of this shape."""
    rows, length = grid(shape)
    if part.per == "block":
        value = value.reshape(rows, length)[:, ::BLOCK]
    elif part.per == "pair":
        nibbles = torch.nn.functional.pad(value.reshape(rows, length), (0, length % 2))
        nibbles = nibbles.view(rows, (length + 1) // 2, 2)
        value = nibbles[..., 0] | nibbles[..., 1] << 4
    return value.to(part.dtype).contiguous()


def unpack(stored: Tensor, part: Part, shape: Sequence[int]) -> Tensor:
    """The value that was packed: float32 for a narrower floating type, int32 for whole numbers."""
    least = torch.float32 if stored.is_floating_point() else torch.int32
    wide = stored.to(torch.promote_types(stored.dtype, least))
    if part.per == "block":
        return elements(wide, shape)
    if part.per == "pair":
        length = grid(shape)[1]
        return torch.stack((wide & 15, wide >> 4), -1).flatten(1)[:, :length].reshape(shape)
    return wide
