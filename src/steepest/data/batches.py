"""Batches of tokens, as pure functions of a seed and a step."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch

from steepest.contract import SteepestError
from steepest.data.seeds import seed_for

Tokens = np.ndarray[tuple[int], np.dtype[Any]]
Indices = np.ndarray[tuple[int], np.dtype[np.int64]]


class Batches:
    """The training order: each epoch visits the windows of the text once, in an order of its own.

    There is no state. `at(step)` depends on the seed and the step only, so a run that knows its
    step resumes exactly, and runs with one seed see the same data whatever else differs.

    A window is `length` inputs and the token after the last one, which is also the first input of
    the next window: every token is predicted once an epoch. The windows left over when an epoch's
    do not fill its last batch differ from epoch to epoch.
    """

    def __init__(self, tokens: Tokens, *, batch: int, length: int, seed: int) -> None:
        """tokens: (n,) integers; batch: windows a step; length: inputs of a window."""
        _check_sizes(batch, length)
        self.windows = _windows(tokens, length)
        """Windows of the text."""
        self.steps_per_epoch = self.windows // batch
        """Whole batches of an epoch."""
        if not self.steps_per_epoch:
            raise SteepestError(
                f"the training text has {len(tokens):,} tokens and one batch of {batch} x {length} needs "
                f"{batch * length + 1:,}; give more text, or make the batch or the context smaller."
            )
        self._tokens = tokens
        self._batch = batch
        self._length = length
        self._seed = seed

    def at(self, step: int) -> torch.Tensor:
        """The batch of a step from 0: int64, (batch, length + 1); inputs [:, :-1], targets [:, 1:]."""
        if step < 0:
            raise SteepestError(f"there is no batch at step {step}; steps count from 0.")
        epoch, place = divmod(step, self.steps_per_epoch)
        order = permutation(self.windows, self._seed, epoch)
        return _gather(self._tokens, order[place * self._batch :][: self._batch], self._length)


def validation_batches(tokens: Tokens, *, batch: int, length: int, limit: int | None) -> list[torch.Tensor]:
    """Fixed windows to measure on, evenly spaced over the text, the same for everyone.

    tokens: (n,) integers; limit: most windows to take, `None` for all.
    Returns int64 batches of (batch, length + 1); the last one may have fewer rows, so a mean over
    batches must be weighted by their targets.
    """
    _check_sizes(batch, length)
    if limit is not None and limit < 1:
        raise SteepestError(f"limit={limit} leaves no validation window; take at least one.")
    windows = _windows(tokens, length)
    if not windows:
        raise SteepestError(
            f"the validation text has {len(tokens):,} tokens and one window of {length} needs "
            f"{length + 1:,}; give more text, a larger validation share, or a smaller context."
        )
    count = min(windows, limit or windows)
    chosen = np.arange(count, dtype=np.int64) * windows // count
    return [_gather(tokens, chosen[start : start + batch], length) for start in range(0, count, batch)]


def _check_sizes(batch: int, length: int) -> None:
    if batch < 1 or length < 1:
        raise SteepestError(f"batch={batch} and length={length} must both be at least 1.")


def _windows(tokens: Tokens, length: int) -> int:
    return max(0, (len(tokens) - 1) // length)


def _gather(tokens: Tokens, windows: Tokens, length: int) -> torch.Tensor:
    places = windows[:, None] * length + np.arange(length + 1)
    return torch.from_numpy(tokens[places].astype(np.int64, copy=False))


@lru_cache(maxsize=4)
def permutation(count: int, seed: int, epoch: int) -> Indices:
    """An order of `count` windows or rows, fixed by seed and epoch on every machine.

    Sorting the raw stream of a bit generator, which numpy guarantees to keep, rather than a
    shuffle of numpy or torch, which may change between their versions.
    """
    keys = np.random.Philox(key=seed_for(seed, f"epoch/{epoch}")).random_raw(count)
    order: Indices = np.argsort(keys, kind="stable")
    return order
