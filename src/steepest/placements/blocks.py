"""A model's blocks: what is put together, computed with, and let go again, one after another."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """The members of the outermost module lists, as a transformer's layers are, if they have parameters."""
    return [block for block in _members(model) if next(block.parameters(), None) is not None]


def units_of(model: nn.Module) -> list[list[torch.Size]]:
    """Shapes of the parameters that are in no block, then block by block; each parameter counts once."""
    seen: set[nn.Parameter] = set()
    units = []
    for module in (*blocks_of(model), model):
        own = [p for p in module.parameters() if p not in seen]
        seen.update(own)
        units.append([p.shape for p in own])
    return [units[-1], *units[:-1]]


def _members(module: nn.Module) -> Iterator[nn.Module]:
    for child in module.children():
        yield from child if isinstance(child, nn.ModuleList) else _members(child)
