"""Steps on a CPU by compiled kernels: tables of addresses are filled, and each pass is one launch.

Parameters that one kernel serves (same rule, codecs, types; same kind of shape) form a plan, across groups
and step counts: what differs between them is data in tables. What a bucket holds may be kept from step to
step as long as its lists are the same objects; addresses of gradients and of states are read anew.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from steepest.codecs import stored_name, tensor_key
from steepest.contract import AddUp, Shard
from steepest.engines import foreach
from steepest.engines.bucket import Bucket
from steepest.engines.classes import TYPES, Place, always, by_bucket, classify, part_of, signature
from steepest.engines.norms import global_norm
from steepest.engines.parts import Turns, run_all, start, together
from steepest.engines.tables import Tables
from steepest.kernels import Kernel, Untraceable, available, prepass
from steepest.kernels.llvm import FACTS

log = logging.getLogger("steepest")

_prepass = cache(prepass)


@dataclass(slots=True)
class Plan:
    """Tensors that one kernel serves. groups: the buckets by number.  columns: stored tensors by name.
    whole: whether these are all of one bucket, in its order.  ordinals: of each group, for the noise.
    rows: the places of these tensors among those of all buckets, one after another.
    add_up: how sums over these tensors are completed, None where a step asks for none."""

    tables: Tables
    places: list[Place]
    groups: list[int]
    columns: dict[str, list[Tensor]]
    whole: bool
    ordinals: list[Any]
    rows: Any
    add_up: AddUp | None


class Cpu:
    """The kernels of the CPU, and what it takes to run them."""

    def __init__(self) -> None:
        self._signature: Any = None
        self._kept: Any = None
        self._plans: list[Plan] = []
        self._rest: list[tuple[int, list[int]]] = []
        self._norms: dict[torch.dtype, tuple[list[int], Tables]] = {}

    # ------------------------------------------------------------ the norm

    def measure(self, grads: Sequence[Tensor]) -> float:
        """As `Engine.measure`: the sums of squares of all tensors of a type in one launch."""
        if not self._can_read(grads):
            return global_norm(grads)
        square = 0.0
        for dtype in dict.fromkeys(g.dtype for g in grads):
            own = [g for g in grads if g.dtype is dtype]
            tables = self._norm_tables(dtype, [g.numel() for g in own])
            tables.point("g", own)
            tables.run()
            total, bad = tables.totals().sum(0)
            if bad:
                return math.nan
            square += total
        return math.sqrt(square) if math.isfinite(square) else global_norm(grads)

    def _can_read(self, grads: Sequence[Tensor]) -> bool:
        known = {g.layout for g in grads} <= {torch.strided} and {g.dtype for g in grads} <= {*TYPES}
        here = known and all(g.is_cpu for g in grads)
        return here and all(map(Tensor.is_contiguous, grads)) and self.serves()

    def _norm_tables(self, dtype: torch.dtype, sizes: list[int]) -> Tables:
        known = self._norms.get(dtype)
        if known is None or known[0] != sizes:
            shapes = [torch.Size([n]) for n in sizes]
            tables = Tables(_prepass(dtype), shapes, [0] * len(sizes), list(map(Shard, shapes)))
            self._norms[dtype] = known = sizes, tables
        return known[1]

    def serves(self) -> bool:
        """Whether kernels can be compiled here; says once why not."""
        why = available()
        if why is not None:
            complain(why)
        return why is None

    # ------------------------------------------------------------ the step

    def run(self, buckets: Sequence[Bucket]) -> list[Tensor | None]:
        """As `Engine.run`."""
        if not self.serves():
            return run_all(buckets, foreach.run)
        signatures = [signature(bucket) for bucket in buckets]
        if signatures != self._signature:
            self._signature = None
            self._plan(buckets)
            self._kept = [(b.params, b.stored) for b in buckets]  # so that no other list takes their ids
            self._signature = signatures
        counts = [len(b.params) for b in buckets]
        asking: list[tuple[AddUp, Turns]] = []
        held: list[Sequence[Tensor]] = []
        for plan in self._plans:
            grads = self._fill(plan, buckets)
            if plan.add_up is None:
                plan.tables.run()
            else:
                asking.append((plan.add_up, plan.tables.turns()))
                held.append(grads)
        rest = [start(part_of(buckets[b], indices), foreach.run) for b, indices in self._rest]
        together([*asking, *(turns for _, own in rest for turns in own)])
        if not any(bucket.telemetry for bucket in buckets):
            return [None] * len(buckets)
        sums = np.zeros((sum(counts), 4))
        for plan in self._plans:
            if plan.tables.kernel.schedule.code.sums:
                totals = plan.tables.totals()
                sums[plan.rows, : totals.shape[1]] = totals
        told = torch.from_numpy(sums).split(counts)
        for (b, indices), (found, _) in zip(self._rest, rest, strict=True):
            if found is not None:
                told[b][indices] = found
        return [own if b.telemetry else None for own, b in zip(told, buckets, strict=True)]

    def _plan(self, buckets: Sequence[Bucket]) -> None:
        classes, self._rest = classify(buckets, "cpu")
        self._plans = []
        for kernel, places in classes:
            try:
                self._plans.append(self._plan_of(kernel, places, buckets))
            except (Untraceable, RuntimeError) as error:  # no instruction for it, or LLVM refuses the text
                complain(str(error))
                self._rest += by_bucket(places)

    def _plan_of(self, kernel: Kernel, places: list[Place], buckets: Sequence[Bucket]) -> Plan:
        groups = list(dict.fromkeys(b for b, _ in places))
        shapes = [buckets[b].params[i].shape for b, i in places]
        shards = [buckets[b].shard(i) for b, i in places]
        tables = Tables(kernel, shapes, [groups.index(b) for b, _ in places], shards)
        tables.point("p", [buckets[b].params[i] for b, i in places])
        codecs = buckets[groups[0]].codecs
        names = [stored_name(slot, part) for slot, codec in codecs.items() for part in codec.parts]
        columns = {n: [buckets[b].stored[n][i] for b, i in places] for n in names if n != "p"}
        whole = len(groups) == 1 and len(places) == len(buckets[groups[0]].params)
        ordinals = [
            np.array([buckets[b].ordinals[i] for c, i in places if c == b], np.uint64) for b in groups
        ]
        starts = np.cumsum([0, *(len(bucket.params) for bucket in buckets)])
        rows = np.array([starts[b] + i for b, i in places])
        add_up = buckets[groups[0]].add_up if kernel.schedule.cut else None
        return Plan(tables, places, groups, columns, whole, ordinals, rows, add_up)

    def _fill(self, plan: Plan, buckets: Sequence[Bucket]) -> Sequence[Tensor]:
        """Say where everything lies that a plan reads in this step, and its numbers. Returns the gradients,
        which may be copies, to be held until it has run."""
        tables, kernel = plan.tables, plan.tables.kernel
        grads = buckets[plan.groups[0]].grads if plan.whole else [buckets[b].grads[i] for b, i in plan.places]
        if not all(map(Tensor.is_contiguous, grads)):
            grads = [g.contiguous() for g in grads]
        tables.point("g", grads)
        for name, tensors in plan.columns.items():
            tables.point(name, tensors)
        for row, b in enumerate(plan.groups):
            tables.constants[row] = kernel.constants(always(buckets[b].h))
            if kernel.draws:
                own = tables.facts[:, FACTS.index("group")] == row
                keys = tensor_key(buckets[b].seed, buckets[b].h.t, plan.ordinals[row])
                for name, key in zip(("key0", "key1"), keys, strict=True):
                    tables.facts[own, FACTS.index(name)] = key
        return grads


@cache
def complain(why: str) -> None:
    """Say once in a process why there are no kernels."""
    log.warning("the CPU runs without kernels of its own, on the foreach engine: %s", why)
