"""A model's numbers by name, and back into a model of the same structure."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from steepest.contract import SteepestError
from steepest.training.parts import put


def weights(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name; a tensor under two names (tied weights) counts once."""
    out: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, value in model.state_dict(keep_vars=True).items():
        if id(value) not in seen:
            seen.add(id(value))
            out[name] = value.detach()
    return out


def check_weights(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Raise unless saved numbers fit a model: the same names, shapes and types."""
    own = weights(model)
    if odd := sorted(set(own) ^ set(tensors)):
        raise SteepestError(
            f"the saved model and this one differ in {', '.join(odd[:3])}: the config or "
            "the model's code has changed; where modules have other names now, give `rename: {old: new}`."
        )
    for name, value in own.items():
        if (value.shape, value.dtype) != (tensors[name].shape, tensors[name].dtype):
            raise SteepestError(
                f"the saved {name} is {tuple(tensors[name].shape)} {tensors[name].dtype}, this model's is "
                f"{tuple(value.shape)} {value.dtype}."
            )


def load_weights(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy saved numbers into a model; that they fit is checked before anything moves."""
    check_weights(model, tensors)
    for name, value in weights(model).items():
        put(value, tensors[name])
