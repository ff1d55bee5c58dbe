"""A parameter and all its slots, from what is stored to values and back; on tensors and proxies alike."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from steepest.codecs.verbs import Noise
from steepest.contract import Codec, Slots


def stored_name(slot: str, part: str) -> str:
    """The name of a stored tensor: "m", "m.scale", "p", "p.low"."""
    return f"{slot}.{part}" if part else slot


def decode(codec: Codec, slot: str, stored: Mapping[str, Any]) -> Any:
    """The value of one slot from its unpacked parts."""
    return codec.decode(Slots(**{part or "codes": stored[stored_name(slot, part)] for part in codec.parts}))


def decode_all(codecs: Mapping[str, Codec], stored: Mapping[str, Any]) -> tuple[Any, Slots]:
    """The parameter and its slots. codecs: by slot, "p" for the parameter.  stored: unpacked, by name."""
    slots = {slot: decode(codec, slot, stored) for slot, codec in codecs.items() if slot != "p"}
    return decode(codecs["p"], "p", stored), Slots(**slots)


def encode_all(codecs: Mapping[str, Codec], p: Any, slots: Mapping[str, Any], noise: Noise) -> dict[str, Any]:
    """What is to be stored, by name and not yet packed; noise is drawn for the parameter first.

    slots: the new values; a slot that a rule leaves alone is missing, and so are its stored tensors here.
    """
    values = {"p": p, **slots}
    return {
        stored_name(slot, part): value
        for slot in ("p", *(s for s in codecs if s in slots))
        for part, value in codecs[slot].encode(values[slot], noise).items()
    }
