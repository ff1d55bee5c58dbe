"""Clip thresholds that follow the gradients: ZClip for the whole model, AdaGC for each tensor."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from steepest.training.history import bounded, norms
from steepest.training.stage_config import Frozen


class ZClipConfig(Frozen):
    """threshold: standard deviations above the mean from which a norm is clipped.  alpha: decay of mean and
    variance.  warmup: norms that are only looked at, for the first mean.  floor: deviation, as a share of the
    mean, that is the least to count with."""

    threshold: float = Field(default=2.5, gt=0)
    alpha: float = Field(default=0.97, ge=0, lt=1)
    warmup: int = Field(default=25, ge=2)
    floor: float = Field(default=0.01, gt=0)


class ZClip:
    """Clips a global gradient norm that is an outlier, the harder the further out it is (arXiv:2504.02507).

    Beyond the reference: what is not finite never enters mean or variance, the deviation has a floor, and
    the state can be saved.
    """

    def __init__(self, config: ZClipConfig) -> None:
        self.config = config
        self.rearm()

    def rearm(self) -> None:
        self.count, self.mean, self.variance = 0, 0.0, 0.0

    def limit(self, norm: float) -> float | None:
        """What to clip this norm to, None for nothing."""
        config = self.config
        if self.count < config.warmup or not math.isfinite(norm):
            return None
        deviation = max(math.sqrt(self.variance), config.floor * self.mean) + 1e-6
        z = (bounded(norm) - self.mean) / deviation
        return self.mean + config.threshold**2 * deviation / z if z > config.threshold else None

    def observe(self, norm: float) -> None:
        """A step with gradients of this norm, before clipping, has been taken."""
        if not math.isfinite(norm):
            return
        limit = self.limit(norm)
        norm = max(bounded(norm), 0.0) if limit is None else limit
        self.count += 1
        if self.count <= self.config.warmup:  # plain mean and variance of all so far
            away = norm - self.mean
            self.mean += away / self.count
            self.variance += (away * (norm - self.mean) - self.variance) / self.count
            return
        alpha = self.config.alpha
        self.mean = alpha * self.mean + (1 - alpha) * norm
        away = norm - self.mean
        self.variance = alpha * self.variance + (1 - alpha) * away * away

    def state(self) -> dict[str, Any]:
        return {"count": self.count, "mean": self.mean, "variance": self.variance}

    def load(self, state: Mapping[str, Any]) -> None:
        self.count, self.mean, self.variance = state["count"], state["mean"], state["variance"]


class AdaGCConfig(Frozen):
    """warmup: steps under a global clip to `absolute`, which find each tensor's smallest norm.  relative: how
    far above its average a tensor's norm may go afterwards.  beta: decay of the average."""

    warmup: int = Field(default=100, ge=1)
    absolute: float = Field(default=1.0, gt=0)
    relative: float = Field(default=1.05, ge=1)
    beta: float = Field(default=0.98, ge=0, lt=1)


class AdaGC:
    """Clips every tensor's gradient by an average of its own norms (arXiv:2502.11034).

    A tensor that is new after the warm-up begins with the norm it comes with, and a norm of zero says
    nothing: LoRA's first matrix has no gradient in its first step. A threshold grows by at most
    `(1 - beta)(relative - 1)` a step, a thousandth, so `rearm` it where the gradients' size changes.
    """

    def __init__(self, config: AdaGCConfig) -> None:
        self.config = config
        self.rearm()

    def rearm(self) -> None:
        self.taken, self.gamma = 0, dict[str, float]()
        self._next: dict[str, float] = {}

    @torch.no_grad()
    def prepare(
        self,
        named: Iterable[tuple[str, Tensor]],
        scale: float = 1.0,
        norms_of: Mapping[str, float] | None = None,
    ) -> None:
        """Clip gradients in place, before a step. scale: what they still have to be divided by.  norms_of: of
        all gradients by name, where only a part of them is here.

        If one is not finite none is touched: the step is not going to be taken.
        """
        config, here = self.config, dict(named)
        self._next = {}
        if norms_of is None:
            norms_of = dict(zip(here, norms([*here.values()]), strict=True)) if here else {}
        sizes = {name: size / scale for name, size in norms_of.items()}
        whole = math.hypot(*sizes.values())
        if not math.isfinite(whole):
            return
        even = min(1.0, config.absolute / whole) if whole > 0 else 1.0
        factors = {name: self._factor(name, size, even) for name, size in sizes.items()}
        seen = {name: factors[name] * size for name, size in sizes.items()}
        self._next = {name: self._follow(name, size) for name, size in seen.items() if size > 0}
        clipped = [(grad, factors[name]) for name, grad in here.items() if factors[name] != 1.0]
        if clipped:
            torch._foreach_mul_([grad for grad, _ in clipped], [factor for _, factor in clipped])

    def _factor(self, name: str, size: float, even: float) -> float:
        """What a tensor's gradient of this norm is multiplied by; `even` is the global clip's."""
        if self.taken < self.config.warmup or name not in self.gamma or size == 0:
            return even
        return min(1.0, self.config.relative * self.gamma[name] / size)

    def _follow(self, name: str, size: float) -> float:
        """A tensor's threshold after a clipped norm of this size."""
        gamma, beta = self.gamma.get(name, size), self.config.beta
        return min(gamma, size) if self.taken < self.config.warmup else beta * gamma + (1 - beta) * size

    def observe(self) -> None:
        """The prepared step has been taken."""
        self.gamma |= self._next
        self.taken += 1

    def state(self) -> dict[str, Any]:
        return {"taken": self.taken, "gamma": dict(self.gamma)}

    def load(self, state: Mapping[str, Any]) -> None:
        self.taken, self.gamma, self._next = state["taken"], dict(state["gamma"]), {}
