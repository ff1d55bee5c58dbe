"""What is remembered: allocation, and the checks that stand before any loading."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from steepest.contract import Rule, SteepestError, compute_dtype

VERSION = 1


def allocate(rule: Rule, p: Tensor, group: Mapping[str, Any]) -> dict[str, Any]:
    """A parameter's slots at their starting values, and its step count."""
    state: dict[str, Any] = {"step": 0}
    for name, shape in rule.slots_for(p.shape, group).items():
        start = rule.slots[name].init
        value = group[start] if isinstance(start, str) else start
        like: dict[str, Any] = {"dtype": compute_dtype(p), "device": p.device}
        state[name] = (
            torch.full_like(p, value, memory_format=torch.preserve_format, **like)
            if shape == p.shape
            else torch.full(shape, value, **like)
        )
    return state


def slots_of(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a parameter's state, without its step count."""
    return {name: value for name, value in state.items() if name != "step"}


def order_of(saved: Mapping[str, Any], own: Mapping[str, Any], where: str) -> list[int]:
    """For each own parameter of a group, its position in the saved one: by name if both have names."""
    theirs, ours = saved.get("param_names"), own.get("param_names")
    if len(saved["params"]) != len(own["params"]):
        raise SteepestError(
            f"{where}: the saved state has {len(saved['params'])} parameters, "
            f"this optimizer {len(own['params'])}."
        )
    if theirs is None or ours is None:
        return list(range(len(own["params"])))
    missing = [name for name in ours if name not in theirs]
    if missing:
        extra = [name for name in theirs if name not in ours]
        raise SteepestError(
            f"{where}: the saved state has no parameter {missing[0]!r}; it has {extra[0]!r} instead."
        )
    return [list(theirs).index(name) for name in ours]


def compare(name: str, saved: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Raise, naming both sides, unless a saved parameter state fits: same slots, shapes and types."""
    if set(saved) != set(own):
        raise SteepestError(
            f"{name}: the saved state holds {_list(saved)}, this optimizer keeps {_list(own)}; "
            "build it with the rule and options it was saved with."
        )
    for slot, tensor in slots_of(own).items():
        other = saved[slot]
        if not isinstance(other, Tensor) or other.shape != tensor.shape or other.dtype != tensor.dtype:
            raise SteepestError(
                f"{name}: saved slot {slot} is {_describe(other)}, this optimizer's is {_describe(tensor)}."
            )


def _list(state: Mapping[str, Any]) -> str:
    return ", ".join(sorted(state)) or "nothing"


def _describe(value: Any) -> str:
    if not isinstance(value, Tensor):
        return repr(value)
    return f"{'x'.join(map(str, value.shape)) or 'scalar'} {str(value.dtype).removeprefix('torch.')}"
