"""The one decision of a step: does it happen, and by what factor are the gradients scaled?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from steepest.contract import SteepestError

CLIP_EPS = 1e-6
"""Added to the norm when clipping, as `torch.nn.utils.clip_grad_norm_` does."""

ROW = 1024
"""Elements summed at a time in float32 on a CPU."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was decided about one step.

    commit:   everything moves, or not one bit does.
    norm:     global norm of the unscaled gradients.
    scale:    what every gradient is multiplied by (loss scale undone, clipped), None for 1.
    culprits: names of the parameters whose gradients are not finite.
    """

    commit: bool
    norm: float
    scale: float | None = None
    culprits: tuple[str, ...] = ()


def examine(
    names: Sequence[str],
    grads: Sequence[Tensor],
    *,
    loss_scale: float = 1.0,
    found_inf: bool = False,
    max_norm: float | None = None,
    clip_eps: float = CLIP_EPS,
) -> Verdict:
    """Decide about a step from its gradients; they are read once and left as they are."""
    norm = global_norm(grads) / loss_scale
    if found_inf or not math.isfinite(norm):
        return Verdict(False, norm, culprits=_culprits(names, grads))
    scale = 1.0 / loss_scale
    if max_norm is not None:
        scale *= min(1.0, max_norm / (norm + clip_eps)) if norm + clip_eps > 0 else 1.0
    return Verdict(True, norm, None if scale == 1.0 else scale)


def global_norm(grads: Sequence[Tensor]) -> float:
    """Euclidean norm over all gradients together; one synchronization a device.

    Finite gradients whose squares overflow float32 are summed again in float64, so that only a truly
    non-finite gradient gives a non-finite norm.
    """
    for grad in grads:
        if grad.is_sparse or grad.is_complex():
            kind = "sparse" if grad.is_sparse else "complex"
            raise SteepestError(f"a gradient is {kind}; Steepest trains dense real parameters only.")
    norm = _norm(grads, None)
    return norm if math.isfinite(norm) else _norm(grads, torch.float64)


def _norm(grads: Sequence[Tensor], dtype: torch.dtype | None) -> float:
    square = 0.0
    for device in {g.device for g in grads}:
        own = [g for g in grads if g.device == device]
        wide = dtype or (torch.float32 if any(g.dtype.itemsize < 4 for g in own) else None)
        rows, rest = _rows(own) if device.type == "cpu" else ([], own)
        parts = [torch.linalg.vector_norm(r, dim=1, dtype=wide).double() for r in rows]
        parts += [x.double().view(1) for x in torch._foreach_norm(rest, 2, dtype=wide)] if rest else []
        square += float(torch.linalg.vector_norm(torch.cat(parts))) ** 2
    return math.sqrt(square)


def _rows(grads: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Each gradient as a matrix with rows of ROW elements, and the ends and small ones that fill no row.

    On a CPU torch sums a whole tensor in one thread and one float32 accumulator a vector lane: at 40M
    elements the norm is off by 1e-3. Rows are summed by all threads, and a row's error is below 1e-7.
    """
    rows, rest = [], []
    for grad in grads:
        flat = grad.reshape(-1)
        whole = flat.numel() // ROW * ROW
        if whole:
            rows.append(flat[:whole].view(-1, ROW))
        if whole < flat.numel() or not whole:
            rest.append(flat[whole:])
    return rows, rest


def _culprits(names: Sequence[str], grads: Sequence[Tensor]) -> tuple[str, ...]:
    return tuple(
        name for name, grad in zip(names, grads, strict=True) if not bool(torch.isfinite(grad).all())
    )
