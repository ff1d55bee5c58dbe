"""The few collectives that placements ask for, each counted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Traffic:
    """collectives: calls.  bytes: of the tensors in them, whatever the transport makes of those."""

    collectives: int = 0
    bytes: int = 0


@dataclass(frozen=True, slots=True)
class Arriving:
    """A tensor that is on its way."""

    tensor: Tensor
    work: dist.Work

    def wait(self) -> Tensor:
        self.work.wait()
        return self.tensor


class Mover:
    """Collectives over one process group. Every rank of it calls the same, in the same order."""

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        self.group = group
        self.collectives = self.bytes = 0

    @property
    def rank(self) -> int:
        return dist.get_rank(self.group)

    @property
    def world(self) -> int:
        return dist.get_world_size(self.group)

    @property
    def device(self) -> torch.device:
        """Where this group's tensors have to lie."""
        backend = dist.get_backend(self.group)
        return torch.device("cuda", torch.cuda.current_device()) if backend == "nccl" else torch.device("cpu")

    def count(self, tensor: Tensor) -> None:
        self.collectives += 1
        self.bytes += tensor.numel() * tensor.element_size()

    def add_up(self, vector: Tensor) -> None:
        """The sum over all ranks, in place. The vector may lie on another device than the group's."""
        there = vector.to(self.device)
        self.count(there)
        dist.all_reduce(there, group=self.group)
        if there is not vector:
            vector.copy_(there)

    def spread(self, flat: Tensor, owner: int) -> dist.Work:
        """One rank's values to all, in place."""
        self.count(flat)
        work = dist.broadcast(flat, group_src=owner, group=self.group, async_op=True)
        assert work is not None
        return work

    def exchange(self, flat: Tensor, sent: Sequence[int], got: Sequence[int]) -> Arriving:
        """To every rank its part of a flat tensor, from every rank one; the elements of each, by rank."""
        self.count(flat)
        into = flat.new_empty(sum(got))
        work = dist.all_to_all_single(into, flat, list(got), list(sent), group=self.group, async_op=True)
        return Arriving(into, work)

    def reduce(self, flat: Tensor, owner: int) -> dist.Work:
        """The sum over all ranks, in place at its owner; everywhere else nothing is left to be used."""
        self.count(flat)
        return dist.reduce(flat, group_dst=owner, group=self.group, async_op=True)

    def tell(self, mine: Any) -> list[Any]:
        """Everybody's small object, by rank."""
        told: list[Any] = [None] * self.world
        dist.all_gather_object(told, mine, group=self.group)
        self.collectives += 1
        return told

    def traffic(self) -> Traffic:
        """Since it was last asked."""
        found = Traffic(self.collectives, self.bytes)
        self.collectives = self.bytes = 0
        return found
