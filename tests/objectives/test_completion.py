"""Supervised fine-tuning and models with an encoder: the definition, padding, means, errors."""

from __future__ import annotations

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

from objectives import literal
from steepest.contract import SteepestError
from steepest.models import build_model
from steepest.objectives import seq2seq, sft


@given(literal.shapes(), st.booleans())
def test_is_the_definition(shape, left):
    count, width, vocabulary, seed = shape
    g = literal.generator(seed)
    batch = literal.rows(count, width, vocabulary, g, left)
    model = literal.Says(literal.randn(count, width - 1, vocabulary, g=g))
    loss, facts = sft(model, batch)
    loss.backward()

    logits = model.logits.detach().double().requires_grad_()
    expected = literal.cross_entropy(logits, batch) + 0 * logits.sum()
    expected.backward()
    asked = literal.tokens_of(batch)
    right = [logits[b, t - 1].argmax() == batch["ids"][b, t] for b, t in asked]
    assert loss.dtype == torch.float32 and loss.shape == ()
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(model.logits.grad.double(), logits.grad, rtol=1e-4, atol=1e-6)
    assert facts["tokens"] == int(batch["mask"].sum()) and facts["weight"] == len(asked)
    assert facts["accuracy"].item() == pytest.approx(sum(right) / max(len(right), 1))


@given(literal.shapes())
def test_micro_batches_add_up_by_weight(shape):
    count, width, vocabulary, seed = shape
    g = literal.generator(seed)
    batch = literal.rows(count, width, vocabulary, g)
    logits = literal.randn(count, width - 1, vocabulary, g=g)
    whole = sft(literal.Says(logits), batch)
    parts = [
        sft(literal.Says(logits[i : i + 1]), {k: x[i : i + 1] for k, x in batch.items()})
        for i in range(count)
    ]
    weight = sum(facts["weight"] for _, facts in parts)
    assert weight == whole[1]["weight"]
    for of in (lambda x: x[0], lambda x: x[1]["accuracy"]):
        mean = sum(of(part).item() * part[1]["weight"] for part in parts) / max(weight, 1)
        assert of(whole).item() == pytest.approx(mean, rel=1e-4, abs=1e-6)


@pytest.fixture(scope="module")
def model():
    return build_model("tiny", vocab_size=64, context=32, seed=0)


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return [p.grad.clone() for p in model.parameters()]


def row(ids, prompt, width, left):
    """One row of these ids, padded with token 9 to the width; what follows the prompt is asked for."""
    pad = width - len(ids)
    at = pad if left else 0
    out = {"ids": torch.full((1, width), 9), "mask": torch.zeros(1, width, dtype=torch.bool)}
    out["ids"][0, at : at + len(ids)] = ids
    out["mask"][0, at : at + len(ids)] = True
    out["targets"] = out["mask"].clone()
    out["targets"][0, : at + prompt] = False
    return out


@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
def test_padding_is_not_seen(model, left):
    ids = torch.randint(0, 64, (11,), generator=literal.generator(0))
    loss, facts = sft(model, row(ids, 4, 11, left))
    padded, padded_facts = sft(model, row(ids, 4, 19, left))
    assert padded_facts["weight"] == facts["weight"] == 7 and padded_facts["tokens"] == 11
    torch.testing.assert_close(padded, loss, rtol=1e-5, atol=1e-6)
    for a, b in zip(gradients(model, padded), gradients(model, loss), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_an_empty_row_is_harmless(model):
    ids = torch.randint(0, 64, (9,), generator=literal.generator(1))
    for left in (False, True):
        full, empty = row(ids, 3, 12, left), row(ids[:0], 0, 12, left)
        both = {k: torch.cat([full[k], empty[k]]) for k in full}
        loss, facts = sft(model, both)
        assert facts["weight"] == 6
        torch.testing.assert_close(loss, sft(model, full)[0], rtol=1e-5, atol=1e-6)
        assert all(g.isfinite().all() for g in gradients(model, loss))


def test_nothing_asked_is_nothing_learnt(model):
    batch = row(torch.arange(8), 8, 8, left=False)
    loss, facts = sft(model, batch)
    assert loss.item() == 0.0 and facts["weight"] == 0
    assert all(not g.any() for g in gradients(model, loss))


def test_all_asked_is_language_modelling(model):
    ids = torch.randint(0, 64, (3, 16), generator=literal.generator(2))
    everything = torch.ones_like(ids, dtype=torch.bool)
    loss, _ = sft(model, {"ids": ids, "mask": everything, "targets": everything})
    assert loss.item() == pytest.approx(model(ids, labels=ids).loss.item(), rel=1e-6)


def t5():
    shape = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2, "vocab_size": 32}
    return transformers.T5ForConditionalGeneration(
        transformers.T5Config(**shape, dropout_rate=0.0, decoder_start_token_id=0)
    )


def whisper():
    layers = {
        f"{side}_{name}": 1 for side in ("encoder", "decoder") for name in ("layers", "attention_heads")
    }
    widths = {"d_model": 16, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "num_mel_bins": 8}
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    config = transformers.WhisperConfig(
        **layers,
        **widths,
        **special,
        vocab_size=32,
        max_source_positions=10,
        suppress_tokens=None,
        dropout=0.0,
    )
    return transformers.WhisperForConditionalGeneration(config)


def encoded(kind, g):
    if kind == "audio":
        return {"features": literal.randn(3, 8, 20, g=g)}, "input_features"
    mask = torch.arange(7) < torch.tensor([[7], [5], [1]])
    return {"inputs": torch.randint(3, 32, (3, 7), generator=g), "inputs_mask": mask}, "input_ids"


@pytest.mark.parametrize(("kind", "make"), [("text", t5), ("audio", whisper)])
def test_seq2seq_agrees_with_the_models_own_loss(kind, make):
    torch.manual_seed(0)
    model, g = make(), literal.generator(3)
    given_, name = encoded(kind, g)
    labels = torch.randint(3, 32, (3, 6), generator=g)
    real = torch.arange(6) < torch.tensor([[6], [3], [4]])
    start = model.config.decoder_start_token_id
    ids = torch.cat([torch.full((3, 1), start), labels], 1)
    mask = torch.cat([torch.ones(3, 1, dtype=torch.bool), real], 1)
    targets = mask.clone()
    targets[:, 0] = False
    loss, facts = seq2seq(model, {**given_, "ids": ids, "mask": mask, "targets": targets})

    own = {name: given_.get("inputs", given_.get("features"))}
    if kind == "text":
        own["attention_mask"] = given_["inputs_mask"].long()
    expected = model(**own, labels=labels.masked_fill(~real, -100)).loss
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert facts["weight"] == 13 and facts["tokens"] == 16 + (13 if kind == "text" else 0)
    loss.backward()
    assert any("encoder" in n and p.grad is not None and p.grad.any() for n, p in model.named_parameters())


IDS = torch.zeros(2, 4, dtype=torch.long)
MASK = torch.ones(2, 4, dtype=torch.bool)
GOOD = {"ids": IDS, "mask": MASK, "targets": MASK}


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (IDS, "a completion batch must be a mapping with ids, mask, targets, got Tensor"),
        ({"ids": IDS, "mask": MASK}, "targets is missing"),
        ({**GOOD, "mask": MASK[:, 1:]}, r"one shape .* got \(2, 4\), \(2, 3\), \(2, 4\)"),
        ({k: x[:, :1] for k, x in GOOD.items()}, "at least 2 tokens"),
        ({k: x[0] for k, x in GOOD.items()}, r"\(rows, at least 2 tokens\)"),
    ],
)
def test_bad_batches(batch, message):
    with pytest.raises(SteepestError, match=message):
        sft(literal.Says(torch.zeros(2, 3, 5)), batch)


def test_bad_models():
    with pytest.raises(SteepestError, match=r"logits of shape \(2, 3, 'vocabulary'\)"):
        sft(literal.Says(torch.zeros(2, 2, 5)), GOOD)
    with pytest.raises(SteepestError, match="inputs_mask, or features; both are missing"):
        seq2seq(t5(), GOOD)
    with pytest.raises(SteepestError, match="does not take"):
        seq2seq(literal.Says(torch.zeros(2, 3, 5)), {**GOOD, "features": torch.zeros(2, 8, 20)})
