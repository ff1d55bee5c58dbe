"""The same steps of whole tensors and of their parts, and how near one another they have to end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from engines.ranks import Ranks, cut_bucket, joined, new_gradients
from laws.cases import choice, tensors
from steepest.engines.bucket import read

SHAPES = [(7, 6), (40, 133), (257, 16), (1,), (3,), (1, 9), (2, 3, 4), (5, 16, 64), (129, 128)]
"""Uneven rows, more ranks than rows, blocks that end in a row, three dimensions, and one large enough for all
dialects of Adafactor."""
STEPS = 2
CLOSE = 3e-6
"""How near sums added up over ranks bring a float32, as a part of the tensor's largest element."""
FEW = 0.01
"""The part of elements that may for that fall to the other side of a rounding, where any are rounded."""


def buckets_of(case, name, param, shapes):
    """What an engine is given for fresh parameters."""
    params = tensors(shapes, seed=1, dtype=torch.bfloat16 if param else torch.float32)
    for p in params:
        p.grad = torch.zeros_like(p)
    options = {"lr": 0.01, "state": choice(case, name, shapes), "param": param}
    return case.build(params, engine="reference", seed=7, **options).buckets()


def train(case, name, param, engine, k, how, shapes=SHAPES, telemetry=False):
    """Both ends, bucket by bucket; how often the ranks spoke in a step; what the engines reported last."""
    ranks = Ranks(k)
    whole = [replace(b, telemetry=telemetry) for b in buckets_of(case, name, param, shapes)]
    cut = [cut_bucket(b, ranks, how) for b in whole]
    own, engines = engine(), [engine() for _ in range(k)]
    for t in range(1, STEPS + 1):
        for b, (bucket, parts) in enumerate(zip(whole, cut, strict=True)):
            grads = tensors([p.shape for p in bucket.params], 40 + t, torch.bfloat16)
            new_gradients(bucket, parts, [g.to(p.dtype) for g, p in zip(grads, bucket.params, strict=True)])
            h = case.live(t, lr=0.01)
            whole[b], cut[b] = replace(bucket, h=h), [replace(part, h=h) for part in parts]
        with torch.no_grad():
            expected = own.run(whole)
        got = ranks.run(engines, [[parts[rank] for parts in cut] for rank in range(k)])
    return whole, cut, ranks.calls / STEPS, (expected, got)


def compare(whole, cut: Sequence):
    """The same bits where no sums are asked for, else values that are near."""
    for bucket, parts in zip(whole, cut, strict=True):
        rounded = any(codec.lossy for codec in bucket.codecs.values())
        got = joined(bucket, parts)
        other = replace(bucket, params=got.pop("p"), stored=got)
        for i, p in enumerate(bucket.params):
            for name in ("p", *got):
                x, y = (b.params[i] if name == "p" else b.stored[name][i] for b in (other, bucket))
                assert x.shape == y.shape and x.dtype == y.dtype, name
                assert parts[0].asks or torch.equal(x, y), f"{name} of {tuple(p.shape)}"
            (p, slots), (q, others) = read(other, i), read(bucket, i)
            for name, x, y in [("p", p, q), *((n, x, getattr(others, n)) for n, x in vars(slots).items())]:
                assert x.isfinite().all() and near(x, y, rounded), f"{name} of {tuple(p.shape)}"


def near(x, y, rounded):
    """Whether all elements are close, or, where values are rounded, all but few."""
    far = (x - y).abs() > CLOSE * y.abs().max()
    return far.double().mean() <= (max(FEW, 1.5 / x.numel()) if rounded else 0.0)
