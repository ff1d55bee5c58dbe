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
    alone = Lot(lot.group, lot.rule, lot.codecs, lot.taken)
    state = {n: v.clone() if isinstance(v, Tensor) else v for n, v in lot.states[k].items()}
    alone.add(lot.members[k], lot.params[k].detach().clone(), state)
    alone.close()
    return alone


def foresee(engine: Engine, bucket: Bucket, commit: bool) -> dict[str, float]:
    """The norms of the update of a bucket's one parameter and of the parameter after it. Steps it."""
    if not commit:
        return {"update_norm": 0.0, "param_norm": float(torch.linalg.vector_norm(bucket.params[0].double()))}
    (sums,) = engine.run([replace(bucket, telemetry=True)])
    assert sums is not None
    _, update, param, _ = sums[0].tolist()
    return {"update_norm": math.sqrt(update), "param_norm": math.sqrt(param)}
