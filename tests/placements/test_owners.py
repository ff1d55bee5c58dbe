"""Who owns what: even, and the same whoever asks."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from steepest.contract import Scope
from steepest.placements.cost import PRODUCTS, assign, step_cost


def loads(costs, owners, ranks):
    found = [0] * ranks
    for cost, owner in zip(costs, owners, strict=True):
        found[owner] += cost
    return found


@given(st.lists(st.integers(0, 10**9), max_size=60), st.integers(1, 20))
def test_no_load_exceeds_an_even_share_by_more_than_one_cost(costs, ranks):
    owners = assign(costs, ranks)
    assert len(owners) == len(costs) and all(0 <= owner < ranks for owner in owners)
    most = max(loads(costs, owners, ranks))
    assert most * ranks <= sum(costs) + (ranks - 1) * max(costs, default=0)


@given(st.lists(st.integers(1, 30), min_size=1, max_size=7), st.integers(1, 3))
def test_the_largest_load_is_within_a_third_of_the_best(costs, ranks):
    def best(left, at):
        if not left:
            return max(at)
        tried = ([load + left[0] * (rank == r) for r, load in enumerate(at)] for rank in range(ranks))
        return min(best(left[1:], tuple(after)) for after in tried)

    most = max(loads(costs, assign(costs, ranks), ranks))
    assert most * 3 * ranks <= best(costs, (0,) * ranks) * (4 * ranks - 1)  # Graham 1969, theorem 2


def test_of_equals_the_first_comes_first():
    assert assign([5, 5, 5, 5, 5], 3) == [0, 1, 2, 0, 1]
    assert assign([1, 3, 2], 2) == [1, 0, 1]
    assert assign([], 4) == [] and assign([7, 7], 1) == [0, 0]


def test_many_tensors_over_many_ranks():
    costs = [(i * 7919) % 10_007 for i in range(100_000)]
    owners = assign(costs, 16_384)
    even = sum(costs) / 16_384
    assert max(loads(costs, owners, 16_384)) <= 1.02 * even


@pytest.mark.parametrize("scope", [Scope.ELEMENT, Scope.TENSOR])
def test_an_element_costs_what_every_other_costs(scope):
    assert step_cost((30, 20), scope) == 600 * PRODUCTS
    assert step_cost((), scope) == PRODUCTS and step_cost((0, 8), scope) == 0


def test_a_product_costs_the_smaller_side_an_element():
    assert step_cost((300, 20), Scope.MATRIX) == step_cost((20, 300), Scope.MATRIX) == 6000 * (PRODUCTS + 20)
    assert step_cost((4, 300, 20), Scope.MATRIX) == 4 * step_cost((300, 20), Scope.MATRIX)
    assert step_cost(torch.Size([300]), Scope.MATRIX) == step_cost((300,), Scope.ELEMENT)
