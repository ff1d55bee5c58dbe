"""What a frozen model says about a batch: asked once, before training on it, and cached in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from steepest.objectives.forward import Reading, read_rows
from steepest.objectives.logprobs import log_probabilities
from steepest.objectives.policy import at_temperature, values_of
from steepest.objectives.preference import read_pairs


def reference_logprobs(model: nn.Module, batch: Any) -> dict[str, Tensor]:
    """The entries of a batch that come from its reference model; no gradients, no dropout.

    Preference pairs: {"reference_chosen", "reference_rejected"}, summed over the targets, (B,).
    Rows of a policy: {"reference_logp"}, as `token_logprobs`.
    """
    if "chosen" not in batch:
        return {"reference_logp": token_logprobs(model, batch)}
    with _frozen(model):
        pairs = read_pairs(model, batch)
    return {"reference_chosen": pairs.chosen, "reference_rejected": pairs.rejected}


def token_logprobs(model: nn.Module, batch: Any, temperature: float = 1.0) -> Tensor:
    """Log-probability of every target token, (B, T), 0 elsewhere; no gradients, no dropout.

    temperature: of the softmax, as the tokens were drawn.
    """
    with _frozen(model):
        read = at_temperature(read_rows(model, batch, "policy"), temperature)
        return _of_tokens(read, log_probabilities(read.logits, read.ids))


def token_values(model: nn.Module, batch: Any) -> Tensor:
    """A value head's expectation before every target token is chosen, (B, T), 0 elsewhere; as above.

    That is the value that stands at the token before, where the target's own logits stand.
    """
    with _frozen(model):
        read = read_rows(model, batch, "policy")
        return _of_tokens(read, values_of(read))


def _of_tokens(read: Reading, x: Tensor) -> Tensor:
    """(B, T - 1) of all tokens but the first as (B, T)."""
    return F.pad(torch.where(read.targets, x, 0.0), (1, 0))


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """No gradients and no dropout; the mode is given back."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)
