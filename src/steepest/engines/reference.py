"""The oracle: a loop over tensors, in plain torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from steepest.apply import advance
from steepest.contract import Rule, Slots, compute_dtype


def run(
    rule: Rule,
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    slots: Mapping[str, Sequence[Tensor]],
    h: Any,
) -> None:
    """One step of every parameter, in place. Low-precision tensors are computed in float32."""
    for i, (p, g) in enumerate(zip(params, grads, strict=True)):
        dtype = compute_dtype(p)
        own = Slots(**{name: tensors[i] for name, tensors in slots.items()})
        new_p, new_slots = advance(rule, p.to(dtype), g.to(dtype), own, h)
        p.copy_(new_p)
        for name, value in new_slots.items():
            slots[name][i].copy_(value)
