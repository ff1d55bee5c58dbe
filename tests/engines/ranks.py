"""Ranks in one process: buckets cut into parts, each stepped by an engine and in a thread of its own."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from threading import Barrier

import torch

from steepest.codecs import stored_name
from steepest.contract import Shard

TIMEOUT = 60
"""Seconds after which ranks that wait for one another are stuck."""


class Ranks:
    """k ranks that can add up a vector. calls: how often they have."""

    def __init__(self, k: int) -> None:
        self.size, self.calls = k, 0
        self._barrier, self._shares = Barrier(k), [torch.empty(0)] * k
        self.add_ups = [partial(self._add_up, rank) for rank in range(k)]

    def _add_up(self, rank: int, vector: torch.Tensor) -> None:
        assert vector.dtype == torch.float64 and vector.ndim == 1
        self._shares[rank] = vector.clone()
        self._barrier.wait(TIMEOUT)
        total = torch.stack(self._shares).sum(0)  # of vectors of one length
        self._barrier.wait(TIMEOUT)
        vector.copy_(total)
        self.calls += rank == 0

    def run(self, engines, buckets):
        """Each rank's engine on its own buckets, at once if they have to wait for one another; what each
        of them returns."""

        def step(engine, own):
            with torch.no_grad():
                try:
                    return engine.run(own)
                except BaseException:
                    self._barrier.abort()
                    raise

        pairs = list(zip(engines, buckets, strict=True))
        if not any(bucket.asks for own in buckets for bucket in own):  # nobody waits
            return [step(*pair) for pair in pairs]
        with ThreadPoolExecutor(self.size) as pool:
            jobs = [pool.submit(step, *pair) for pair in pairs]
            errors = [job.exception(TIMEOUT) for job in jobs]
        for error in sorted(filter(None, errors), key=lambda e: type(e).__name__ == "BrokenBarrierError"):
            raise error
        return [job.result() for job in jobs]


def chunks(n: int, k: int) -> list[int]:
    """How torch cuts n rows over k ranks: by ceil(n / k), so that the last ranks may have fewer, or none."""
    size = -(-n // k)
    return [max(0, min(n, size * (rank + 1)) - min(n, size * rank)) for rank in range(k)]


def uneven(n: int, k: int) -> list[int]:
    """Nothing on the first rank, the last row on the last."""
    return [0, *[0] * (k - 2), n] if n < 2 else [0, *[0] * (k - 3), n - 1, 1]


def cut_bucket(bucket, ranks: Ranks, how=chunks):
    """The same bucket as every rank has it. Nothing of the parts lies in the memory of the whole."""
    rows = [how(p.shape[0], ranks.size) for p in bucket.params]
    firsts = [[sum(own[:rank]) for rank in range(ranks.size)] for own in rows]
    whole = [whole_names(bucket, i) for i in range(len(bucket.params))]
    parts = []
    for rank, add_up in enumerate(ranks.add_ups):

        def take(i, name, tensor, rank=rank):
            if name in whole[i]:
                return tensor.clone()
            per = tensor.shape[0] // bucket.params[i].shape[0]
            return tensor[firsts[i][rank] * per :][: rows[i][rank] * per].clone()

        def take_all(name, tensors):
            return [take(i, name, x) for i, x in enumerate(tensors)]

        parts.append(
            replace(
                bucket,
                params=take_all("p", bucket.params),
                grads=take_all("g", bucket.grads),
                stored={name: take_all(name, tensors) for name, tensors in bucket.stored.items()},
                shards=[Shard(p.shape, own[rank]) for p, own in zip(bucket.params, firsts, strict=True)],
                add_up=add_up,
            )
        )
    return parts


def whole_names(bucket, i: int) -> set[str]:
    """The stored tensors of parameter i that every rank has whole: one number a column."""
    shape = bucket.params[i].shape
    found = set()
    for slot, codec in bucket.codecs.items():
        declared = bucket.rule.slots[slot].shape if slot != "p" else None
        own = declared(shape, vars(bucket.h)) if declared else shape
        for part, of in codec.parts.items():
            if own[:1] != shape[:1] or (of.per == "column" and len(shape) == 2):
                found.add(stored_name(slot, part))
    return found


def new_gradients(bucket, parts: Sequence, grads) -> None:
    """Give a bucket and its parts fresh gradients, in the lists that they have."""
    bucket.grads[:] = grads
    for part in parts:
        for i, (p, shard) in enumerate(zip(part.params, part.shards, strict=True)):
            part.grads[i] = grads[i][shard.first :][: p.shape[0]].clone()


def joined(bucket, parts: Sequence) -> dict[str, list[torch.Tensor]]:
    """The tensors of the whole put together from the parts; what all have is the same on all."""
    out: dict[str, list[torch.Tensor]] = {}
    for name in ("p", *bucket.stored):
        out[name] = []
        for i in range(len(bucket.params)):
            own = [part.params[i] if name == "p" else part.stored[name][i] for part in parts]
            if name in whole_names(bucket, i):
                assert all(torch.equal(own[0], x) for x in own), f"{name} differs between ranks"
                out[name].append(own[0])
            else:
                out[name].append(torch.cat(own))
    return out
