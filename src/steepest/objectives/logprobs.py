"""What logits say about tokens: log-probabilities, entropy, divergences; and means over some tokens."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def log_probabilities(logits: Tensor, ids: Tensor) -> Tensor:
    """Log-probability of each token under its logits: (..., V) and (...) to (...), nats, float32.

    As torch's fused cross-entropy: one more tensor of the logits' size for the backward pass, where a gather
    and a logsumexp need as much and take half as long again.
    """
    losses = F.cross_entropy(logits.to(torch.float32).flatten(0, -2), ids.flatten(), reduction="none")
    return -losses.view(ids.shape)


def entropy(logits: Tensor) -> Tensor:
    """Entropy of the distribution of each row of logits: (..., V) to (...), nats, float32."""
    logits = logits.to(torch.float32)
    return logits.logsumexp(-1) - (logits.softmax(-1) * logits).sum(-1)


def kl_estimate(sampled: Tensor, other: Tensor) -> Tensor:
    """KL(p || q) at tokens drawn from p, from their log-probabilities under p (`sampled`) and q (`other`).

    Unbiased and never negative: q/p - 1 - log(q/p), "k3" of Schulman, joschu.net/blog/kl-approx.html (2020).
    """
    log_ratio = other - sampled
    return torch.expm1(log_ratio) - log_ratio


def masked_sum(x: Tensor, where: Tensor) -> Tensor:
    """Sum over the last dimension of the entries where `where` is true; what the others hold is not read."""
    return torch.where(where, x, 0.0).sum(-1)


def masked_mean(x: Tensor, where: Tensor) -> Tensor:
    """Mean of the entries where `where` is true, as a scalar; 0 if there is none."""
    return torch.where(where, x, 0.0).sum() / where.sum().clamp(min=1)


def mean_of_rows(x: Tensor, where: Tensor) -> Tensor:
    """Mean over the rows of each row's own mean; rows without a true entry do not count, and 0 if all are."""
    means = masked_sum(x, where) / where.sum(-1).clamp(min=1)
    return masked_mean(means, where.any(-1))
