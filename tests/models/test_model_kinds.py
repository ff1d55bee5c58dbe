"""Sequence to sequence and audio models through the same door, and folders of every kind."""

from __future__ import annotations

import pytest
import torch

from steepest.adapters import AdapterConfig, add_adapter, merge
from steepest.contract import SteepestError
from steepest.models import build_model, context_limit, presets, trainable_parameters, vocabulary

SEQ2SEQ = [name for name, preset in presets().items() if preset.kind == "seq2seq"]


def build(spec, kind="seq2seq", **changed):
    return build_model(str(spec), **{"vocab_size": 32, "context": 16, "seed": 0, "kind": kind, **changed})


def inputs(name, batch=2):
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 32, (batch, 5), generator=generator)
    if name == "tiny-whisper":
        return {"input_features": torch.randn(batch, 16, 64, generator=generator), "decoder_input_ids": ids}
    return {"input_ids": torch.randint(0, 32, (batch, 7), generator=generator), "decoder_input_ids": ids}


def test_the_set_under_test():
    assert SEQ2SEQ == ["tiny-t5", "tiny-whisper"]


@pytest.mark.parametrize("name", SEQ2SEQ)
def test_a_decoder_reads_its_encoder_and_not_its_future(name):
    model, given = build(name), inputs(name)
    logits = model(**given).logits
    assert logits.shape == (2, 5, 32)
    assert torch.nn.functional.cross_entropy(logits.flatten(0, 1), given["decoder_input_ids"].flatten()) < 6
    later = {**given, "decoder_input_ids": given["decoder_input_ids"].clone()}
    later["decoder_input_ids"][:, 3] = (later["decoder_input_ids"][:, 3] + 1) % 32
    after = model(**later).logits
    torch.testing.assert_close(after[:, :3], logits[:, :3])
    assert not torch.allclose(after[:, 3:], logits[:, 3:])
    source = next(key for key in given if not key.startswith("decoder"))
    other = {**given, source: given[source].flip(0)}
    assert not torch.allclose(model(**other).logits, logits)
    logits.sum().backward()
    assert all(p.grad is not None for p in trainable_parameters(model).values())


@pytest.mark.parametrize("name", SEQ2SEQ)
def test_folder_round_trip(name, tmp_path):
    model = build(name, seed=3)
    model.save_pretrained(tmp_path)
    again = build(tmp_path, seed=4)
    assert type(again) is type(model) and again.training and again.config.use_cache is False
    assert torch.equal(model(**inputs(name)).logits, again(**inputs(name)).logits)


@pytest.mark.parametrize("name", [*SEQ2SEQ, "tiny"])
def test_a_merged_export_loads_and_says_the_same(name, tmp_path):
    kind = presets()[name].kind
    given = inputs(name) if kind == "seq2seq" else {"input_ids": inputs("tiny-t5")["input_ids"]}
    model = add_adapter(build(name, kind), AdapterConfig(r=2, alpha=4), seed=1)
    for key, p in trainable_parameters(model).items():
        torch.nn.init.normal_(p, std=0.1, generator=torch.Generator().manual_seed(len(key)))
    expected = model.eval()(**given).logits
    merge(model).save_pretrained(tmp_path)
    loaded = build(tmp_path, kind, seed=5).eval()
    torch.testing.assert_close(loaded(**given).logits, expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(build(name, kind).eval()(**given).logits, expected)


def test_limits():
    assert (context_limit(build("tiny-t5")), vocabulary(build("tiny-t5"))) == (None, 32)
    assert (context_limit(build("tiny-whisper")), vocabulary(build("tiny-whisper"))) == (256, 32)
    with pytest.raises(SteepestError, match="takes 256 tokens"):
        build("tiny-whisper", context=257)


def test_the_wrong_kind(tmp_path):
    with pytest.raises(SteepestError, match=r"'tiny-t5' is a seq2seq model and a causal one.*\(tiny, small"):
        build("tiny-t5", "causal")
    with pytest.raises(SteepestError, match=r"'tiny' is a causal model and a seq2seq one.*tiny-whisper"):
        build("tiny", "seq2seq")
    with pytest.raises(SteepestError, match="did you mean 'scored'"):
        build("tiny", "score")
    build("tiny-t5").save_pretrained(tmp_path)
    with pytest.raises(SteepestError, match="is a seq2seq model and a causal one is asked for"):
        build(tmp_path, "valued")
