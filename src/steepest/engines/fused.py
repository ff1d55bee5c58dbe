"""One kernel launch a pass for all parameters of a kind, whatever their number.

Parameters that one kernel serves (same rule, codecs, types; same kind of shape) form a plan, across groups
and step counts: what differs between them is data in tables. Addresses are read anew at every step, so
nothing a user replaces is ever stale. What kernels cannot serve goes to the foreach engine, and says so once.
"""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from steepest.codecs import stored_name, tensor_key
from steepest.engines.bucket import Bucket, Engine, Pending, Request
from steepest.engines.classes import TYPES, always, classify, part_of, signature
from steepest.engines.foreach import Foreach
from steepest.engines.gpu import Gpu
from steepest.engines.norms import global_norm
from steepest.engines.tables import Tables
from steepest.kernels import prepass
from steepest.kernels.llvm import FACTS
from steepest.kernels.triton import available

log = logging.getLogger("steepest")

_prepass = cache(prepass)


@dataclass(slots=True)
class Plan:
    """Tensors that one kernel serves. places: (bucket, parameter) of each, groups: the buckets by number."""

    tables: Tables
    places: list[tuple[int, int]]
    groups: list[int]


class Fused(Engine):
    """Compiled kernels where they serve, foreach elsewhere."""

    name: ClassVar[str] = "fused"
    accelerator: ClassVar[str] = "cuda"
    """The type of device whose kernels Triton compiles."""

    def __init__(self) -> None:
        self._gpus: dict[torch.device, Gpu] = {}
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
        sums: dict[int, Tensor | None] = {}
        for device in dict.fromkeys(b.params[0].device for b in buckets):
            own = [i for i, b in enumerate(buckets) if b.params[0].device == device]
            run = self._gpu(device).run if self._compiles(device) else self._run_here
            sums |= zip(own, run([buckets[i] for i in own]), strict=True)
        return [sums[i] for i in range(len(buckets))]

    def defers(self, grads: Sequence[Tensor]) -> bool:
        devices = {g.device for g in grads}
        return len(devices) == 1 and self._compiles(devices.pop())

    def commit(self, buckets: Sequence[Bucket], request: Request) -> Pending | None:
        return self._gpu(buckets[0].params[0].device).commit(buckets, request)

    def _compiles(self, device: torch.device) -> bool:
        if device.type != self.accelerator:
            return False
        if (why := available()) is not None:
            _complain(why)
        return why is None

    def _gpu(self, device: torch.device) -> Gpu:
        if device not in self._gpus:
            self._gpus[device] = Gpu(device)
        return self._gpus[device]

    def _run_here(self, buckets: Sequence[Bucket]) -> list[Tensor | None]:
        signatures = [signature(bucket) for bucket in buckets]
        if signatures != self._signature or self._moved(buckets):
            self._plan(buckets)
            self._signature = signatures
            self._kept = [(b.params, b.stored) for b in buckets]  # so that no other list takes their ids
        sums: list[Tensor | None] = [
            torch.zeros(len(b.params), 4, dtype=torch.float64) if b.telemetry else None for b in buckets
        ]
        for plan in self._plans:
            self._run(plan, buckets, sums)
        for b, indices in self._rest:
            found = self._foreach.run([part_of(buckets[b], indices)])[0]
            if (own := sums[b]) is not None and found is not None:
                own[indices] = found
        return sums

    def _moved(self, buckets: Sequence[Bucket]) -> bool:
        """Whether a parameter has got other memory, and so perhaps another layout."""
        for plan in self._plans:
            column = plan.tables.pointers[:, plan.tables.columns["p"]]
            if column.tolist() != [buckets[b].params[i].data_ptr() for b, i in plan.places]:
                return True
        return False

    def _plan(self, buckets: Sequence[Bucket]) -> None:
        classes, self._rest = classify(buckets, "cpu")
        self._plans = []
        for kernel, places in classes:
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
            tables.constants[row] = kernel.constants(always(buckets[b].h))
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


@cache
def _complain(why: str) -> None:
    log.warning("the GPU runs without kernels of its own, on the foreach engine: %s", why)
