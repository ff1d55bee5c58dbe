"""State and step on the host, on any placement: gradients come down and parameters go up beside the step."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from steepest.contract import AddUp, Scope, Shard
from steepest.placements.placement import Measure, Placement
from steepest.placements.traffic import Traffic

WAVE = 2**25
"""Elements that are stepped while the gradients of the next ones come and the parameters before them go."""


class Offloaded(Placement):
    """Another placement whose state lies in the host's memory, where the step is computed too.

    Beside each parameter a copy of it is kept on the host (its master, if you will), and memory for its
    gradient; both are pinned where there is an accelerator. Gradients of all waves are sent down at once, in
    the order of the waves; each wave is stepped as soon as its own are there, and its parameters are sent up
    while the next one is stepped.

    inner: where parameters and gradients live; None for one process.
    """

    name = "offloaded"
    moves = True

    def __init__(self, inner: Placement | None = None) -> None:
        self.inner = inner or Placement()
        self._params: list[Tensor] = []
        self._masters: dict[Tensor, Tensor] = {}
        self._seen: dict[Tensor, int] = {}
        self._grads: dict[Tensor, Tensor] = {}
        self._wave: list[int] = []
        self._streams: tuple[Any, Any] | None = None
        self._arrivals: dict[int, Any] = {}

    def bind(self, params: Sequence[Tensor], scopes: Sequence[Scope]) -> None:
        self.inner.bind(params, scopes)
        self._params, self._wave, filled = list(params), [], 0
        for p in params:
            here = self.inner.local(p).detach()
            self._wave.append(filled // WAVE)
            filled += here.numel()
            if p not in self._masters or self._masters[p].shape != here.shape:
                self._masters[p] = _beside(here).copy_(here)
                self._seen[p] = here._version
        self.waves = max(self._wave, default=0) + 1
        device = next((p.device for p in params if p.device.type != "cpu"), None)
        if device is not None and self._streams is None:
            module = torch.get_device_module(device)
            self._streams = module.Stream(device), module.Stream(device)

    def local(self, tensor: Tensor) -> Tensor:
        master = self._masters.get(tensor)
        return self.inner.local(tensor) if master is None else master

    def shard(self, p: Tensor) -> Shard | None:
        return self.inner.shard(p)

    def owns(self, place: int) -> bool:
        return self.inner.owns(place)

    def wave(self, place: int) -> int:
        return self._wave[place]

    def add_up(self, p: Tensor) -> AddUp | None:
        return self.inner.add_up(p)

    def survey(
        self, measure: Measure, params: Sequence[Tensor], grads: Sequence[Tensor], flag: bool
    ) -> tuple[float, bool, int]:
        return self.inner.survey(measure, params, grads, flag)

    def bring(self, params: Sequence[Tensor], grads: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
        whole = self.inner.bring(params, grads)
        self._refresh()
        out: list[Tensor | None] = [None] * len(whole)
        with _on(self._streams and self._streams[0]):
            for wave in range(self.waves):
                for i, (p, grad) in enumerate(zip(params, whole, strict=True)):
                    if self._wave[i] == wave and grad is not None and self.owns(i):
                        out[i] = self._down(p, grad)
                if self._streams is not None:
                    self._arrivals[wave] = self._streams[0].record_event()
        return out

    def _down(self, p: Tensor, grad: Tensor) -> Tensor:
        if self._streams is None and grad.device.type == "cpu":
            return grad
        if p not in self._grads or self._grads[p].dtype != grad.dtype:
            self._grads[p] = _beside(grad)
        return self._grads[p].copy_(grad, non_blocking=True)

    def _refresh(self) -> None:
        """Take over parameters that were changed from outside, by loading weights say."""
        for p in self._params:
            here = self.inner.local(p).detach()
            if here._version != self._seen[p]:
                self._masters[p].copy_(here)
                self._seen[p] = here._version

    def arrive(self, wave: int) -> None:
        if (event := self._arrivals.pop(wave, None)) is not None:
            event.synchronize()

    def depart(self, wave: int) -> None:
        with _on(self._streams and self._streams[1]):
            for i, p in enumerate(self._params):
                if self._wave[i] == wave and p.requires_grad and self.owns(i):
                    here = self.inner.local(p).detach()
                    here.copy_(self._masters[p], non_blocking=True)
                    self._seen[p] = here._version

    def publish(self, params: Sequence[Tensor]) -> None:
        if self._streams is not None:  # whatever is computed next waits for the parameters
            torch.get_device_module(self._streams[1].device).current_stream().wait_stream(self._streams[1])
        self.inner.publish(params)

    def add_rows(self, rows: Tensor, params: Sequence[Tensor]) -> None:
        self.inner.add_rows(rows, params)

    def tell(self, mine: Any) -> list[Any]:
        return self.inner.tell(mine)

    def gather(self, state: dict[int, Any]) -> dict[int, Any]:
        return self.inner.gather(state)

    def wrap(self, stored: Tensor, shape: Sequence[int], p: Tensor) -> Tensor:
        return self.inner.wrap(stored, shape, p)

    def unwrap(self, saved: Tensor, shape: Sequence[int]) -> Tensor:
        return self.inner.unwrap(saved, shape)

    def traffic(self) -> Traffic:
        return self.inner.traffic()


def _beside(tensor: Tensor) -> Tensor:
    """Memory on the host for a tensor's values, pinned where they come from an accelerator."""
    pinned = tensor.device.type != "cpu"
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=pinned)


def _on(stream: Any) -> Any:
    """What is done in here is done on this stream, once what was asked for before is done."""
    if stream is None:
        return nullcontext()
    module = torch.get_device_module(stream.device)
    stream.wait_stream(module.current_stream(stream.device))
    return module.stream(stream)
