"""Which placement parameters ask for."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from torch import Tensor

from steepest.placements.placement import Placement


def find_placement(params: Sequence[Tensor]) -> Placement:
    """`Sharded` where a parameter is a DTensor, else the plain one.

    Whoever has a DTensor has imported its module, which takes a second; nobody else shall wait for that.
    """
    tensors = sys.modules.get("torch.distributed.tensor")
    if tensors is None or not any(isinstance(p, tensors.DTensor) for p in params):
        return Placement()
    from steepest.placements.sharded import Sharded

    return Sharded()
