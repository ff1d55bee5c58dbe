"""The rule over lists of tensors: traced once, then run with as few calls and as few bytes as it allows.

On a CPU large tensors are cut into pieces that stay in cache, so that a chain of a dozen operations moves
each byte to and from memory once, and small ones are gathered into lists, one call an operation. On other
devices a launch costs more than a byte: everything is one list. Where a codec is in use, one tensor at a
time is decoded into temporaries, stepped there and encoded again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from steepest.codecs import plain
from steepest.contract import Live, Rule, Scope, compute_dtype
from steepest.engines import reference
from steepest.engines.bucket import Bucket, Engine, read, write
from steepest.engines.parts import run_all
from steepest.engines.program import Program, Step
from steepest.engines.workers import share
from steepest.kernels.trace import structure, trace

PIECE = 2**19
"""Elements in a piece on a CPU: two MiB of float32 a list, chosen by measurement (docs/log.md)."""

SMALL = 2**14
"""Tensors of fewer elements are gathered into lists on a CPU: their calls cost more than their bytes."""

_PROGRAMS: WeakKeyDictionary[Callable[..., Any], dict[Any, Program | None]] = WeakKeyDictionary()


def find_program(rule: Rule, h: Live, slots: Sequence[str]) -> Program | None:
    """The rule's program for these slots and fixed hyperparameters, made at the first call.

    None for a rule that cannot be traced: it branches on a tensor, asks for a shape, or uses an operation
    outside the vocabulary of `kernels.trace`.
    """
    known = _PROGRAMS.setdefault(rule.formula, {})
    parts = [bool(rule.slots[name].shape) for name in slots]
    key = rule.decay, rule.apply, *slots, *parts, *vars(h), repr(structure(rule, h))
    if key not in known:
        try:
            known[key] = Program(trace(rule, h, slots), slots)
        except Exception:  # whatever a proxy provokes in a formula; a true error shows when it runs as it is
            known[key] = None
    return known[key]


class Foreach(Engine):
    """Lists of tensors, by torch's own operations; works on every device that torch knows."""

    name = "foreach"

    def run(self, buckets: Sequence[Bucket]) -> list[Tensor | None]:
        return run_all(buckets, run)


def run(bucket: Bucket) -> Tensor | None:
    """One step of every parameter of a bucket, in place; its telemetry."""
    rule, slots = bucket.rule, [slot for slot in bucket.codecs if slot != "p"]
    program = find_program(rule, bucket.h, slots)
    if program is None:
        return reference.run(bucket)
    dtype = compute_dtype(bucket.params[0])
    values, steps = program.bind(bucket.h, dtype)
    work = partial(_run_pieces, program, values, steps, dtype, rule.scope)
    if bucket.telemetry or any(bucket.codecs[slot] is not plain(dtype) for slot in slots) or _coded(bucket):
        sums: list[Tensor | None] = []
        work(_decoded(bucket, [slot for slot in slots if f"s.{slot}" in program.graph.outputs], sums))
        return reference.stack(sums)
    cut = rule.scope is Scope.ELEMENT and len(steps) > 1  # one operation has nothing to reuse
    pieces = list(_pieces([bucket.params, bucket.grads, *(bucket.stored[slot] for slot in slots)], cut))
    threads = torch.get_num_threads()
    if cut and threads > 1 and len(pieces) >= 2 * threads:
        share(work, pieces)
    else:
        work(pieces)
    return None


def _coded(bucket: Bucket) -> bool:
    return bucket.codecs["p"] is not plain(bucket.params[0].dtype)


def _decoded(
    bucket: Bucket, changed: Sequence[str], sums: list[Tensor | None]
) -> Iterator[list[list[Tensor]]]:
    """Each parameter as a piece of its own, decoded; once it has been stepped in place it is stored again.

    changed: the slots to store.  sums: takes the rows of telemetry.
    """
    for i, g in enumerate(bucket.grads):
        old, slots = read(bucket, i)
        p = old.clone() if bucket.telemetry else old
        yield [[p], [g.to(p.dtype)], *([x] for x in vars(slots).values())]
        sums.append(write(bucket, i, old, p, {slot: getattr(slots, slot) for slot in changed}))


def _run_pieces(
    program: Program,
    values: Sequence[Any],
    steps: Sequence[Step],
    dtype: torch.dtype,
    scope: Scope,
    pieces: Iterable[list[list[Tensor]]],
) -> None:
    own_values, flat = list(values), [torch.empty(0) for _ in range(program.scratch)]
    for params, grads, *own in pieces:
        wide = [params, grads] if params[0].dtype == grads[0].dtype == dtype else _wide(params, grads, dtype)
        row = [column[0] for column in (*wide, *own)]
        # A sum follows the layout of what it adds up: beside odd layouts, results choose their own.
        if len(params) == 1 and (scope is Scope.ELEMENT or all(t.is_contiguous() for t in row)):
            size = row[0].numel()
            if flat and (flat[0].numel() < size or flat[0].dtype != dtype):
                flat = [torch.empty(size, dtype=dtype, device=row[0].device) for _ in flat]
            program.run(own_values, steps, row, [t[:size].view(row[0].shape) for t in flat])
        else:
            program.run_lists(own_values, steps, [*wide, *own])
        if wide[0] is not params:
            torch._foreach_copy_(params, wide[0])


def _wide(params: list[Tensor], grads: list[Tensor], dtype: torch.dtype) -> list[list[Tensor]]:
    return [[t.to(dtype) for t in params], [t.to(dtype) for t in grads]]


def _pieces(columns: Sequence[Sequence[Tensor]], cut: bool) -> Iterator[list[list[Tensor]]]:
    """Large tensors in pieces of PIECE elements, others as they are, small ones together.

    A tensor is cut only if the rule works element by element and all its lists lie flat in memory;
    cuts fall on multiples of PIECE, so vector lanes see the same neighbours as in the whole tensor.
    """
    if columns[0][0].device.type != "cpu":
        yield [list(column) for column in columns]
        return
    small: list[list[Tensor]] = [[] for _ in columns]
    for row in zip(*columns, strict=True):
        size = row[0].numel()
        if size < min(SMALL, PIECE):
            for column, tensor in zip(small, row, strict=True):
                column.append(tensor)
        elif cut and size > PIECE and all(t.is_contiguous() for t in row):
            for part in zip(*(t.view(-1).split(PIECE) for t in row), strict=True):
                yield [[t] for t in part]
        else:
            yield [[t] for t in row]
    if small[0]:
        yield small
