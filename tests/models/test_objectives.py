"""The next-token objective: its number, its gradient, its shapes, and its errors."""

from __future__ import annotations

import math
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from steepest.contract import SteepestError
from steepest.models import build_model
from steepest.objectives import OBJECTIVES, get_objective, next_token


class Table(nn.Module):
    """A bigram model: row i holds the logits of what follows token i."""

    def __init__(self, logits, wrap=lambda x: x):
        super().__init__()
        self.logits_of = nn.Parameter(logits)
        self.wrap = wrap

    def forward(self, ids):
        return self.wrap(self.logits_of[ids])


def by_hand(logits, batch):
    """The definition, in float64: minus the log of the probability of each next token, averaged."""
    total, count = 0.0, 0
    for row in batch.tolist():
        for this, following in pairwise(row):
            probabilities = logits[this].double().softmax(-1)
            total -= math.log(probabilities[following].item())
            count += 1
    return total / count, count


@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: SimpleNamespace(logits=x)], ids=["tensor", "object"])
def test_is_the_definition(wrap):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(7, 7, generator=generator)
    batch = torch.randint(0, 7, (3, 6), generator=generator)
    loss, facts = next_token(Table(logits, wrap), batch)
    expected, count = by_hand(logits, batch)
    assert loss.dtype == torch.float32 and loss.shape == ()
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    assert facts == {"tokens": count} and count == 15


def test_gradient_is_the_definitions():
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(5, 5, generator=generator)
    batch = torch.randint(0, 5, (2, 9), generator=generator)
    model = Table(logits)
    next_token(model, batch)[0].backward()
    expected = torch.zeros(5, 5)
    for this, following in zip(batch[:, :-1].flatten(), batch[:, 1:].flatten(), strict=True):
        expected[this] += (logits[this].softmax(-1) - nn.functional.one_hot(following, 5)) / 16
    torch.testing.assert_close(model.logits_of.grad, expected)


def test_half_precision_logits_are_summed_in_float32():
    logits = torch.randn(7, 7, generator=torch.Generator().manual_seed(2)).bfloat16()
    batch = torch.arange(7).repeat(2, 1)
    loss, _ = next_token(Table(logits), batch)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(by_hand(logits, batch)[0], rel=1e-6)


def test_agrees_with_transformers_own_loss():
    model = build_model("tiny", vocab_size=256, context=16, seed=0)
    batch = torch.randint(0, 256, (3, 17), generator=torch.Generator().manual_seed(3))
    loss, _ = next_token(model, batch)
    assert loss.item() == pytest.approx(model(batch, labels=batch).loss.item(), rel=1e-6)
    assert loss.item() > math.log(256) - 0.1  # nobody predicts random bytes


def test_a_token_cannot_see_what_follows():
    model = build_model("tiny", vocab_size=256, context=16, seed=0)
    batch = torch.randint(0, 256, (1, 16), generator=torch.Generator().manual_seed(4))
    changed = batch.clone()
    changed[0, 10:] = (changed[0, 10:] + 1) % 256
    with torch.no_grad():
        before, after = model(batch).logits[0], model(changed).logits[0]
    assert torch.equal(before[:10], after[:10])
    assert not torch.equal(before[10:], after[10:])


@pytest.mark.parametrize(
    ("logits", "batch", "message"),
    [
        (torch.zeros(3, 3), torch.zeros(4, dtype=torch.long), "a batch must be token ids of shape"),
        (torch.zeros(3, 3), torch.zeros(4, 1, dtype=torch.long), "got (4, 1)"),
        (torch.zeros(3), torch.zeros(4, 5, dtype=torch.long), "shape (4, 4, 'vocabulary')"),
    ],
)
def test_bad_shapes(logits, batch, message):
    with pytest.raises(SteepestError) as error:
        next_token(Table(logits), batch)
    assert message in str(error.value)


def test_output_that_is_no_tensor():
    with pytest.raises(SteepestError, match="got tuple"):
        next_token(Table(torch.zeros(3, 3), lambda x: (x, None)), torch.zeros(2, 3, dtype=torch.long))


def test_registry():
    assert get_objective("next_token") is next_token and list(OBJECTIVES) == ["next_token"]
    with pytest.raises(SteepestError, match="did you mean 'next_token'"):
        get_objective("next-token")
