"""Batches for the loop, each a pure function of a position in the data, and the device they go to."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from steepest.contract import SteepestError
from steepest.training.learner import Batch
from steepest.training.world import ALONE, World


def to_device(batch: Batch, device: torch.device) -> Batch:
    """A batch, tensors and mappings of tensors alike, on a device."""
    if isinstance(batch, Tensor):
        return batch.to(device)
    if isinstance(batch, Mapping):
        return {name: to_device(value, device) for name, value in batch.items()}
    return batch


def own_rows(batch: Batch, world: World) -> Batch:
    """This rank's rows of a batch that has at least one for every rank."""
    return _take(batch, world.rows(_count(batch))) if world.size > 1 else batch


def measured_rows(batch: Batch, world: World) -> tuple[Batch, bool]:
    """This rank's rows of a batch that may have fewer rows than there are ranks, and whether they count.

    All ranks make the same number of forward passes, for a model that is cut asks that of them: a rank
    without a row of its own reads the first, and leaves it out.
    """
    own = world.rows(_count(batch)) if world.size > 1 else None
    if own is None:
        return batch, True
    return (_take(batch, own), True) if own.start < own.stop else (_take(batch, slice(0, 1)), False)


def _count(batch: Batch) -> int:
    while isinstance(batch, Mapping):
        batch = next(iter(batch.values()))
    return len(batch)


def _take(batch: Batch, rows: slice) -> Batch:
    if isinstance(batch, Mapping):
        return {name: _take(value, rows) for name, value in batch.items()}
    return batch[rows]


def asking(world: World) -> AbstractContextManager[None]:
    """Around forward passes that nothing is learned from. A model that is cut keeps what it gathers from one
    pass to the next, and training cannot use what was made in inference mode."""
    return torch.inference_mode() if world.size == 1 else torch.no_grad()


@contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """A model that is cut over ranks (FSDP2) is put together for as long as answers are written: ranks write
    different numbers of tokens, and could not gather it for each of them."""
    root: Any = model
    parts: list[Any] = [module for module in model.modules() if hasattr(module, "unshard")]
    if parts and parts[0] is model:
        root._get_fsdp_state()._lazy_init()  # a body that answers without its head is not the root
    for part in parts:
        part.unshard()
        part.set_reshard_after_forward(False, recurse=False)
    try:
        yield
    finally:
        for part in parts:
            part.set_reshard_after_forward(part is not model, recurse=False)
            part.reshard()


@dataclass(frozen=True)
class Stream:
    """One optimizer step a round, of `accumulate` micro-batches that follow each other in the data.

    at: the batch of a position, counted in micro-batches; every rank reads its rows of it.
    """

    at: Callable[[int], Batch]
    accumulate: int
    device: torch.device
    world: World = ALONE

    def round(self, position: int) -> Sequence[Sequence[Batch]]:
        places = range(position * self.accumulate, (position + 1) * self.accumulate)
        return [[to_device(own_rows(self.at(place), self.world), self.device) for place in places]]


def usable_device(name: str) -> torch.device:
    """The device of this name, once it is known to hold a tensor."""
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise SteepestError(f"device {name!r} cannot be used ({reason}); use cpu.") from None
