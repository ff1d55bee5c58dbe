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
    values, cut = _begin(graph, bucket, i)
    readers = Counter(k for node in graph.nodes for k in node.operands) + Counter(graph.outputs.values())
    words, waiting = noise(bucket, i).words, list(graph.nodes)
    while waiting:
        later, shares = [], []
        for node in waiting:
            if not all(k in values for k in node.operands):
                later.append(node)
                continue
            if (share := _share(node, values, cut, bucket, i)) is not None:
                shares.append(share)
            else:
                _compute(node, values, cut, words)
            for k in node.operands:
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
    """The values that are known before a graph runs, and which of them are cut as the parameter is."""
    p, whole = bucket.params[i], bucket.shard(i).shape
    values: dict[int, Any] = dict(graph.constants)
    cut = {graph.inputs["p"], graph.inputs["g"]}
    values |= {k: getattr(bucket.h, name[2:]) for name, k in graph.inputs.items() if name.startswith("h.")}
    values[graph.inputs["g"]] = bucket.grads[i].to(compute_dtype(p))
    for slot, codec in bucket.codecs.items():
        declared = bucket.rule.slots[slot].shape if slot != "p" else None
        # One number a column is kept whole by everybody, also where this rank has one row.
        apart = declared is not None and declared(whole, vars(bucket.h))[:1] != whole[:1]
        for part, of in codec.parts.items():
            name = stored_name(slot, part)
            k, stored = graph.inputs[name], p if name == "p" else bucket.stored[name][i]
            values[k] = unpack(stored, of, p.shape)
            if not (apart or (of.per == "column" and len(whole) == 2)):
                cut.add(k)
    return values, cut


def _share(node: Node, values: dict[int, Any], cut: set[int], bucket: Bucket, i: int) -> _Share | None:
    """What a node lacks: None where it does not sum, or along dimensions alone that are whole here."""
    if node.op not in REDUCTIONS or node.args[0] not in cut:
        return None
    x, axes = values[node.args[0]], _axes(node, values, cut)
    if 0 not in axes:
        return None
    norm, mean = node.op is torch.linalg.vector_norm, node.op is not torch.sum
    keep = node.op not in (torch.mean, torch.sum, torch.linalg.vector_norm)
    wide = x.double()
    own = (wide * wide if norm else wide).sum(axes, keepdim=keep)
    count = bucket.shard(i).shape[0] * math.prod(x.shape[d] for d in axes if d)

    def finish(total: Tensor) -> Tensor:
        return (total.sqrt() if norm else total / count if mean else total).to(x.dtype)

    return _Share(node, own, finish)


def _axes(node: Node, values: dict[int, Any], cut: set[int]) -> list[int]:
    """The dimensions that a reduction runs along. A dimension of length one here may be longer as a whole:
    along the first a mean is taken where what it is shaped like is not cut."""
    x = values[node.args[0]]
    if node.op is mean_to:
        like = values[node.args[1]]
        return [d for d, n in enumerate(like.shape) if (n == 1 if d else node.args[1] not in cut)]
    if node.op is verbs.row_mean:
        return [x.ndim - 1]
    return [x.ndim - 2] if node.op is verbs.column_mean else list(range(x.ndim))


def _compute(node: Node, values: dict[int, Any], cut: set[int], words: Callable[[int], Tensor]) -> None:
    """Compute a node that is complete, and note whether its value is cut."""
    args = [values[k] for k in node.args]
    if node.op is random_word:
        values[node.value] = words(args[0])
        return
    if node.op is mean_to and node.args[0] in cut:
        axes = _axes(node, values, cut)
        values[node.value] = args[0].mean(axes, keepdim=True) if axes else args[0].clone()
    else:
        values[node.value] = node.op(*args, **{name: values[k] for name, k in node.kwargs})
    if cut.intersection(node.operands):  # sums along the first dimension do not come here
        cut.add(node.value)


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
