"""Advantages against their definitions, and what must not matter to them."""

from __future__ import annotations

import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from objectives import literal
from steepest.contract import SteepestError
from steepest.objectives.advantages import gae, grpo, rloo, whiten, zero_variance

reward = st.sampled_from([0.0, 0.1, 0.5, 1.0])
groups = st.integers(2, 6).flatmap(
    lambda size: st.lists(st.lists(reward, min_size=size, max_size=size), min_size=1, max_size=5)
)


@given(groups)
def test_group_baselines_are_the_papers(found):
    size = len(found[0])
    rewards = torch.tensor(found).flatten()
    centred = [r - statistics.fmean(group) for group in found for r in group]
    scaled = [
        (r - statistics.fmean(group)) / (statistics.stdev(group) + 1e-4) for group in found for r in group
    ]
    others = [r - (sum(group) - r) / (size - 1) for group in found for r in group]
    near = {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(grpo(rewards, size, scale=False), torch.tensor(centred), **near)
    torch.testing.assert_close(grpo(rewards, size), torch.tensor(scaled), **near)
    torch.testing.assert_close(rloo(rewards, size), torch.tensor(others), **near)


@given(groups, st.integers(0, 4))
def test_a_group_of_equals_teaches_nothing(found, which):
    size = len(found[0])
    which %= len(found)
    found[which] = [0.1] * size
    rewards = torch.tensor(found).flatten()
    own = slice(which * size, (which + 1) * size)
    for advantages in (grpo(rewards, size), grpo(rewards, size, scale=False), rloo(rewards, size)):
        assert not advantages[own].any()
    assert zero_variance(rewards, size) == sum(len(set(group)) == 1 for group in found)


@given(literal.shapes(), st.sampled_from([1.0, 0.9]), st.sampled_from([0.0, 0.5, 0.95, 1.0]))
def test_gae_is_the_discounted_sum_of_surprises(shape, discount, gae_lambda):
    count, width, _, seed = shape
    g = literal.generator(seed)
    rewards, values = literal.randn(count, width, g=g), literal.randn(count, width, g=g)
    targets = torch.rand(count, width, generator=g) < 0.7
    advantages, returns = gae(rewards, values, targets, discount=discount, gae_lambda=gae_lambda)
    for b in range(count):
        own = [t for t in range(width) if targets[b, t]]
        nexts = [*(values[b, t].item() for t in own[1:]), 0.0][: len(own)]
        surprises = [
            rewards[b, t].item() + discount * after - values[b, t].item()
            for t, after in zip(own, nexts, strict=True)
        ]
        for i, t in enumerate(own):
            expected = sum((discount * gae_lambda) ** j * s for j, s in enumerate(surprises[i:]))
            assert advantages[b, t].item() == pytest.approx(expected, rel=1e-4, abs=1e-4)
            assert returns[b, t].item() == pytest.approx(expected + values[b, t].item(), rel=1e-4, abs=1e-4)
    assert not advantages[~targets].any() and not returns[~targets].any()


def test_gae_with_lambda_1_returns_what_is_to_come():
    rewards = torch.tensor([[9.0, 0.0, 0.0, 1.0, 9.0]])
    targets = torch.tensor([[False, True, True, True, False]])
    _, returns = gae(rewards, torch.full((1, 5), 0.3), targets, discount=0.5, gae_lambda=1.0)
    torch.testing.assert_close(returns, torch.tensor([[0.0, 0.25, 0.5, 1.0, 0.0]]))


@given(literal.shapes())
def test_whitened_is_of_mean_0_and_deviation_1(shape):
    count, width, _, seed = shape
    g = literal.generator(seed)
    x, targets = 3 + 5 * literal.randn(count, width, g=g), torch.rand(count, width, generator=g) < 0.7
    white = whiten(x, targets)
    assert not white[~targets].any() and white.isfinite().all()
    if targets.sum() > 1:
        assert white[targets].mean().item() == pytest.approx(0, abs=1e-4)
        assert white[targets].std(correction=0).item() == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(("shape", "group"), [((6,), 1), ((6,), 4), ((3, 2), 2)])
def test_rewards_that_are_not_groups(shape, group):
    for function in (grpo, rloo, zero_variance):
        with pytest.raises(SteepestError, match="whole groups of at least 2 answers"):
            function(torch.zeros(shape), group)


def test_gae_of_other_shapes():
    with pytest.raises(SteepestError, match="one shape"):
        gae(torch.zeros(2, 3), torch.zeros(2, 4), torch.ones(2, 3, dtype=torch.bool))
