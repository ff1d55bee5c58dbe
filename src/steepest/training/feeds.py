"""Batches for the loop, each a pure function of a position in the data, and the device they go to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from steepest.contract import SteepestError
from steepest.training.learner import Batch


def to_device(batch: Batch, device: torch.device) -> Batch:
    """A batch, tensors and mappings of tensors alike, on a device."""
    if isinstance(batch, Tensor):
        return batch.to(device)
    if isinstance(batch, Mapping):
        return {name: to_device(value, device) for name, value in batch.items()}
    return batch


@dataclass(frozen=True)
class Stream:
    """One optimizer step a round, of `accumulate` micro-batches that follow each other in the data.

    at: the batch of a position, counted in micro-batches.
    """

    at: Callable[[int], Batch]
    accumulate: int
    device: torch.device

    def round(self, position: int) -> Sequence[Sequence[Batch]]:
        first = position * self.accumulate
        return [[to_device(self.at(first + i), self.device) for i in range(self.accumulate)]]


def usable_device(name: str) -> torch.device:
    """The device of this name, once it is known to hold a tensor."""
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise SteepestError(f"device {name!r} cannot be used ({reason}); use cpu.") from None
