"""The oracle: a loop over tensors, in plain torch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from steepest.apply import advance
from steepest.engines.bucket import Bucket, Engine, read, write
from steepest.engines.parts import run_all


class Reference(Engine):
    """One tensor after another, plain torch, any type and any rule."""

    name = "reference"

    def run(self, buckets: Sequence[Bucket]) -> list[Tensor | None]:
        return run_all(buckets, run)


def run(bucket: Bucket) -> Tensor | None:
    """One step of every parameter of a bucket, in place; its telemetry."""
    sums = []
    for i, g in enumerate(bucket.grads):
        p, slots = read(bucket, i)
        new, new_slots = advance(bucket.rule, p, g.to(p.dtype), slots, bucket.h)
        sums.append(write(bucket, i, p, new, new_slots))
    return stack(sums)


def stack(sums: Sequence[Tensor | None]) -> Tensor | None:
    """The rows of a bucket's telemetry as one tensor, None if nobody asked."""
    rows = [row for row in sums if row is not None]
    return torch.stack(rows) if rows else None
