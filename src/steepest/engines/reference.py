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
        # A rule may return what it was given (keep p in a slot): read before anything is written.
        given = [p, g, *vars(own).values()]
        new = {name: _apart(value, given) for name, value in new_slots.items()}
        p.copy_(_apart(new_p, given))
        for name, value in new.items():
            slots[name][i].copy_(value)


def _apart(value: Tensor, given: Sequence[Tensor]) -> Tensor:
    return value.clone() if any(value is t for t in given) else value
