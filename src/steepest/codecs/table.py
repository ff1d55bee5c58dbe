"""The codecs there are, by the names that users give, and which of them a slot can have.

A plain name is safe for any slot: where rounding to nearest would lose the small changes of an average, the
rounding is stochastic. "_rn" after a name asks for rounding to nearest, and is refused where it cannot work.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import torch

from steepest.codecs import formats
from steepest.codecs.grid import compressible
from steepest.contract import Codec, Part, Slot, SteepestError, unknown

SCALE = Part(torch.float32, "block")
BYTE = Part(torch.uint8)

_Make = Callable[[bool, bool], Codec]  # (signed, stochastic)


def _bf16(signed: bool, stochastic: bool) -> Codec:
    pair = formats.truncated() if stochastic else formats.plain()
    return Codec("bf16", {"": Part(torch.bfloat16)}, *pair, step=2.0**-8)


def _fp16(signed: bool, stochastic: bool) -> Codec:
    return Codec(
        "fp16", {"": Part(torch.float16), "scale": SCALE}, *formats.half(signed, stochastic), step=2.0**-11
    )


def _fp8(signed: bool, stochastic: bool) -> Codec:
    codes = Part(torch.int8) if signed else BYTE
    return Codec("fp8", {"": codes, "scale": SCALE}, *formats.float8(signed, stochastic), step=2.0**-4)


def _int8(signed: bool, stochastic: bool) -> Codec:
    codes = Part(torch.int8) if signed else BYTE
    pair = formats.companded(127 if signed else 255, signed, stochastic, packed=False)
    return Codec("int8", {"": codes, "scale": SCALE}, *pair, step=2.0**-7)


def _int4(signed: bool, stochastic: bool) -> Codec:
    codes = Part(torch.uint8, "pair")
    pair = formats.companded(7 if signed else 15, signed, stochastic, packed=True)
    return Codec("int4", {"": codes, "scale": SCALE}, *pair, step=2.0**-3)


SLOT_CODECS: Mapping[str, _Make] = {
    "bf16": _bf16,
    "fp16": _fp16,
    "fp8": _fp8,
    "int8": _int8,
    "int4": _int4,
}
"""Codecs of slots beside "fp32" and "factored"; each is made for a sign and a rounding."""

_FACTORED = Codec(
    "factored",
    {"row": Part(torch.float32, "row"), "column": Part(torch.float32, "column")},
    *formats.rank_one(),
)

PARAM_CODECS: Mapping[str, Codec] = {
    "bf16": Codec("bf16", {"": Part(torch.bfloat16)}, *formats.truncated()),
    "split24": Codec("split24", {"": Part(torch.bfloat16), "low": Part(torch.int8)}, *formats.split(8)),
    "split32": Codec(
        "split32", {"": Part(torch.bfloat16), "low": Part(torch.int16)}, *formats.split(16), lossy=False
    ),
    "kahan": Codec("kahan", {"": Part(torch.bfloat16), "low": Part(torch.bfloat16)}, *formats.compensated()),
}
"""Codecs of bfloat16 parameters: stochastic rounding, and masters of 24 and about 25 and of 32 bits."""

SLOT_NAMES = ("fp32", *(n + suffix for n in SLOT_CODECS for suffix in ("", "_rn")), "factored")
PARAM_NAMES = ("fp32", *PARAM_CODECS)


@cache
def _slot_codec(name: str, signed: bool) -> Codec:
    base = name.removesuffix("_rn")
    return SLOT_CODECS[base](signed, base == name)


@cache
def plain(dtype: torch.dtype) -> Codec:
    """A parameter as it is, rounded to nearest where its type is narrower than the step's."""
    name = str(dtype).removeprefix("torch.")
    return Codec(name, {"": Part(dtype)}, *formats.plain(), lossy=dtype.itemsize < 4)


def slot_codec(
    choice: str | Mapping[str, str] | None,
    name: str,
    slot: Slot,
    shape: Sequence[int],
    hyper: Mapping[str, Any],
    dtype: torch.dtype = torch.float32,
    where: str = "state",
) -> Codec:
    """The codec of one slot of a parameter of this global shape, whose step is computed in `dtype`.

    choice: a codec's name for every slot, or slot's name to codec's name; `None` is "fp32".
    hyper:  the rule's hyperparameters as `h` has them, for the decay of an average.

    What was asked for this very slot and cannot work is refused; under one name for all slots, a slot that
    has to be exact stays in float32.
    """
    named = not isinstance(choice, str)
    asked = (choice or {}).get(name, "fp32") if not isinstance(choice, str) else choice
    if asked not in SLOT_NAMES:
        raise unknown(f"codec of slot {name} in {where}", asked, SLOT_NAMES)
    exact = plain(dtype)
    if asked == "fp32":
        return exact
    if dtype != torch.float32:
        raise SteepestError(f"{where}: {asked} is for float32 and narrower parameters, not {exact.name}.")
    if slot.exact or slot.shape is not None:
        if named:
            why = "a maximum, which rounding would ratchet up" if slot.exact else "a few means already"
            raise SteepestError(f"{where}: slot {name} is {why}; leave it in fp32.")
        return exact
    if asked == "factored":
        return _factored(name, slot, shape, named, where)
    codec = _slot_codec(asked, not slot.nonnegative)
    decay = hyper.get(slot.average) if slot.average else None
    if asked.endswith("_rn") and (decay is None or 1 - decay < codec.step):
        moves = "ever smaller parts of itself" if decay is None else f"{1 - decay:.2g} of itself a step"
        raise SteepestError(
            f"{where}: slot {name} moves by {moves} and {asked} rounds away changes below {codec.step:.2g}; "
            f"use {asked.removesuffix('_rn')!r}, which rounds stochastically."
        )
    return codec if compressible(shape) else exact


def _factored(name: str, slot: Slot, shape: Sequence[int], named: bool, where: str) -> Codec:
    if not slot.nonnegative:
        if named:
            raise SteepestError(
                f"{where}: slot {name} has both signs, so the means of rows and columns say nothing about an "
                "element; factored is for second moments, try 'int8'."
            )
        raise SteepestError(
            f"{where}: factored is for second moments and slot {name} has both signs; "
            "choose slot by slot, {'m': 'int8', 'v': 'factored'}."
        )
    return _FACTORED if compressible(shape) else plain(torch.float32)


def param_codec(choice: str | None, dtype: torch.dtype, where: str = "param") -> Codec:
    """The codec of a parameter of this type; `None` and "fp32" take it as it is."""
    if choice is None:
        return plain(dtype)
    if choice not in PARAM_NAMES:
        raise unknown(f"codec of parameters in {where}", choice, PARAM_NAMES)
    if choice == "fp32":
        if dtype != torch.float32:
            raise SteepestError(
                f"{where}: param='fp32' is for float32 parameters and these are {plain(dtype).name}; leave "
                "it out, or choose 'split32' to keep a float32 master of bfloat16 parameters."
            )
        return plain(dtype)
    if dtype != torch.bfloat16:
        raise SteepestError(
            f"{where}: param={choice!r} is for bfloat16 parameters and these are {plain(dtype).name}; "
            "call model.to(torch.bfloat16) before the optimizer is made."
        )
    return PARAM_CODECS[choice]
