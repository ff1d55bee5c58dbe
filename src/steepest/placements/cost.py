"""What a parameter's step costs, and who owns which parameter."""

from __future__ import annotations

import math
from collections.abc import Sequence
from heapq import heapify, heapreplace

from steepest.contract import Scope

PRODUCTS = 128
"""Multiply-adds of a product that take about as long as reading and writing an element and its state."""


def step_cost(shape: Sequence[int], scope: Scope) -> int:
    """What one step of a whole parameter of this shape costs, in the time of a product's multiply-add.

    An element is read and written once. A rule of scope MATRIX also multiplies matrices of m x n by their own
    products, so that each element takes part in about min(m, n) multiply-adds; leading dimensions count
    matrices, and what has no two dimensions is stepped element by element.
    """
    product = min(shape[-2:]) if scope is Scope.MATRIX and len(shape) >= 2 else 0
    return math.prod(shape) * (PRODUCTS + product)


def assign(costs: Sequence[int], ranks: int) -> list[int]:
    """The owner of each of these costs, so that the largest load is small: equal on whoever asks.

    The costliest is given away first, each to whoever has least so far; of equals the first (longest
    processing time first: Graham 1969, "Bounds on multiprocessing timing anomalies"). No load exceeds an
    even share by more than one cost, or the best possible largest load by more than a third.
    """
    loads = [(0, rank) for rank in range(ranks)]
    heapify(loads)
    owners = [0] * len(costs)
    for place in sorted(range(len(costs)), key=lambda i: -costs[i]):  # sorted() keeps equals in order
        load, rank = loads[0]
        owners[place] = rank
        heapreplace(loads, (load + costs[place], rank))
    return owners
