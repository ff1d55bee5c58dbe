"""Activation recompute: a block keeps its inputs only, and runs again in the backward pass."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

from steepest.contract import SteepestError
from steepest.models.heads import Headed


def recompute(model: nn.Module) -> nn.Module:
    """Recompute the model's blocks in every backward pass from now on; returns the model, changed in place.

    Losses and gradients stay what they were, bit by bit, dropout included: its noise is drawn again from
    the same generator state. Memory falls by about the activations of all blocks but one, time rises by
    about a third. A `transformers` model does it by its own switch; for any other module the blocks are
    the children of its longest ModuleList. Raises SteepestError where there are none.
    """
    inner: Any = model.body if isinstance(model, Headed) else model
    # transformers 5 has renamed its switch; the old name is the only one in its first releases
    for switch in ("activation_checkpointing_enable", "gradient_checkpointing_enable"):
        if hasattr(inner, switch):
            try:
                getattr(inner, switch)({"use_reentrant": False})
            except ValueError:
                break  # an architecture without the switch has blocks all the same
            return model
    for block in _blocks(inner):
        if not isinstance(block.forward, partial):  # asked for twice
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    return model


def _blocks(model: nn.Module) -> nn.ModuleList:
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module)]
    if not lists:
        raise SteepestError(
            f"{type(model).__name__} has no list of blocks to recompute (no torch.nn.ModuleList); "
            "turn recompute off."
        )
    return max(lists, key=len)
