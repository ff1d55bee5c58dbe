"""The pass over the gradients before a step: exact enough to clip by, and never blind."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from steepest.engines.norms import ROW, global_norm

SIZES = [0, 1, ROW - 1, ROW, ROW + 1, 3 * ROW + 5]


def exact(grads):
    return math.sqrt(sum(float((g.double() ** 2).sum()) for g in grads))


def test_the_norm_of_a_large_gradient_is_accurate_where_one_accumulator_is_not():
    g = torch.randn(2_000_003, generator=torch.Generator().manual_seed(0)) * 1e-3
    assert global_norm([g]) == pytest.approx(exact([g]), rel=1e-7)


@given(
    sizes=st.lists(st.sampled_from(SIZES), min_size=1, max_size=4),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]),
    transposed=st.booleans(),
    seed=st.integers(0, 9),
)
def test_the_norm_of_any_gradients_is_accurate(sizes, dtype, transposed, seed):
    generator = torch.Generator().manual_seed(seed)
    grads = [torch.randn(2, n, generator=generator).to(dtype) for n in sizes]
    grads = [g.t() for g in grads] if transposed else grads
    assert global_norm(grads) == pytest.approx(exact(grads), rel=1e-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("size", SIZES[1:])
def test_one_bad_element_is_seen_wherever_it_is(bad, size):
    for at in {0, size // 2, size - 1}:
        grads = [torch.ones(5), torch.ones(size)]
        grads[1][at] = bad
        assert not math.isfinite(global_norm(grads))


@pytest.mark.parametrize("size", SIZES[1:])
def test_finite_gradients_whose_squares_overflow_are_finite(size):
    g = torch.full((size,), 1e25)
    assert global_norm([g]) == pytest.approx(1e25 * math.sqrt(size), rel=1e-6)
