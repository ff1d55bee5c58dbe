"""Steps on a GPU: the verdict and every number it leads to are computed there, and the host never waits.

Each pass is one launch for all parameters of a plan. Live numbers lie in a table on the device, and the step
count of every group is counted there, by committed steps alone, so that a veto is exact even where the host
learns of it a step later, or, in a CUDA graph, many steps later.

A step may be captured. Take one before the capture; keep gradients where they are, with
`zero_grad(set_to_none=False)`; let what changes (the learning rate) be a tensor on the device. Counters and
the last verdict are read from the device when somebody asks for them, and then wait for it.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from steepest.codecs import stored_name
from steepest.contract import SteepestError
from steepest.engines.bucket import Bucket, Pending, Request
from steepest.engines.classes import Place, always, by_bucket, classify, part_of, signature
from steepest.engines.foreach import Foreach
from steepest.engines.gpu_tables import Compiled, Mirror, Tables, capturing
from steepest.engines.gpu_verdict import Court
from steepest.kernels import Kernel, Untraceable
from steepest.kernels.triton import load, print_triton

log = logging.getLogger("steepest")


def start(function: Any, programs: int, *arguments: Any, **options: Any) -> None:
    """Launch a function of Triton."""
    function[(programs,)](*arguments, **options)


@dataclass(slots=True)
class Plan:
    """Tensors that one kernel serves. groups: the buckets by number.  counted: the steps that the device
    is thought to have counted for each.  reports: where the telemetry of each tensor goes."""

    tables: Tables
    places: list[Place]
    groups: list[int]
    counted: list[int]
    reports: Tensor | None


class Gpu:
    """The kernels of one device, and what it needs to run them."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._signature: Any = None
        self._kept: Any = None
        self._plans: list[Plan] = []
        self._rest: list[tuple[int, list[int]]] = []
        self._sums: list[Tensor | None] = []
        self._court: tuple[Any, Court] | None = None
        self._always = torch.ones(2, dtype=torch.float64, device=device)
        self._foreach = Foreach()

    def refusal(self) -> str | None:
        """None if Triton compiles and launches here, else why not: it may find no C compiler, no driver."""
        self._refuse_capture()
        try:
            with self._on():
                Court([], self._device).decide(Request(looks=False, max_norm=None, clip_eps=0.0), start)
        except Exception as error:  # whatever an installation lacks; the foreach engine serves then
            return f"{type(error).__name__}: {error}"
        return None

    def _refuse_capture(self) -> None:
        if capturing(self._always):
            raise SteepestError("the first step may not be captured; take one before the capture begins.")

    # ------------------------------------------------------------ steps

    def run(self, buckets: Sequence[Bucket]) -> list[Tensor | None]:
        """A step that has been decided, as `Engine.run`."""
        with self._on():
            self._prepare(buckets)
            grads = [_flat(bucket.grads) for bucket in buckets]
            for plan in self._plans:
                self._feed(plan, buckets, grads)
                self._launch(plan, self._always)
        rest = self._foreach.run([part_of(buckets[b], indices) for b, indices in self._rest])
        for (b, indices), found in zip(self._rest, rest, strict=True):
            if (own := self._sums[b]) is not None and found is not None:
                own[indices] = found
        return list(self._sums)

    def commit(self, buckets: Sequence[Bucket], request: Request) -> Pending | None:
        """A step that the device decides about, as `Engine.commit`. Not where tensors are cut: a verdict
        about parts is not this rank's to make."""
        if any(bucket.shards is not None for bucket in buckets):
            return None
        with self._on():
            self._prepare(buckets)
            if self._rest:
                return None
            grads = [_flat(bucket.grads) for bucket in buckets]
            every = [g for own in grads for g in own]
            court = self._court_of(every)
            court.point(every)
            for plan in self._plans:
                self._feed(plan, buckets, grads)
            court.decide(request, start)
            for plan in self._plans:
                self._launch(plan, court.control)
            return court.pending(list(self._sums))

    def _on(self) -> AbstractContextManager[Any]:
        return torch.cuda.device(self._device) if self._device.type == "cuda" else nullcontext()

    def _court_of(self, grads: Sequence[Tensor]) -> Court:
        key = [(g.dtype, g.numel()) for g in grads]
        if self._court is None or self._court[0] != key:
            self._court = key, Court(key, self._device)
        return self._court[1]

    # ------------------------------------------------------------ plans

    def _prepare(self, buckets: Sequence[Bucket]) -> None:
        signatures = [(signature(b), b.seed, id(b.ordinals)) for b in buckets]
        if signatures == self._signature and not self._moved(buckets):
            return
        self._refuse_capture()
        self._signature = None
        self._kept = [(b.params, b.stored, b.ordinals) for b in buckets]  # so that their ids are not taken
        self._sums = [
            torch.zeros(len(b.params), 4, dtype=torch.float64, device=self._device) if b.telemetry else None
            for b in buckets
        ]
        classes, self._rest = classify(buckets, self._device.type)
        self._plans = []
        for kernel, places in classes:
            plan = self._plan(kernel, places, buckets)
            if plan is None:
                self._rest += by_bucket(places)
            else:
                self._plans.append(plan)
        self._signature = signatures

    def _moved(self, buckets: Sequence[Bucket]) -> bool:
        """Whether a parameter has got other memory, and so perhaps another layout."""
        return any(
            plan.tables.pointers.array[:, plan.tables.columns["p"]].tolist()
            != [buckets[b].params[i].data_ptr() for b, i in plan.places]
            for plan in self._plans
        )

    def _plan(self, kernel: Kernel, places: list[Place], buckets: Sequence[Bucket]) -> Plan | None:
        if buckets[places[0][0]].asks:  # sums are completed between launches by the host, in foreach
            return None
        try:
            printed = print_triton(kernel.schedule, kernel.layout)
        except Untraceable as error:
            log.info("%s runs on the foreach engine: %s", buckets[places[0][0]].rule.name, error)
            return None
        groups = list(dict.fromkeys(b for b, _ in places))
        tables = Tables(
            Compiled(kernel, printed, load(printed.text)),
            [buckets[b].params[i].shape for b, i in places],
            [groups.index(b) for b, _ in places],
            [buckets[b].ordinals[i] for b, i in places],
            [buckets[b].shard(i).start for b, i in places],
            [buckets[b].seed for b, _ in places],
            self._device,
        )
        tables.point("p", [buckets[b].params[i] for b, i in places])
        reports = None
        if kernel.schedule.code.sums:
            rows = [own[i].data_ptr() for b, i in places if (own := self._sums[b]) is not None]
            reports = torch.tensor(rows, dtype=torch.int64, device=self._device)
        return Plan(tables, places, groups, [0] * len(groups), reports)

    # ------------------------------------------------------------ what a step reads

    def _feed(self, plan: Plan, buckets: Sequence[Bucket], grads: Sequence[Sequence[Tensor]]) -> None:
        tables = plan.tables
        tables.point("g", [grads[b][i] for b, i in plan.places])
        for slot, codec in buckets[plan.groups[0]].codecs.items():
            for part in codec.parts:
                if (name := stored_name(slot, part)) != "p":
                    tables.point(name, [buckets[b].stored[name][i] for b, i in plan.places])
        names = [name.removeprefix("h.") for name in tables.compiled.printed.live]
        for row, b in enumerate(plan.groups):
            h = always(buckets[b].h)
            tables.live.put((row, slice(len(names))), [float(getattr(h, name)) for name in names])
        tables.send()
        for row, b in enumerate(plan.groups):
            self._feed_tensors(tables.live, row, names, buckets[b])
            self._count(plan, row, buckets[b].h.t)

    def _feed_tensors(self, live: Mirror, row: int, names: Sequence[str], bucket: Bucket) -> None:
        """Numbers that are on the device already go from there into the table."""
        for column, name in enumerate(names):
            source = "weight_decay" if name == "l2" else name
            if source in bucket.tensors:
                live.device[row, column].copy_(bucket.tensors[source].squeeze())

    def _count(self, plan: Plan, row: int, t: int) -> None:
        """Correct the device's count of steps where the host knows another; t: the step now taken."""
        if plan.counted[row] != t - 1:
            if capturing(self._always):
                raise SteepestError("the step before a captured one was vetoed, or loaded; take another.")
            plan.tables.steps[row] = t - 1
        plan.counted[row] = t - 1 if capturing(self._always) else t

    def _launch(self, plan: Plan, control: Tensor) -> None:
        plan.tables.run(start, control)
        if plan.reports is not None:
            from steepest.kernels.triton import device as functions

            schedule = plan.tables.compiled.kernel.schedule
            for own, partials in zip(schedule.passes, plan.tables.partials, strict=True):
                if own.telemetry:
                    options = {
                        "WIDTH": partials.shape[1],
                        "COUNT": len(own.telemetry),
                        "AT": list(schedule.code.sums).index(own.telemetry[0][0]),
                    }
                    arguments = plan.reports, *plan.tables.pieces, partials, control
                    start(functions.report, len(plan.places), *arguments, **options)


def _flat(grads: Sequence[Tensor]) -> list[Tensor]:
    return [g if g.is_contiguous() else g.contiguous() for g in grads]
