"""Bytes that a step must move between memory and cores, whatever the program does; from declarations.

The parameter and every stored slot are read and written once, with all their parts (scales, remainders);
the gradient is read once. A rule that needs a number of the whole tensor reads some things again, because
a model is larger than a cache:

- LAMB: the first pass stores m and v and sums the norms, the second reads p, m and v. Where a slot is lossy
  it reads p, the gradient and the old slots instead, as the direction must not come from a rounded slot.
- LARS: the norms of p and the gradient come first.
- Adafactor: the means of the squared gradient, then the direction's rms, then the step: the gradient thrice,
  and p once more for its own rms where steps are scaled by it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from steepest.codecs import codec_bytes, param_codec, slot_codec
from steepest.contract import Scope
from steepest.lab.bench.cases import Case

AGAIN: Mapping[str, Sequence[str]] = {
    "lamb": ("p", "slots"),
    "lars": ("p", "g"),
    "adafactor": ("g", "g", "p"),
}
"""What is read again, rule by rule."""


def traffic(case: Case) -> int:
    """Bytes of one step over all the case's tensors. Raises SteepestError where the storage is refused."""
    return sum(_tensor(case, shape) for shape in case.shapes)


def state_bytes(case: Case) -> int:
    """Bytes of all slots as the codecs store them."""
    return sum(sum(_slots(case, shape)[0]) for shape in case.shapes)


def _slots(case: Case, shape: torch.Size) -> tuple[list[int], bool]:
    """Bytes of every slot of a tensor, and whether any is lossy."""
    rule, codecs = case.card.rule, []
    for name, own in rule.slots_for(shape, case.hyper).items():
        codec = slot_codec(case.storage.state, name, rule.slots[name], shape, case.live)
        codecs.append((codec_bytes(codec, own), codec.lossy))
    return [size for size, _ in codecs], any(lossy for _, lossy in codecs)


def _tensor(case: Case, shape: torch.Size) -> int:
    slots, lossy = _slots(case, shape)
    dtype = case.storage.dtype
    sizes: dict[str, Any] = {
        "p": codec_bytes(param_codec(case.storage.param, dtype), shape),
        "g": math.prod(shape) * dtype.itemsize,
        "slots": sum(slots),
    }
    once = 2 * sizes["p"] + sizes["g"] + 2 * sizes["slots"]
    if case.card.rule.scope == Scope.ELEMENT:
        return int(once)
    again = [*AGAIN[case.card.rule.name]]
    if lossy and "slots" in again:
        again.append("g")
    if not case.hyper.get("scale_parameter", True):
        again.remove("p")
    return int(once + sum(sizes[name] for name in again))
