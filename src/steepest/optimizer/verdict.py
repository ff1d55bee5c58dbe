"""The one decision of a step: does it happen, and by what factors are gradients and learning rate scaled?"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from steepest.contract import SteepestError

CLIP_EPS = 1e-6
"""Added to the norm when clipping, as `torch.nn.utils.clip_grad_norm_` does."""

NON_FINITE = "non-finite gradient"
LOSS_SCALE = "loss scale"
"""Why a step was vetoed: by a gradient, or by what `found_inf` says (the scaler's own check, or the loss)."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a judge, asked with the gradients' norm, says about one step.

    commit:   False vetoes it, and `why` says why.
    max_norm: a threshold of clipping for this step; the optimizer's own holds where it is lower.
    rate:     a factor on the learning rate of every group, for this step only.
    """

    commit: bool = True
    why: str = ""
    max_norm: float | None = None
    rate: float = 1.0

    def check(self) -> None:
        """Raise for numbers that no step can be taken with."""
        if self.max_norm is not None and not self.max_norm > 0:
            raise SteepestError(f"the judge said max_norm={self.max_norm!r}; it must be above 0, or None.")
        if not 0 <= self.rate < math.inf:
            raise SteepestError(f"the judge said rate={self.rate!r}; it must be a finite number, at least 0.")


Judge: TypeAlias = Callable[[float], Judgement]
"""From the global norm of the unscaled gradients, which may be NaN or infinite, to a judgement."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was decided about one step.

    commit:   everything moves, or not one bit does.
    norm:     global norm of the unscaled gradients, NaN if nothing asked for it.
    scale:    what every gradient is multiplied by (loss scale undone, clipped), None for 1.
    culprits: names of the parameters whose gradients are not finite.
    why:      of a veto: "non-finite gradient", "loss scale", or the judge's words.
    rate:     what every learning rate is multiplied by.
    """

    commit: bool
    norm: float
    scale: float | None = None
    culprits: tuple[str, ...] = ()
    why: str = ""
    rate: float = 1.0


def decide(
    norm: float | None,
    *,
    loss_scale: float = 1.0,
    found_inf: bool = False,
    max_norm: float | None = None,
    clip_eps: float = CLIP_EPS,
    judge: Judge | None = None,
) -> Verdict:
    """Decide about a step. norm: of the gradients as they are; None is not looked at and not clipped, and
    there is no judge then."""
    scale = 1.0 / loss_scale
    if norm is None:
        why = LOSS_SCALE if found_inf else ""
        return Verdict(not found_inf, math.nan, None if scale == 1.0 else scale, why=why)
    norm /= loss_scale
    said = _ask(judge, norm)
    if not math.isfinite(norm):
        return Verdict(False, norm, why=NON_FINITE)
    if found_inf or not said.commit:
        return Verdict(False, norm, why=LOSS_SCALE if said.commit else said.why or "the judge's veto")
    limits = [limit for limit in (max_norm, said.max_norm) if limit is not None]
    if limits and norm + clip_eps > 0:
        scale *= min(1.0, min(limits) / (norm + clip_eps))
    return Verdict(True, norm, None if scale == 1.0 else scale, rate=said.rate)


def _ask(judge: Judge | None, norm: float) -> Judgement:
    if judge is None:
        return Judgement()
    try:
        said = judge(norm)
    except Exception as error:
        error.add_note(f"Raised by the optimizer's judge, asked about a norm of {norm:g}; nothing was moved.")
        raise
    if not isinstance(said, Judgement):
        raise SteepestError(f"the optimizer's judge returned {said!r}; it must return a Judgement.")
    said.check()
    return said


def culprits(named: Iterable[tuple[str, Tensor | None]]) -> tuple[str, ...]:
    """The names whose gradients are not finite."""
    return tuple(name for name, grad in named if grad is not None and not bool(torch.isfinite(grad).all()))
