"""ZeRO-2: gradients go to their owners as soon as they are whole, and are let go of everywhere else."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from steepest.contract import SteepestError
from steepest.placements.owned import Owned

BUCKET = 2**22
"""Elements that go to an owner in one reduction."""


def loads(sizes: Sequence[int], targets: Sequence[object]) -> list[list[int]]:
    """Which parameters' gradients go together, in the order in which they are sent: the last parameter's is
    there first. sizes: elements.  targets: what parameters must have in common."""
    found: list[list[int]] = []
    open_: dict[object, list[int]] = {}
    filled: dict[object, int] = {}
    for place in reversed(range(len(sizes))):
        target = targets[place]
        open_.setdefault(target, []).append(place)
        filled[target] = filled.get(target, 0) + sizes[place]
        if filled[target] >= BUCKET:
            found.append(open_.pop(target))
            del filled[target]
    return [*found, *open_.values()]


@dataclass(slots=True)
class _Load:
    """Parameters whose gradients go to one owner together. missing: how many are not there yet."""

    owner: int
    params: list[Tensor]
    missing: int = 0


class ToOwners:
    """Reduces every gradient to its owner, the mean over ranks, while the backward pass goes on.

    Made over a model's parameters once an optimizer has bound their placement; `finish` is called before the
    step. Between the micro-batches of one step gradients stay where they are (`holding`), and are reduced
    once, whole. All ranks send the same loads in the same order, whatever their passes have used: zeros stand
    for gradients that are not there, and one number beside each says whether it was. What no rank has used
    has no gradient at its owner either.
    """

    def __init__(self, params: Sequence[Tensor], owned: Owned) -> None:
        self._mover = owned.mover
        trained = [p for p in params if p.requires_grad]
        targets = [(owned.owner(p), p.dtype) for p in trained]
        packed = loads([p.numel() for p in trained], targets)
        self._loads = [_Load(targets[own[0]][0], [trained[i] for i in own]) for own in packed]
        self._of = {p: (number, load) for number, load in enumerate(self._loads) for p in load.params}
        self._sent: list[tuple[dist.Work, Tensor]] = []
        self._holds = False
        self._begin()
        self._hooks = [p.register_post_accumulate_grad_hook(self._ready) for p in trained]

    def _begin(self) -> None:
        self._sent.clear()
        for load in self._loads:
            load.missing = len(load.params)

    @contextmanager
    def holding(self) -> Iterator[None]:
        """Gradients of backward passes in here wait for the next one outside."""
        self._holds = True
        try:
            yield
        finally:
            self._holds = False

    def _ready(self, p: Tensor) -> None:
        if self._holds:
            return
        number, load = self._of[p]
        if number < len(self._sent):
            raise SteepestError(
                "a gradient was sent to its owner, and another backward pass adds to it; put all passes of a "
                "step but the last into `holding()`, and call `finish` before the step."
            )
        load.missing -= 1
        while len(self._sent) < len(self._loads) and self._loads[len(self._sent)].missing <= 0:
            self._send(self._loads[len(self._sent)])

    def _send(self, load: _Load) -> None:
        like = load.params[0]
        parts = [torch.zeros_like(p).view(-1) if p.grad is None else p.grad.view(-1) for p in load.params]
        there = like.new_tensor([p.grad is not None for p in load.params])
        flat = torch.cat([*parts, there])
        flat /= self._mover.world
        if load.owner != self._mover.rank:
            for p in load.params:
                p.grad = None
        self._sent.append((self._mover.reduce(flat, load.owner), flat))

    def finish(self) -> None:
        """Wait until all gradients are where they belong."""
        for load in self._loads[len(self._sent) :]:
            self._send(load)
        for load, (work, flat) in zip(self._loads, self._sent, strict=True):
            work.wait()
            if load.owner == self._mover.rank:
                _take(load.params, flat)
        self._begin()

    def remove(self) -> None:
        """Leave the parameters alone from now on."""
        for hook in self._hooks:
            hook.remove()


def _take(params: Sequence[Tensor], flat: Tensor) -> None:
    """Their gradients out of what has come together: one after another, and whether there are any."""
    *grads, there = flat.split([*(p.numel() for p in params), len(params)])
    for p, grad, count in zip(params, grads, there.tolist(), strict=True):
        if not count:
            p.grad = None
        elif p.grad is None:
            p.grad = grad.view(p.shape).clone()
        else:
            p.grad.copy_(grad.view(p.shape))
