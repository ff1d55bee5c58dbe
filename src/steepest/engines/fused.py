"""One kernel launch a pass for all parameters of a kind, whatever their number.

Parameters that one kernel serves (same rule, codecs, types; same kind of shape) form a plan, across groups
and step counts: what differs between them is data in tables. Addresses are read anew at every step, so
nothing a user replaces is ever stale. What kernels cannot serve goes to the foreach engine, and says so once.
"""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from steepest.codecs import stored_name, tensor_key
from steepest.contract import Live
from steepest.engines.bucket import Bucket, Engine
from steepest.engines.foreach import Foreach
from steepest.engines.norms import global_norm
from steepest.engines.tables import Tables
from steepest.kernels import Kernel, build, prepass, structure
from steepest.kernels.llvm import FACTS

log = logging.getLogger("steepest")

TYPES = (torch.float32, torch.bfloat16, torch.float16)
_KERNELS: WeakKeyDictionary[Callable[..., Any], dict[Any, Kernel | None]] = WeakKeyDictionary()
_prepass = cache(prepass)


def find_kernel(bucket: Bucket, vectors: tuple[tuple[str, str], ...]) -> Kernel | None:
    """The kernel for parameters of this bucket, made when it is first asked for; None if there can be none.

    vectors: slots that are means, and whether of rows or of columns.
    """
    rule, h = bucket.rule, _always(bucket.h)
    codecs = tuple((slot, id(codec)) for slot, codec in bucket.codecs.items())
    fixed = repr(structure(rule, h))
    key = rule.decay, rule.apply, codecs, bucket.grads[0].dtype, vectors, fixed, *vars(h), bucket.telemetry
    known = _KERNELS.setdefault(rule.formula, {})
    if key not in known:
        try:
            known[key] = build(rule, h, bucket.codecs, bucket.grads[0].dtype, dict(vectors), bucket.telemetry)
        except Exception as error:  # whatever a proxy provokes in a formula; a true error shows in foreach
            log.info("%s runs on the foreach engine: %s", rule.name, error)
            known[key] = None
    return known[key]


def _always(h: Live) -> Live:
    """The same with a scale and an L2 decay even where they do nothing: one kernel for both."""
    return Live(**{**vars(h), "scale": 1.0 if h.scale is None else h.scale, "l2": h.l2 or 0.0})


@dataclass(slots=True)
class Plan:
    """Tensors that one kernel serves. places: (bucket, parameter) of each, groups: the buckets by number."""

    tables: Tables
    places: list[tuple[int, int]]
    groups: list[int]


class Fused(Engine):
    """Compiled kernels where they serve, foreach elsewhere."""

    name: ClassVar[str] = "fused"

    def __init__(self) -> None:
        self._signature: Any = None
        self._kept: Any = None
        self._plans: list[Plan] = []
        self._rest: list[tuple[int, list[int]]] = []
        self._norms: dict[Any, Tables] = {}
        self._foreach = Foreach()

    # ------------------------------------------------------------ the norm

    def measure(self, grads: Sequence[Tensor]) -> float:
        if not all(_plain(g) for g in grads):
            return global_norm(grads)
        square = 0.0
        by_type: dict[torch.dtype, list[Tensor]] = defaultdict(list)
        for g in grads:
            by_type[g.dtype].append(g)
        for dtype, own in by_type.items():
            sizes = tuple(g.numel() for g in own)
            key = dtype, sizes
            if key not in self._norms:
                self._norms = {k: t for k, t in self._norms.items() if k[0] is not dtype}
                self._norms[key] = Tables(_prepass(dtype), [torch.Size([n]) for n in sizes], [0] * len(own))
            tables = self._norms[key]
            tables.point("g", own)
            tables.run()
            total, bad = tables.sums.sum(0)
            if bad:
                return math.nan
            square += total
        return math.sqrt(square) if math.isfinite(square) else global_norm(grads)

    # ------------------------------------------------------------ the step

    def run(self, buckets: Sequence[Bucket]) -> list[Tensor | None]:
        signature = [_signature(bucket) for bucket in buckets]
        if signature != self._signature or self._moved(buckets):
            self._plan(buckets)
            self._signature = signature
            self._kept = [(b.params, b.stored) for b in buckets]  # so that no other list takes their ids
        sums = [torch.zeros(len(b.params), 4, dtype=torch.float64) if b.telemetry else None for b in buckets]
        for plan in self._plans:
            self._run(plan, buckets, sums)
        for b, indices in self._rest:
            found = self._foreach.run([_part(buckets[b], indices)])[0]
            if sums[b] is not None and found is not None:
                sums[b][indices] = found  # type: ignore[index]
        return sums  # type: ignore[return-value]

    def _moved(self, buckets: Sequence[Bucket]) -> bool:
        """Whether a parameter has got other memory, and so perhaps another layout."""
        for plan in self._plans:
            column = plan.tables.pointers[:, plan.tables.columns["p"]]
            if column.tolist() != [buckets[b].params[i].data_ptr() for b, i in plan.places]:
                return True
        return False

    def _plan(self, buckets: Sequence[Bucket]) -> None:
        classes: dict[int, tuple[Kernel, list[tuple[int, int]]]] = {}
        self._plans, self._rest = [], []
        for b, bucket in enumerate(buckets):
            kernels: dict[Any, Kernel | None] = {}
            rest = []
            for i, p in enumerate(bucket.params):
                if not p.numel():
                    continue
                vectors = _vectors(bucket, i)
                if vectors is not None and vectors not in kernels:
                    kernels[vectors] = find_kernel(bucket, vectors)
                kernel = kernels[vectors] if vectors is not None else None
                if kernel is None or (kernel.by_rows and (p.ndim != 2 or min(p.shape) < 2)):
                    rest.append(i)
                else:
                    classes.setdefault(id(kernel), (kernel, []))[1].append((b, i))
            if rest:
                self._rest.append((b, rest))
        for kernel, places in classes.values():
            groups = list(dict.fromkeys(b for b, _ in places))
            shapes = [buckets[b].params[i].shape for b, i in places]
            tables = Tables(kernel, shapes, [groups.index(b) for b, _ in places])
            tables.point("p", [buckets[b].params[i] for b, i in places])
            self._plans.append(Plan(tables, places, groups))

    def _run(self, plan: Plan, buckets: Sequence[Bucket], sums: list[Any]) -> None:
        tables, kernel = plan.tables, plan.tables.kernel
        grads = [buckets[b].grads[i] for b, i in plan.places]
        grads = [g if g.is_contiguous() else g.contiguous() for g in grads]
        tables.point("g", grads)
        for slot, codec in buckets[plan.groups[0]].codecs.items():
            for part in codec.parts:
                if (name := stored_name(slot, part)) != "p":
                    tables.point(name, [buckets[b].stored[name][i] for b, i in plan.places])
        for row, b in enumerate(plan.groups):
            tables.constants[row] = kernel.constants(_always(buckets[b].h))
        if kernel.draws:
            self._draw(plan, buckets)
        tables.run()
        if kernel.schedule.code.sums:
            found = tables.totals()[:, -4:]
            for (b, i), row in zip(plan.places, found, strict=True):
                sums[b][i] = torch.from_numpy(row)

    def _draw(self, plan: Plan, buckets: Sequence[Bucket]) -> None:
        """The keys of every tensor's noise in this step."""
        groups = plan.tables.facts[:, FACTS.index("group")]
        for row, b in enumerate(plan.groups):
            own = groups == row
            ordinals = np.array([buckets[b].ordinals[i] for c, i in plan.places if c == b], np.uint64)
            keys = tensor_key(buckets[b].seed, buckets[b].h.t, ordinals)
            for name, key in zip(("key0", "key1"), keys, strict=True):
                plan.tables.facts[own, FACTS.index(name)] = key.astype(np.int64)


def _plain(g: Tensor) -> bool:
    return g.layout is torch.strided and g.dtype in TYPES and g.device.type == "cpu" and g.is_contiguous()


def _signature(bucket: Bucket) -> tuple[Any, ...]:
    """What a plan was made for, cheap to compare at every step."""
    fixed = repr(structure(bucket.rule, _always(bucket.h)))
    kind = bucket.grads[0].dtype, bucket.telemetry
    return id(bucket.params), id(bucket.stored), bucket.rule.formula, fixed, kind


def _vectors(bucket: Bucket, i: int) -> tuple[tuple[str, str], ...] | None:
    """The slots of a parameter that are means of its rows or columns; None if no kernel can serve it."""
    p, g = bucket.params[i], bucket.grads[i]
    stored = [tensors[i] for tensors in bucket.stored.values()]
    if not all(t.device.type == "cpu" and t.is_contiguous() for t in (p, *stored)):
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


def _part(bucket: Bucket, indices: Sequence[int]) -> Bucket:
    """A bucket of some of the parameters."""

    def pick(items: Sequence[Any]) -> list[Any]:
        return [items[i] for i in indices]

    stored = {name: pick(tensors) for name, tensors in bucket.stored.items()}
    lists = {name: pick(getattr(bucket, name)) for name in ("params", "grads", "ordinals")}
    return replace(bucket, stored=stored, **lists)
