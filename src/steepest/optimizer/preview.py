"""What a step would move, found on copies: one parameter at a time, by the reference engine."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from steepest.contract import SteepestError
from steepest.engines import Bucket, Engine
from steepest.optimizer.step import Lot


def draw(places: Sequence[int], sample: float, seed: int) -> set[int]:
    """This part of the places, at least one of them if there is any; the same for the same seed."""
    if not 0 < sample <= 1:
        raise SteepestError(f"sample={sample!r} must lie in (0, 1]: the part of all tensors to look at.")
    return set(random.Random(seed).sample(places, math.ceil(sample * len(places))))


def copied(lot: Lot, k: int) -> Lot:
    """A lot of the k-th parameter alone, on copies of it and of its state."""
    alone = Lot(lot.group, lot.rule, lot.codecs, lot.taken, add_up=lot.add_up)
    state = {n: v.clone() if isinstance(v, Tensor) else v for n, v in lot.states[k].items()}
    shard = lot.shards[k] if lot.shards else None
    alone.add(lot.members[k], lot.params[k].detach().clone(), state, shard)
    alone.close()
    return alone


def foresee(engine: Engine, bucket: Bucket, commit: bool) -> Tensor:
    """Of a bucket's one parameter, as far as it is here: the squares of the norms of the update and of the
    parameter after it, and 1. Steps it."""
    if not commit:
        square = float(bucket.params[0].double().square().sum())
        return torch.tensor([0.0, square, 1.0], dtype=torch.float64)
    (sums,) = engine.run([replace(bucket, telemetry=True)])
    assert sums is not None
    return torch.tensor([*sums[0, 1:3].tolist(), 1.0], dtype=torch.float64)


def told(rows: Tensor) -> dict[int, dict[str, float]]:
    """Rows of `foresee` by the place of the parameter; of those that were looked at."""
    return {
        place: {"update_norm": math.sqrt(update), "param_norm": math.sqrt(param)}
        for place, (update, param, seen) in enumerate(rows.tolist())
        if seen
    }
