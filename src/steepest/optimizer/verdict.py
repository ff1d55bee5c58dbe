"""The one decision of a step: does it happen, and by what factor are the gradients scaled?"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

CLIP_EPS = 1e-6
"""Added to the norm when clipping, as `torch.nn.utils.clip_grad_norm_` does."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was decided about one step.

    commit:   everything moves, or not one bit does.
    norm:     global norm of the unscaled gradients, NaN if nothing asked for it.
    scale:    what every gradient is multiplied by (loss scale undone, clipped), None for 1.
    culprits: names of the parameters whose gradients are not finite.
    """

    commit: bool
    norm: float
    scale: float | None = None
    culprits: tuple[str, ...] = ()


def decide(
    norm: float | None,
    *,
    loss_scale: float = 1.0,
    found_inf: bool = False,
    max_norm: float | None = None,
    clip_eps: float = CLIP_EPS,
) -> Verdict:
    """Decide about a step. norm: of the gradients as they are; None is not looked at and not clipped."""
    if norm is None:
        return Verdict(not found_inf, math.nan, None if loss_scale == 1.0 else 1.0 / loss_scale)
    norm /= loss_scale
    if found_inf or not math.isfinite(norm):
        return Verdict(False, norm)
    scale = 1.0 / loss_scale
    if max_norm is not None:
        scale *= min(1.0, max_norm / (norm + clip_eps)) if norm + clip_eps > 0 else 1.0
    return Verdict(True, norm, None if scale == 1.0 else scale)


def culprits(named: Iterable[tuple[str, Tensor | None]]) -> tuple[str, ...]:
    """The names whose gradients are not finite."""
    return tuple(name for name, grad in named if grad is not None and not bool(torch.isfinite(grad).all()))
