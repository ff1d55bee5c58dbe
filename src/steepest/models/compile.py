"""torch.compile as a switch."""

from __future__ import annotations

import warnings
from functools import lru_cache

import torch
from torch import nn


def compile_model(model: nn.Module) -> nn.Module:
    """Compile the model's forward pass, in place: its class, its parameters' names and its state stay.

    Where this machine cannot compile (no C++ compiler, no Triton), a RuntimeWarning says so in one
    sentence and the model is returned as it is.
    """
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    if reason := _trouble(device.type):
        warnings.warn(
            f"torch.compile does not work here ({reason}); the model runs without it.",
            RuntimeWarning,
            stacklevel=2,
        )
        return model
    model.compile()
    return model


@lru_cache
def _trouble(kind: str) -> str:
    """Why nothing can be compiled for this kind of device, by trying; empty where it works."""
    try:
        torch.compile(lambda x: x.sin() + 1)(torch.zeros(8, device=kind))
    except Exception as error:
        lines = str(error).strip().splitlines()
        return f"{type(error).__name__}: {lines[0].rstrip('.')}" if lines else type(error).__name__
    return ""
