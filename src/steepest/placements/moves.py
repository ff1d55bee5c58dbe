"""What has to be sent in a step: which collectives, how often, of how many bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

SENT = {"all-reduce": 2, "all-gather": 1, "reduce-scatter": 1, "reduce": 1, "broadcast": 1, "all-to-all": 1}
"""How often each byte of a collective is sent by a rank, but for its own share of 1/ranks.

On a ring, which is optimal for large tensors (Patarasuk and Yuan 2009, "Bandwidth optimal all-reduce
algorithms for clusters of workstations"); trees send the same and wait less often.
"""

FIRST_BUCKET, BUCKET = 2**20, 25 * 2**20
"""Bytes at which DistributedDataParallel closes its first bucket of gradients, and every other one."""


@dataclass(frozen=True, slots=True)
class Move:
    """Collectives of one purpose in a step, over groups of `ranks` ranks.

    bytes: of the tensors that all ranks of a group know afterwards (all-gather, all-reduce, broadcast) or
    knew before (reduce-scatter, reduce); of what the busiest rank hands over (all-to-all). All calls.
    """

    what: str
    verb: str
    ranks: int
    calls: int
    bytes: int

    @property
    def sent(self) -> int:
        """Bytes that a rank sends."""
        return SENT[self.verb] * self.bytes * (self.ranks - 1) // self.ranks


def buckets(sizes: Sequence[int]) -> int:
    """How many all-reduces DistributedDataParallel makes of gradients of these bytes, in the model's order.

    It fills buckets from the last parameter to the first and closes each when its limit is reached
    (torch/csrc/distributed/c10d/reducer.cpp, compute_bucket_assignment_by_size).
    """
    count, filled, limit = 0, 0, FIRST_BUCKET
    for size in reversed(sizes):
        filled += size
        if filled >= limit:
            count, filled, limit = count + 1, 0, BUCKET
    return count + (filled > 0)
