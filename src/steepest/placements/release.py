"""ZeRO-2: gradients go to their owners as soon as they are whole, and are let go of everywhere else."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor

from steepest.placements.owned import Owned

BUCKET = 2**22
"""Elements that go to an owner in one reduction."""


@dataclass(slots=True)
class _Load:
    """Parameters whose gradients are whole and wait to go to one owner."""

    params: list[Tensor] = field(default_factory=list)
    size: int = 0


class ToOwners:
    """Reduces every gradient to its owner, the mean over ranks, while the backward pass goes on.

    Made over a model's parameters once an optimizer has bound their placement; `finish` is called before the
    step. Between the micro-batches of one step gradients stay where they are (`holding`), and are reduced
    once, whole.
    """

    def __init__(self, params: Sequence[Tensor], owned: Owned) -> None:
        self._owned, self._mover = owned, owned.mover
        self._loads: dict[tuple[int, torch.dtype], _Load] = {}
        self._sent: list[tuple[dist.Work, Tensor, list[Tensor]]] = []
        self._holds = False
        self._hooks = [p.register_post_accumulate_grad_hook(self._ready) for p in params if p.requires_grad]

    @contextmanager
    def holding(self) -> Iterator[None]:
        """Gradients of backward passes in here wait for the next one outside."""
        self._holds = True
        try:
            yield
        finally:
            self._holds = False

    def _ready(self, p: Tensor) -> None:
        if self._holds or p.grad is None:
            return
        key = self._owned.owner(p), p.grad.dtype
        load = self._loads.setdefault(key, _Load())
        load.params.append(p)
        load.size += p.numel()
        if load.size >= BUCKET:
            self._send(key)

    def _send(self, key: tuple[int, torch.dtype]) -> None:
        load = self._loads.pop(key)
        flat = torch.cat([p.grad.view(-1) for p in load.params if p.grad is not None])
        flat /= self._mover.world
        own = key[0] == self._mover.rank
        if not own:
            for p in load.params:
                p.grad = None
        self._sent.append((self._mover.reduce(flat, key[0]), flat, load.params if own else []))

    def finish(self) -> None:
        """Wait until all gradients are where they belong."""
        for key in sorted(self._loads, key=str):
            self._send(key)
        for work, flat, params in self._sent:
            work.wait()
            first = 0
            for p in params:
                assert p.grad is not None
                p.grad.copy_(flat[first : first + p.numel()].view_as(p.grad))
                first += p.numel()
        self._sent.clear()

    def remove(self) -> None:
        """Leave the parameters alone from now on."""
        for hook in self._hooks:
            hook.remove()
