"""Which parameters one kernel serves, and which none can: the same question on every device."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

import torch

from steepest.contract import Live
from steepest.engines.bucket import Bucket
from steepest.kernels import Kernel, build, structure

log = logging.getLogger("steepest")

TYPES = (torch.float32, torch.bfloat16, torch.float16)
_KERNELS: WeakKeyDictionary[Callable[..., Any], dict[Any, Kernel | None]] = WeakKeyDictionary()


def find_kernel(bucket: Bucket, vectors: tuple[tuple[str, str], ...]) -> Kernel | None:
    """The kernel for parameters of this bucket, made when it is first asked for; None if there can be none.

    vectors: slots that are means, and whether of rows or of columns.
    """
    rule, h = bucket.rule, always(bucket.h)
    codecs = tuple((slot, id(codec)) for slot, codec in bucket.codecs.items())
    fixed = repr(structure(rule, h))
    options = bucket.grads[0].dtype, vectors, bucket.telemetry, bucket.asks
    key = rule.decay, rule.apply, codecs, options, fixed, *vars(h)
    known = _KERNELS.setdefault(rule.formula, {})
    if key not in known:
        try:
            grad = bucket.grads[0].dtype
            known[key] = build(rule, h, bucket.codecs, grad, dict(vectors), bucket.telemetry, bucket.asks)
        except Exception as error:  # whatever a proxy provokes in a formula; a true error shows in foreach
            log.warning("%s runs on the foreach engine, without kernels: %s", rule.name, error)
            known[key] = None
    return known[key]


def always(h: Live) -> Live:
    """The same with a scale and an L2 decay even where they do nothing: one kernel for both."""
    return Live(**{**vars(h), "scale": 1.0 if h.scale is None else h.scale, "l2": h.l2 or 0.0})


def signature(bucket: Bucket) -> tuple[Any, ...]:
    """What a plan was made for, cheap to compare at every step."""
    fixed = repr(structure(bucket.rule, always(bucket.h)))
    kind = bucket.grads[0].dtype, bucket.telemetry, bucket.add_up
    return id(bucket.params), id(bucket.stored), bucket.rule.formula, fixed, kind


def _vectors(bucket: Bucket, i: int, device: str) -> tuple[tuple[str, str], ...] | None:
    """The slots of a parameter that are means of its rows or columns; None if no kernel can serve it."""
    p, g = bucket.params[i], bucket.grads[i]
    stored = [tensors[i] for tensors in bucket.stored.values()]
    if not all(t.device.type == device and t.is_contiguous() for t in (p, *stored)):
        return None
    if p.dtype not in TYPES or g.dtype not in TYPES or g.layout is not torch.strided:
        return None
    found = []
    for slot, declared in bucket.rule.slots.items():
        if declared.shape is None or slot not in bucket.codecs or slot not in bucket.stored:
            continue
        shape = bucket.stored[slot][i].shape
        if p.ndim != 2 or shape not in ((p.shape[0], 1), (1, p.shape[1])):
            return None
        found.append((slot, "row" if shape[1] == 1 else "column"))
    return tuple(found)


Place = tuple[int, int]
"""Numbers of a bucket and of a parameter in it."""


def classify(
    buckets: Sequence[Bucket], device: str
) -> tuple[list[tuple[Kernel, list[Place]]], list[tuple[int, list[int]]]]:
    """Kernels and the parameters that each serves; buckets and their parameters that none does.

    device: the type of the tensors' device. All who hold parts of the same tensors decide alike.
    """
    classes: dict[Any, tuple[Kernel, list[Place]]] = {}
    rest: list[tuple[int, list[int]]] = []
    for b, bucket in enumerate(buckets):
        kernels: dict[Any, Kernel | None] = {}
        others = []
        for i, p in enumerate(bucket.params):
            if not (p.numel() or bucket.asks):  # where sums are asked for, everybody has to take part
                continue
            vectors = _vectors(bucket, i, device)
            if vectors is not None and vectors not in kernels:
                kernels[vectors] = find_kernel(bucket, vectors)
            kernel = kernels[vectors] if vectors is not None else None
            whole = bucket.shard(i).shape
            if kernel is None or (kernel.by_rows and (len(whole) != 2 or min(whole) < 2)):
                others.append(i)
            else:
                key = id(kernel), bucket.add_up if bucket.asks else None
                classes.setdefault(key, (kernel, []))[1].append((b, i))
        if others:
            rest.append((b, others))
    return list(classes.values()), rest


def by_bucket(places: Sequence[Place]) -> list[tuple[int, list[int]]]:
    """The same places, bucket by bucket."""
    return [(b, [i for c, i in places if c == b]) for b in dict.fromkeys(b for b, _ in places)]


def part_of(bucket: Bucket, indices: Sequence[int]) -> Bucket:
    """A bucket of some of the parameters."""

    def pick(items: list[Any]) -> list[Any]:
        return [items[i] for i in indices]

    stored = {name: pick(tensors) for name, tensors in bucket.stored.items()}
    params, grads, ordinals = pick(bucket.params), pick(bucket.grads), pick(bucket.ordinals)
    shards = [bucket.shards[i] for i in indices] if bucket.shards else None
    return replace(bucket, stored=stored, params=params, grads=grads, ordinals=ordinals, shards=shards)
