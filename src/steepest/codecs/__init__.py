"""How slots and parameters are stored: formats, their names, the grid of blocks, packing.

A codec knows nothing of rules; any slot of any rule can have any codec, or is refused with the reason.
"""

from steepest.codecs.grid import BLOCK, compressible, grid
from steepest.codecs.storage import codec_bytes, pack, part_shape, unpack
from steepest.codecs.table import (
    PARAM_CODECS,
    PARAM_NAMES,
    SLOT_CODECS,
    SLOT_NAMES,
    param_codec,
    plain,
    slot_codec,
)
from steepest.codecs.verbs import STRIDE, Middle, Noise, multiplier, tensor_key, word
from steepest.codecs.whole import decode, decode_all, encode_all, stored_name

__all__ = [
    "BLOCK",
    "PARAM_CODECS",
    "PARAM_NAMES",
    "SLOT_CODECS",
    "SLOT_NAMES",
    "STRIDE",
    "Middle",
    "Noise",
    "codec_bytes",
    "compressible",
    "decode",
    "decode_all",
    "encode_all",
    "grid",
    "multiplier",
    "pack",
    "param_codec",
    "part_shape",
    "plain",
    "slot_codec",
    "stored_name",
    "tensor_key",
    "unpack",
    "word",
]
