"""Reading and writing the state of torch.optim: the one table of its names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from steepest.contract import SteepestError

# slot -> torch's name. Lion, LAMB, LARS and Signum use the names of lion-pytorch, apex and timm.
NAMES: Mapping[str, Mapping[str, str]] = {
    "sgd": {"m": "momentum_buffer"},
    "lars": {"m": "momentum_buffer"},
    "signum": {"m": "momentum_buffer"},
    "rmsprop": {"v": "square_avg", "a": "grad_avg", "m": "momentum_buffer"},
    "adagrad": {"v": "sum"},
    "adam": {"m": "exp_avg", "v": "exp_avg_sq", "x": "max_exp_avg_sq"},
    "adamw": {"m": "exp_avg", "v": "exp_avg_sq", "x": "max_exp_avg_sq"},
    "lamb": {"m": "exp_avg", "v": "exp_avg_sq"},
    "lion": {"m": "exp_avg"},
    "adafactor": {"r": "row_var", "c": "col_var", "v": "variance", "m": "exp_avg"},
}
STEPLESS = {"sgd", "lars", "signum", "lion"}
"""Rules whose torch form keeps no step count; a buffer that exists means at least one step."""


def from_torch(
    rule: str, name: str, saved: Mapping[str, Any], shapes: Mapping[str, torch.Size]
) -> dict[str, Any] | None:
    """One parameter's torch.optim state in this library's names, checked against the shapes of its slots;
    None where torch keeps nothing because there was no step."""
    if rule not in NAMES:
        raise SteepestError(f"{name}: there is no torch.optim form of {rule!r} to import from.")
    out: dict[str, Any] = {"step": 1 if "step" not in saved else int(saved["step"])}
    for slot, shape in shapes.items():
        key = NAMES[rule][slot]
        value = saved.get(key)
        if value is None and rule in STEPLESS:
            return None
        if not isinstance(value, Tensor):
            raise SteepestError(
                f"{name}: the torch state has no {key!r}; it holds {', '.join(sorted(saved))}."
            )
        if value.shape != shape:
            raise SteepestError(
                f"{name}: torch's {key} has shape {tuple(value.shape)}, this parameter's {slot} "
                f"{tuple(shape)}."
            )
        out[slot] = value.detach()
    return out


def to_torch(rule: str, name: str, state: Mapping[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """One parameter's decoded state under torch.optim's names, in the parameter's type as torch keeps it."""
    if rule not in NAMES:
        raise SteepestError(f"{name}: there is no torch.optim form of {rule!r} to export to.")
    out = {NAMES[rule][slot]: t.detach().to(dtype, copy=True) for slot, t in state.items() if slot != "step"}
    if rule not in STEPLESS:
        return {"step": torch.tensor(float(state["step"])), **out}
    return out if state["step"] else dict.fromkeys(out)


def torch_group(group: Mapping[str, Any]) -> dict[str, Any]:
    """A parameter group with the keys torch.optim expects."""
    own = {"rule", "dialect", "state", "param"}
    engine = {"foreach": None, "fused": None, "capturable": False, "differentiable": False}
    return {**engine, **{key: value for key, value in group.items() if key not in own}}
