"""Batches: a pure function of seed and step that shows every window once an epoch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from steepest.contract import SteepestError
from steepest.data import Batches, validation_batches

shapes = st.tuples(st.integers(1, 6), st.integers(1, 9), st.integers(1, 7), st.integers(0, 20))


def tokens_for(windows: int, length: int, rest: int = 0) -> np.ndarray:
    """Tokens that are their own places."""
    return np.arange(windows * length + 1 + rest % length, dtype=np.int32)


@given(shapes, st.integers(0, 2**63 - 1))
def test_an_epoch_shows_each_window_at_most_once_and_leaves_less_than_a_batch(
    shape: tuple[int, int, int, int], seed: int
) -> None:
    batch, extra, length, rest = shape
    windows = batch + extra
    batches = Batches(tokens_for(windows, length, rest), batch=batch, length=length, seed=seed)
    assert batches.windows == windows
    assert batches.steps_per_epoch == windows // batch
    for epoch in range(3):
        steps = range(epoch * batches.steps_per_epoch, (epoch + 1) * batches.steps_per_epoch)
        seen = torch.cat([batches.at(step) for step in steps])
        assert seen.dtype == torch.int64
        assert seen.shape == (batches.steps_per_epoch * batch, length + 1)
        starts = seen[:, 0]
        assert torch.equal(seen, starts[:, None] + torch.arange(length + 1))
        assert not (starts % length).any()
        assert len(starts.unique()) == len(starts) > windows - batch


def test_every_token_but_the_first_is_predicted_once_an_epoch() -> None:
    batches = Batches(tokens_for(12, 5), batch=3, length=5, seed=0)
    targets = torch.cat([batches.at(step)[:, 1:].flatten() for step in range(4)])
    assert sorted(targets.tolist()) == list(range(1, 61))


@given(st.lists(st.integers(0, 200), min_size=1, max_size=8), st.integers(0, 99))
def test_any_step_in_any_order_is_the_same(steps: list[int], seed: int) -> None:
    tokens = tokens_for(13, 4)
    walked = Batches(tokens, batch=2, length=4, seed=seed)
    for step in steps:
        resumed = Batches(tokens.copy(), batch=2, length=4, seed=seed)
        assert torch.equal(walked.at(step), resumed.at(step))


def test_global_random_state_is_neither_read_nor_moved() -> None:
    batches = Batches(tokens_for(50, 4), batch=5, length=4, seed=1)
    torch.manual_seed(0)
    np.random.seed(0)
    before, first = torch.get_rng_state(), batches.at(7)
    np.random.seed(1)
    torch.manual_seed(1)
    assert torch.equal(Batches(tokens_for(50, 4), batch=5, length=4, seed=1).at(7), first)
    torch.manual_seed(0)
    assert torch.equal(torch.get_rng_state(), before)


def test_seeds_and_epochs_have_orders_of_their_own() -> None:
    tokens = tokens_for(64, 2)

    def order(seed: int, epoch: int) -> tuple[int, ...]:
        batches = Batches(tokens, batch=64, length=2, seed=seed)
        return tuple(batches.at(epoch)[:, 0].tolist())

    orders = {order(seed, epoch) for seed in range(4) for epoch in range(4)}
    assert len(orders) == 16
    assert tuple(range(0, 128, 2)) not in orders


def test_order_is_pinned() -> None:
    """The same on every machine and with every numpy: published runs depend on it."""
    batches = Batches(tokens_for(10, 1), batch=10, length=1, seed=42)
    assert [batches.at(epoch)[:, 0].tolist() for epoch in (0, 1)] == [
        [4, 8, 0, 6, 7, 2, 3, 1, 5, 9],
        [4, 7, 2, 8, 3, 5, 0, 1, 9, 6],
    ]


def test_orders_are_fair() -> None:
    """Over many epochs every window comes first about equally often (chi-squared, 15 degrees of freedom)."""
    batches = Batches(tokens_for(16, 1), batch=16, length=1, seed=0)
    firsts = np.bincount([int(batches.at(epoch)[0, 0]) for epoch in range(1600)], minlength=16)
    assert ((firsts - 100) ** 2 / 100).sum() < 37.7  # p = 0.001; the seed is fixed


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64])
def test_tokens_are_not_changed_through_a_batch(dtype: type) -> None:
    tokens = np.arange(21, dtype=dtype)
    Batches(tokens, batch=2, length=5, seed=0).at(0).zero_()
    assert np.array_equal(tokens, np.arange(21))


@pytest.mark.parametrize("count", [0, 1, 32])
def test_data_shorter_than_one_batch(count: int) -> None:
    with pytest.raises(SteepestError) as error:
        Batches(np.zeros(count, dtype=np.int32), batch=4, length=8, seed=0)
    assert f"has {count} tokens and one batch of 4 x 8 needs 33; give more text" in str(error.value)
    assert Batches(np.zeros(33, dtype=np.int32), batch=4, length=8, seed=0).steps_per_epoch == 1


def test_bad_step_and_sizes() -> None:
    with pytest.raises(SteepestError, match="no batch at step -1"):
        Batches(tokens_for(4, 2), batch=2, length=2, seed=0).at(-1)
    for batch, length in ((0, 1), (1, 0), (-1, 4)):
        with pytest.raises(SteepestError, match="at least 1"):
            Batches(tokens_for(4, 2), batch=batch, length=length, seed=0)
        with pytest.raises(SteepestError, match="at least 1"):
            validation_batches(tokens_for(4, 2), batch=batch, length=length, limit=None)


@given(shapes, st.one_of(st.none(), st.integers(1, 30)))
def test_validation_windows_are_distinct_evenly_spaced_and_as_many_as_asked(
    shape: tuple[int, int, int, int], limit: int | None
) -> None:
    batch, windows, length, rest = shape
    tokens = tokens_for(windows, length, rest)
    batches = validation_batches(tokens, batch=batch, length=length, limit=limit)
    seen = torch.cat(batches)
    assert all(len(rows) == batch for rows in batches[:-1])
    assert seen.shape == (min(windows, limit or windows), length + 1)
    starts = seen[:, 0]
    assert torch.equal(seen, starts[:, None] + torch.arange(length + 1))
    gaps = (starts // length).diff()
    if len(gaps):
        assert gaps.min() >= 1
        assert gaps.max() - gaps.min() <= 1


def test_validation_needs_a_window() -> None:
    with pytest.raises(SteepestError, match="has 8 tokens and one window of 8 needs 9"):
        validation_batches(np.zeros(8, dtype=np.int32), batch=4, length=8, limit=None)
    with pytest.raises(SteepestError, match="limit=0 leaves no validation window"):
        validation_batches(np.zeros(80, dtype=np.int32), batch=4, length=8, limit=0)
