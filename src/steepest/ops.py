"""The verbs of the rules: each one mathematical operation on one tensor.

Every verb is plain torch, so an operand may be a tensor or a proxy that records the formula
(`kernels.trace`): anything with `__torch_function__`.
A live hyperparameter is a Python number here; expressions of numbers alone stay numbers.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.overrides import handle_torch_function, has_torch_function

__all__ = [
    "add_scaled",
    "atleast",
    "atmost",
    "clip",
    "lerp",
    "mean_to",
    "norm",
    "ratio",
    "rms",
    "sign",
    "sqrt",
    "unbias",
    "where",
]


def _is_number(x: Any) -> bool:
    return isinstance(x, (int, float))


def lerp(a: Any, b: Any, weight: Any) -> Any:
    """a + weight (b - a): one step of an exponential moving average with decay 1 - weight."""
    return torch.lerp(a, b, weight)


def add_scaled(a: Any, b: Any, scale: Any) -> Any:
    """a + scale b."""
    return torch.add(a, b, alpha=scale)


def sqrt(x: Any) -> Any:
    """Square root, of a tensor or a number."""
    return math.sqrt(x) if _is_number(x) else torch.sqrt(x)


def sign(x: Any) -> Any:
    """-1, 0 or 1; the sign of zero is zero."""
    return torch.sign(x)


def unbias(x: Any, beta: Any, t: Any) -> Any:
    """Undo the pull to zero of an average with decay `beta` after `t` steps: x / (1 - beta^t)."""
    return x / (1 - beta**t)


def norm(x: Any) -> Any:
    """Euclidean norm of the whole tensor, one number."""
    return torch.linalg.vector_norm(x)


def rms(x: Any) -> Any:
    """Root mean square of the whole tensor, one number."""
    return torch.sqrt(torch.mean(x * x))


def mean_to(x: Any, like: Any) -> Any:
    """x averaged along every dimension in which `like` has length one: row means, column means."""
    if has_torch_function((x, like)):
        return handle_torch_function(mean_to, (x, like), x, like)
    return torch.mean(x, [i for i, n in enumerate(like.shape) if n == 1], keepdim=True)


def ratio(a: Any, b: Any) -> Any:
    """a / b where both are positive, else 1: the trust ratio of two norms."""
    return torch.where((a > 0) & (b > 0), a / b, 1.0)


def atleast(x: Any, low: Any) -> Any:
    """max(x, low), with `low` a number."""
    return max(x, low) if _is_number(x) and _is_number(low) else torch.clamp(x, min=low)


def atmost(x: Any, high: Any) -> Any:
    """min(x, high), with `high` a number."""
    return min(x, high) if _is_number(x) and _is_number(high) else torch.clamp(x, max=high)


def clip(x: Any, low: Any, high: Any) -> Any:
    """x held between two numbers."""
    return torch.clamp(x, low, high)


def where(condition: Any, a: Any, b: Any) -> Any:
    """a where the condition holds, else b; a condition on live numbers chooses between whole operands."""
    if isinstance(condition, bool):
        return a if condition else b
    return torch.where(condition, a, b)
