"""Models small enough for a test, by import path: `toys:bigram`."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def bigram(vocab_size: int) -> nn.Module:
    """Logits of the next token from the last one alone: (B, T) to (B, T, vocab_size)."""
    table = nn.Embedding(vocab_size, vocab_size)
    nn.init.normal_(table.weight, std=0.02)
    return table


def broken(vocab_size: int) -> nn.Module:
    """Its loss is NaN from the start."""
    table = bigram(vocab_size)
    nn.init.constant_(table.weight, float("nan"))
    return table


class Failing(nn.Module):
    """A bigram model whose logits are multiplied by `factor` from the training call `after` on."""

    def __init__(self, vocab_size: int, after: int, factor: float) -> None:
        super().__init__()
        self.table, self.after, self.factor, self.calls = bigram(vocab_size), after, factor, 0

    def forward(self, ids: Tensor) -> Tensor:
        self.calls += self.training
        logits: Tensor = self.table(ids)
        return logits * self.factor if self.calls > self.after else logits


def fading(vocab_size: int) -> nn.Module:
    """Its loss becomes NaN at the fourth step."""
    return Failing(vocab_size, 3, float("nan"))


class Steep(torch.autograd.Function):
    """The identity, with a gradient that is not a number."""

    @staticmethod
    def forward(_: object, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(_: object, grad: Tensor) -> Tensor:  # type: ignore[override]
        return grad * float("nan")


class Cliff(nn.Module):
    """A finite loss without a finite gradient."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.table = bigram(vocab_size)

    def forward(self, ids: Tensor) -> Tensor:
        out: Tensor = Steep.apply(self.table(ids))
        return out


def cliff(vocab_size: int) -> nn.Module:
    return Cliff(vocab_size)


class Crashing(nn.Module):
    """Raises in its forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2, 2))

    def forward(self, ids: Tensor) -> Tensor:
        raise RuntimeError("the cat\nis on the keyboard")


def crashing() -> nn.Module:
    return Crashing()
