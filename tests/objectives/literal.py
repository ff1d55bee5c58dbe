"""The papers' formulas as they stand there, a loop over tokens in float64; and stubs to ask them of.

`logits` are (B, T - 1, V): row t - 1 is what is said of token t. Every sum runs over the target tokens.
"""

from __future__ import annotations

from types import SimpleNamespace

import torch
from hypothesis import strategies as st
from torch import nn


class Says(nn.Module):
    """A model that says what it was told to, whatever it is asked: its logits are its parameters."""

    def __init__(self, logits, values=None):
        super().__init__()
        self.logits = nn.Parameter(logits.clone())
        self.values = None if values is None else nn.Parameter(values.clone())

    def forward(self, input_ids, attention_mask=None, position_ids=None):
        return SimpleNamespace(logits=self.logits, values=self.values)


class Scores(nn.Module):
    """A reward model of the same kind."""

    def __init__(self, scores):
        super().__init__()
        self.scores = nn.Parameter(scores.clone())

    def forward(self, ids, mask):
        return self.scores


@st.composite
def shapes(draw):
    """Rows, tokens a row, vocabulary, a seed."""
    return (
        draw(st.integers(1, 4)),
        draw(st.integers(2, 6)),
        draw(st.integers(2, 5)),
        draw(st.integers(0, 9999)),
    )


def generator(seed):
    return torch.Generator().manual_seed(seed)


def rows(count, width, vocabulary, g, left=False):
    """Rows of any length, none included, with any targets among them, none included."""
    ids = torch.randint(0, vocabulary, (count, width), generator=g)
    lengths = torch.randint(0, width + 1, (count, 1), generator=g)
    index = torch.arange(width)
    mask = index >= width - lengths if left else index < lengths
    return {"ids": ids, "mask": mask, "targets": mask & (torch.rand(count, width, generator=g) < 0.6)}


def randn(*shape, g):
    return torch.randn(*shape, generator=g)


def tokens_of(batch):
    """(row, token) of every target that has a token before it."""
    count, width = batch["ids"].shape
    return [(b, t) for b in range(count) for t in range(1, width) if batch["targets"][b, t]]


def log_p(logits, batch):
    """Log-probability of the target at (b, t)."""
    table = logits.log_softmax(-1)
    return {(b, t): table[b, t - 1, batch["ids"][b, t]] for b, t in tokens_of(batch)}


def mean(numbers):
    return sum(numbers) / len(numbers) if numbers else torch.zeros((), dtype=torch.float64)


def cross_entropy(logits, batch):
    return mean([-x for x in log_p(logits, batch).values()])


def answers(logits, batch):
    """Summed log-probability of each row's targets, and how many those are."""
    found = log_p(logits, batch)
    sums = [
        sum((x for (b, _), x in found.items() if b == row), 0 * logits.sum()) for row in range(len(logits))
    ]
    return torch.stack(sums), torch.tensor(
        [max(1, sum(b == i for b, _ in found)) for i in range(len(logits))]
    )


def pair_sums(logits, batch):
    """Sums and lengths of the chosen answers, whose logits come first, and of the rejected ones."""
    half = len(logits) // 2
    chosen, chosen_n = answers(logits[:half, : batch["chosen"]["ids"].shape[1] - 1], batch["chosen"])
    rejected, rejected_n = answers(logits[half:, : batch["rejected"]["ids"].shape[1] - 1], batch["rejected"])
    return chosen, chosen_n, rejected, rejected_n


def sigmoid(x):
    return 1 / (1 + torch.exp(-x))


def dpo(logits, batch, beta, smoothing, cached):
    chosen, _, rejected, _ = pair_sums(logits, batch)
    if cached:
        chosen, rejected = chosen - batch["reference_chosen"], rejected - batch["reference_rejected"]
    p = sigmoid(beta * (chosen - rejected))
    return (-(1 - smoothing) * p.log() - smoothing * (1 - p).log()).mean()


def ipo(logits, batch, beta):
    chosen, chosen_n, rejected, rejected_n = pair_sums(logits, batch)
    h = (chosen - batch["reference_chosen"]) / chosen_n - (
        rejected - batch["reference_rejected"]
    ) / rejected_n
    return ((h - 1 / (2 * beta)) ** 2).mean()


def orpo(logits, batch, beta):
    chosen, chosen_n, rejected, rejected_n = pair_sums(logits, batch)
    p, q = (chosen / chosen_n).exp(), (rejected / rejected_n).exp()
    return (-p.log() - beta * sigmoid(torch.log((p / (1 - p)) / (q / (1 - q)))).log()).mean()


def policy(logits, batch, low, high, kl_coef, entropy_coef, normalise):
    """Loss and every fact of the clipped surrogate."""
    new, p = log_p(logits, batch), logits.softmax(-1)
    per_token = {}
    for b, t in tokens_of(batch):
        ratio = (new[b, t] - batch["old_logp"][b, t]).exp()
        a = batch["advantages"][b] if batch["advantages"].dim() == 1 else batch["advantages"][b, t]
        kept = torch.clamp(ratio, 1 - low, 1 + high)
        to_reference = batch["reference_logp"][b, t] - new[b, t]
        spread = -(p[b, t - 1] * p[b, t - 1].log()).sum()
        kl = to_reference.exp() - to_reference - 1
        per_token[b, t] = {
            "loss": -torch.minimum(ratio * a, kept * a) + kl_coef * kl - entropy_coef * spread,
            "kl": kl,
            "kl_old": ratio - 1 - ratio.log(),
            "entropy": spread,
            "ratio": ratio,
            "clip_fraction": torch.tensor(float(ratio * a > kept * a)).double(),
        }
    return {name: average(per_token, name, normalise) for name in next(iter(per_token.values()), {"loss": 0})}


def average(per_token, name, normalise):
    if normalise == "token":
        return mean([x[name] for x in per_token.values()])
    own = [[x[name] for (b, _), x in per_token.items() if b == row] for row in {b for b, _ in per_token}]
    return mean([mean(x) for x in own])


def value_loss(values, batch, clip):
    """values (B, T - 1): column t - 1 is expected before token t is chosen."""
    errors = []
    for b, t in tokens_of(batch):
        v, old, target = values[b, t - 1], batch["old_values"][b, t], batch["returns"][b, t]
        near = torch.clamp(v, old - clip, old + clip)
        errors.append(0.5 * torch.maximum((v - target) ** 2, (near - target) ** 2))
    return mean(errors)
