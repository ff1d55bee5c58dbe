"""Steps of tensors of which only parts are here, by rules or codecs that sum over whole tensors.

The traced step runs node by node, as one coroutine a tensor. Where it lacks sums it first does everything
that needs none, then hands out its own share of all of them as one vector, and goes on when the vector holds
the sums of the whole. The coroutines of a step wait together, so everybody adds up once for every level of
sums, however many tensors there are, and whether or not anything of them is here.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from steepest.codecs import pack, stored_name, unpack, verbs
from steepest.contract import AddUp, SteepestError, compute_dtype
from steepest.engines.bucket import Bucket, noise
from steepest.kernels.trace import (
    REDUCTIONS,
    Graph,
    Node,
    Untraceable,
    random_word,
    structure,
    trace_coded,
)
from steepest.ops import mean_to

Turns: TypeAlias = Iterator[Tensor]
"""A coroutine. It yields its share of some sums, a float64 vector, and finds the sums in it afterwards."""

WHOLE = (torch.mean, torch.sum, torch.linalg.vector_norm)
"""Reductions to one number, without dimensions."""

_GRAPHS: WeakKeyDictionary[Callable[..., Any], dict[Any, Graph]] = WeakKeyDictionary()


def together(waiting: Sequence[tuple[AddUp, Turns]]) -> None:
    """Run coroutines to their ends, side by side; what they hand out at one time is added up in one go."""
    while waiting:
        asked = [(add_up, own, x) for add_up, own in waiting if (x := next(own, None)) is not None]
        for key in dict.fromkeys((add_up, x.device) for add_up, _, x in asked):
            shares = [x for add_up, _, x in asked if (add_up, x.device) == key]
            vector = torch.cat(shares)
            key[0](vector)
            for share, total in zip(shares, vector.split([len(x) for x in shares]), strict=True):
                share.copy_(total)
        waiting = [(add_up, own) for add_up, own, _ in asked]


def run_all(buckets: Sequence[Bucket], whole: Callable[[Bucket], Tensor | None]) -> list[Tensor | None]:
    """One step of all buckets, of those that ask for nothing by `whole`; their telemetry."""
    started = [start(bucket, whole) for bucket in buckets]
    together([turns for _, own in started for turns in own])
    return [sums for sums, _ in started]


def start(
    bucket: Bucket, whole: Callable[[Bucket], Tensor | None]
) -> tuple[Tensor | None, list[tuple[AddUp, Turns]]]:
    """A bucket's telemetry, and the coroutines to be run; without any, `whole` has made the step."""
    if bucket.add_up is None or not bucket.asks:
        return whole(bucket), []
    graph, count = find_graph(bucket), len(bucket.params)
    sums = torch.zeros(count, 4, dtype=torch.float64, device=bucket.params[0].device)
    turns = [(bucket.add_up, _turns(graph, bucket, i, sums[i])) for i in range(count)]
    return sums if bucket.telemetry else None, turns


def find_graph(bucket: Bucket) -> Graph:
    """The whole step of a bucket's parameters, from stored numbers to stored numbers."""
    rule, h = bucket.rule, bucket.h
    known = _GRAPHS.setdefault(rule.formula, {})
    codecs = tuple((slot, id(codec)) for slot, codec in bucket.codecs.items())
    key = rule.decay, rule.apply, codecs, *vars(h), repr(structure(rule, h)), bucket.telemetry
    if key not in known:
        try:
            known[key] = trace_coded(rule, h, bucket.codecs, bucket.telemetry)
        except Untraceable as error:
            raise SteepestError(
                f"{rule.name} sums over tensors of which this rank has a part, and its sums cannot be found: "
                f"{error} Write it in the verbs of steepest.ops, or place whole tensors (zero1)."
            ) from error
    return known[key]


@dataclass(frozen=True, slots=True)
class _Share:
    """A part's share of some sums, and what makes the value of its node of their totals."""

    node: Node
    sums: Tensor
    finish: Callable[[Tensor], Tensor]


def _turns(graph: Graph, bucket: Bucket, i: int, sums: Tensor) -> Turns:
    """The step of parameter i. sums: takes its telemetry."""
    values, apart = _begin(graph, bucket, i)
    axes, cut = _axes(graph, values, apart, bucket.params[i].shape)
    readers = Counter(k for node in graph.nodes for k in _reads(node)) + Counter(graph.outputs.values())
    words, rows = noise(bucket, i).words, bucket.shard(i).shape[0]
    waiting = list(graph.nodes)
    while waiting:
        later, shares = [], []
        for node in waiting:
            if not all(k in values for k in _reads(node)):
                later.append(node)
                continue
            if node.args[0] in cut and 0 in axes.get(node.value, ()):
                shares.append(_share(node, values[node.args[0]], axes[node.value], rows))
            else:
                values[node.value] = _value(node, values, axes.get(node.value), words)
            for k in _reads(node):
                readers[k] -= 1
                if not readers[k]:
                    del values[k]
        if shares:
            vector = torch.cat([share.sums.reshape(-1) for share in shares])
            yield vector
            totals = vector.split([share.sums.numel() for share in shares])
            for share, total in zip(shares, totals, strict=True):
                values[share.node.value] = share.finish(total.view(share.sums.shape))
        waiting = later
    _end(graph, bucket, i, values, sums)


def _begin(graph: Graph, bucket: Bucket, i: int) -> tuple[dict[int, Any], set[int]]:
    """The values that are known before a graph runs, and which of the stored ones every rank has whole."""
    p, whole = bucket.params[i], bucket.shard(i).shape
    values: dict[int, Any] = dict(graph.constants)
    values |= {k: getattr(bucket.h, name[2:]) for name, k in graph.inputs.items() if name.startswith("h.")}
    values[graph.inputs["g"]] = bucket.grads[i].to(compute_dtype(p))
    apart = set()
    for slot, codec in bucket.codecs.items():
        declared = bucket.rule.slots[slot].shape if slot != "p" else None
        # Numbers that are kept once a column are whole, also where this rank has one row.
        own = declared is not None and declared(whole, vars(bucket.h))[:1] != whole[:1]
        for part, of in codec.parts.items():
            name = stored_name(slot, part)
            k, stored = graph.inputs[name], p if name == "p" else bucket.stored[name][i]
            values[k] = unpack(stored, of, p.shape)
            if own or (of.per == "column" and len(whole) == 2):
                apart.add(k)
    return values, apart


def _axes(
    graph: Graph, values: dict[int, Any], apart: set[int], shape: torch.Size
) -> tuple[dict[int, list[int]], set[int]]:
    """The dimensions along which each reduction of a graph runs, and the values that are cut. They
    follow from shapes alone."""
    shapes = {k: x.shape for k, x in values.items() if isinstance(x, Tensor)}
    cut, found = set(shapes) - apart, {}
    for node in graph.nodes:
        if node.op is random_word:
            shapes[node.value] = shape
            cut.add(node.value)
        elif node.op in REDUCTIONS:
            x, axes = shapes[node.args[0]], _along(node, shapes, cut)
            found[node.value] = axes
            kept = () if node.op in WHOLE else (1 if d in axes else n for d, n in enumerate(x))
            shapes[node.value] = torch.Size(kept)
            if node.args[0] in cut and 0 not in axes:
                cut.add(node.value)
        elif operands := [k for k in node.operands if k in shapes]:
            shapes[node.value] = torch.broadcast_shapes(*(shapes[k] for k in operands))
            if cut.intersection(operands):
                cut.add(node.value)
    return found, cut


def _along(node: Node, shapes: dict[int, torch.Size], cut: set[int]) -> list[int]:
    """The dimensions along which a reduction runs: the first, for a mean, where what it is shaped like is not
    cut, whatever its length is here."""
    if node.op is mean_to:
        like = node.args[1]
        return [d for d, n in enumerate(shapes[like]) if (n == 1 if d else like not in cut)]
    last = len(shapes[node.args[0]])
    if node.op is verbs.row_mean:
        return [last - 1]
    return [last - 2] if node.op is verbs.column_mean else list(range(last))


def _reads(node: Node) -> tuple[int, ...]:
    """The values that have to be there; of what a mean is shaped like only the shape counts."""
    return node.args[:1] if node.op is mean_to else node.operands


def _share(node: Node, x: Tensor, axes: list[int], rows: int) -> _Share:
    """The share of a part in sums along its first dimension. rows: the whole's length of that."""
    norm, mean = node.op is torch.linalg.vector_norm, node.op not in (torch.linalg.vector_norm, torch.sum)
    wide, count = x.double(), rows * math.prod(x.shape[d] for d in axes if d)

    def finish(total: Tensor) -> Tensor:
        return (total.sqrt() if norm else total / count if mean else total).to(x.dtype)

    return _Share(node, (wide * wide if norm else wide).sum(axes, keepdim=node.op not in WHOLE), finish)


def _value(node: Node, values: dict[int, Any], axes: list[int] | None, words: Callable[[int], Tensor]) -> Any:
    """What a node makes of values that are there; sums run along dimensions that are whole."""
    x = values[node.args[0]]
    if node.op is random_word:
        return words(x)
    if node.op is mean_to:
        return x.mean(axes, keepdim=True) if axes else x.clone()
    return node.op(*(values[k] for k in node.args), **{name: values[k] for name, k in node.kwargs})


def _end(graph: Graph, bucket: Bucket, i: int, values: dict[int, Any], sums: Tensor) -> None:
    """Store what has changed, and report."""
    p = bucket.params[i]
    for slot, codec in bucket.codecs.items():
        for part, of in codec.parts.items():
            name = stored_name(slot, part)
            if name in graph.outputs:
                to = p if name == "p" else bucket.stored[name][i]
                to.copy_(pack(values[graph.outputs[name]], of, p.shape))
    reported = [name for name in graph.outputs if name.startswith("sum.")]
    for column, name in enumerate(reported):
        sums[column] = values[graph.outputs[name]].sum(dtype=torch.float64)
