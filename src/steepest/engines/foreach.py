"""The rule over lists of tensors: traced once, then run with as few calls and as few bytes as it allows.

On a CPU large tensors are cut into pieces that stay in cache, so that a chain of a dozen operations moves
each byte to and from memory once, and small ones are gathered into lists, one call an operation. On other
devices a launch costs more than a byte: everything is one list.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from steepest.contract import Live, Rule, Scope, compute_dtype
from steepest.engines import reference
from steepest.engines.program import Program, Step
from steepest.engines.workers import share
from steepest.kernels.trace import structure, trace

PIECE = 2**19
"""Elements in a piece on a CPU: two MiB of float32 a list, chosen by `bench/foreach.py`."""

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


def run(
    rule: Rule,
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    slots: Mapping[str, Sequence[Tensor]],
    h: Any,
) -> None:
    """One step of every parameter, in place. Low-precision tensors are computed in float32."""
    program = find_program(rule, h, list(slots))
    if program is None:
        reference.run(rule, params, grads, slots, h)
        return
    dtype = compute_dtype(params[0])
    values, steps = program.bind(h, dtype)
    cut = rule.scope is Scope.ELEMENT and len(steps) > 1  # one operation has nothing to reuse
    pieces = list(_pieces([params, grads, *slots.values()], cut))
    work = partial(_run_pieces, program, values, steps, dtype, rule.scope)
    threads = torch.get_num_threads()
    if cut and threads > 1 and len(pieces) >= 2 * threads:
        share(work, pieces)
    else:
        work(pieces)


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
