"""Compiled kernels where they serve: one launch a pass for all parameters of a kind."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cache
from typing import ClassVar

import torch
from torch import Tensor

from steepest.engines.bucket import Bucket, Engine, Pending, Request
from steepest.engines.cpu import Cpu
from steepest.engines.gpu import Gpu
from steepest.kernels.triton import available

log = logging.getLogger("steepest")


class Fused(Engine):
    """Kernels for CPUs and GPUs, chosen by where the parameters lie; foreach for what they cannot serve."""

    name: ClassVar[str] = "fused"
    accelerator: ClassVar[str] = "cuda"
    """The type of device whose kernels Triton compiles."""

    def __init__(self) -> None:
        self._cpu = Cpu()
        self._gpus: dict[torch.device, Gpu] = {}
        self._refusals: dict[torch.device, str | None] = {}

    def measure(self, grads: Sequence[Tensor]) -> float:
        return self._cpu.measure(grads)

    def run(self, buckets: Sequence[Bucket]) -> list[Tensor | None]:
        sums: dict[int, Tensor | None] = {}
        for device in dict.fromkeys(b.params[0].device for b in buckets):
            own = [i for i, b in enumerate(buckets) if b.params[0].device == device]
            run = self._gpu(device).run if self._compiles(device) else self._cpu.run
            sums |= zip(own, run([buckets[i] for i in own]), strict=True)
        return [sums[i] for i in range(len(buckets))]

    def defers(self, grads: Sequence[Tensor]) -> bool:
        first = grads[0].device
        return self._compiles(first) and all(g.device == first for g in grads)

    def commit(self, buckets: Sequence[Bucket], request: Request) -> Pending | None:
        return self._gpu(buckets[0].params[0].device).commit(buckets, request)

    def _compiles(self, device: torch.device) -> bool:
        if device.type != self.accelerator:
            return False
        if device not in self._refusals:
            self._refusals[device] = available() or self._gpu(device).refusal()
        if (why := self._refusals[device]) is not None:
            _complain(why)
        return why is None

    def _gpu(self, device: torch.device) -> Gpu:
        if device not in self._gpus:
            self._gpus[device] = Gpu(device)
        return self._gpus[device]


@cache
def _complain(why: str) -> None:
    log.warning("the GPU runs without kernels of its own, on the foreach engine: %s", why)
