"""The next-token objective: its number, its gradient, its shapes, and its errors."""

from __future__ import annotations

import math
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from steepest.contract import SteepestError
from steepest.models import build_model
from steepest.objectives import next_token
from steepest.objectives.forward import block_causal


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
    assert facts == {"tokens": count, "weight": count} and count == 15


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


def alone(documents, model):
    """The loss of every document by itself, weighted by its targets; documents of one token have none."""
    parts = [(len(d) - 1, next_token(model, d[None])[0]) for d in documents if len(d) > 1]
    return sum(n * loss for n, loss in parts) / sum(n for n, _ in parts)


def pack(rows, width):
    """Documents side by side in rows of this width, and -1 where a row is left empty."""
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    segments = torch.full_like(ids, -1)
    for row, documents in enumerate(rows):
        at = 0
        for number, document in enumerate(documents):
            ids[row, at : at + len(document)] = document
            segments[row, at : at + len(document)] = number
            at += len(document)
    return {"ids": ids, "segments": segments}


@pytest.mark.parametrize(("preset", "attention"), [("tiny", "sdpa"), ("tiny", "eager"), ("gpt2", "sdpa")])
def test_packed_documents_are_each_as_if_alone(preset, attention):
    if preset == "tiny":
        model = build_model("tiny", vocab_size=64, context=32, seed=0)
        model.set_attn_implementation(attention)
    else:
        shape = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32, "vocab_size": 64}
        nothing = {"resid_pdrop": 0, "embd_pdrop": 0, "attn_pdrop": 0}
        model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**shape, **nothing))
    generator = torch.Generator().manual_seed(5)
    lengths = [[9, 1, 7], [24], [5, 12], [2]]
    rows = [[torch.randint(0, 64, (n,), generator=generator) for n in row] for row in lengths]
    batch = pack(rows, 25)

    loss, facts = next_token(model, batch)
    loss.backward()
    packed = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    expected = alone([d for row in rows for d in row], model)
    expected.backward()

    assert facts["weight"] == sum(n - 1 for row in lengths for n in row)
    assert facts["tokens"] == int((batch["segments"][:, :-1] >= 0).sum())
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    for ours, theirs in zip(packed, [p.grad for p in model.parameters()], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_packing_whole_rows_changes_nothing():
    model = build_model("tiny", vocab_size=64, context=16, seed=0)
    ids = torch.randint(0, 64, (3, 17), generator=torch.Generator().manual_seed(6))
    packed, facts = next_token(model, {"ids": ids, "segments": torch.zeros_like(ids)})
    plain, plain_facts = next_token(model, ids)
    assert facts == plain_facts
    torch.testing.assert_close(packed, plain, rtol=1e-6, atol=1e-6)


segment_rows = st.lists(st.integers(1, 5), min_size=1, max_size=5).map(
    lambda lengths: torch.tensor([i for i, n in enumerate(lengths) for _ in range(n)])
)


@given(segment_rows, st.integers(0, 4))
def test_nobody_sees_another_document_or_the_future(segments, padding):
    row = torch.cat([segments, torch.full((padding,), -1)])
    seen, positions = block_causal(row[None])
    for i, own in enumerate(row.tolist()):
        same = [j for j, other in enumerate(row.tolist()) if other == own]
        assert [j for j in range(len(row)) if seen[0, 0, i, j]] == [j for j in same if j <= i]
        assert positions[0, i] == i - same[0]


@given(segment_rows, st.integers(0, 4), st.integers(0, 1000))
def test_no_target_crosses_a_boundary(segments, padding, seed):
    row = torch.cat([segments, torch.full((padding,), -1)])
    if len(row) < 2:
        return
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 7, (1, len(row)), generator=generator)
    model = Packable(torch.randn(7, 7, generator=generator))
    loss, facts = next_token(model, {"ids": ids, "segments": row[None]})
    loss.backward()
    pairs = [
        (int(ids[0, i]), int(ids[0, i + 1]))
        for i in range(len(row) - 1)
        if row[i] == row[i + 1] and row[i] >= 0
    ]
    assert facts["weight"] == len(pairs)
    assert {i for i, x in enumerate(model.logits_of.grad.abs().sum(1)) if x > 0} == {a for a, _ in pairs}
    table = model.logits_of.detach().double().log_softmax(-1)
    expected = -sum(table[a, b].item() for a, b in pairs) / max(len(pairs), 1)
    assert loss.item() == pytest.approx(expected, rel=1e-5, abs=1e-7)


class Packable(Table):
    """The bigram model under the names that packed batches are given by."""

    def forward(self, input_ids, attention_mask, position_ids):
        return self.logits_of[input_ids]


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"ids": torch.zeros(1, 4, dtype=torch.long)}, "segments is missing"),
        ([1, 2], "must be a mapping with ids, segments, got list"),
        (pack([[torch.zeros(1, dtype=torch.long)]], 1), "at least 2 tokens"),
        ({"ids": torch.zeros(1, 4).long(), "segments": torch.zeros(1, 3).long()}, "one shape"),
    ],
)
def test_bad_packed_batches(batch, message):
    with pytest.raises(SteepestError, match=message):
        next_token(Packable(torch.zeros(3, 3)), batch)


def test_a_model_that_cannot_be_packed_says_so():
    batch = pack([[torch.zeros(3, dtype=torch.long)]], 4)
    with pytest.raises(SteepestError, match="does not take input_ids, attention_mask, position_ids"):
        next_token(Table(torch.zeros(3, 3)), batch)
    model = Packable(torch.zeros(3, 3))
    model.config = SimpleNamespace(_attn_implementation="flash_attention_2")
    with pytest.raises(SteepestError, match="turn packing off"):
        next_token(model, batch)
