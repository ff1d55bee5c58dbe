"""Score and value heads: where they read, what they start from, what they leave alone."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from steepest.adapters import AdapterConfig, add_adapter, merge
from steepest.contract import SteepestError
from steepest.models import RewardModel, ValuedModel, build_model, describe_model, positions, vocabulary
from steepest.models.presets import GPT2, PRESETS, Preset

SHAPES = ("llama", "gpt2")


def causal(shape="llama", seed=0, kind="causal"):
    if shape == "llama":
        return build_model("tiny", vocab_size=32, context=16, seed=seed, kind=kind)
    small = {**PRESETS["gpt2-124m"].fields, "n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 2}
    import transformers.models.gpt2 as module

    torch.manual_seed(seed)
    config = module.GPT2Config(**Preset("mini", "", GPT2, small).arguments(32))
    return module.GPT2LMHeadModel(config)


def adapted(shape):
    return add_adapter(causal(shape), AdapterConfig(r=2), seed=0)


def ids(*shape, seed=0):
    return torch.randint(0, 32, shape, generator=torch.Generator().manual_seed(seed))


def padded(row, length, left):
    mask = torch.ones(row.shape[1], dtype=torch.bool)
    side = (length - row.shape[1], 0) if left else (0, length - row.shape[1])
    return nn.functional.pad(row, side, value=7), nn.functional.pad(mask, side)[None]


@pytest.fixture(scope="module")
def reward_models():
    return {shape: RewardModel(causal(shape)) for shape in SHAPES}


@settings(max_examples=20)
@given(st.sampled_from(SHAPES), st.integers(1, 9), st.integers(0, 5), st.booleans())
def test_the_score_is_read_at_the_last_real_token(reward_models, shape, length, padding, left):
    model = reward_models[shape]
    row = ids(1, length, seed=length)
    with torch.no_grad():
        alone = model(row)
        assert alone.shape == (1,) and alone.dtype == torch.float32
        torch.testing.assert_close(model(*padded(row, length + padding, left)), alone, rtol=1e-5, atol=1e-6)


def test_the_last_token_matters_and_what_follows_does_not(reward_models):
    model, row = reward_models["llama"], ids(1, 8)
    mask = torch.arange(8)[None] < 5
    changed = row.clone()
    changed[0, 4] = (row[0, 4] + 1) % 32
    after = row.clone()
    after[0, 5:] = (row[0, 5:] + 1) % 32
    with torch.no_grad():
        assert not torch.equal(model(row, mask), model(changed, mask))
        torch.testing.assert_close(model(row, mask), model(after, mask))


@pytest.mark.parametrize("shape", SHAPES)
def test_scores_start_small_and_have_a_gradient(shape):
    model = RewardModel(causal(shape))
    scores = model(ids(8, 6))
    assert 0 < scores.abs().max() < 1
    assert scores.std() > 0
    scores.sum().backward()
    assert all(p.grad is not None for p in model.parameters()), "a parameter that nothing reads"


@pytest.mark.parametrize("shape", SHAPES)
def test_values_start_at_zero_and_logits_are_the_policys(shape):
    policy = causal(shape).eval()
    model = ValuedModel(policy)
    row = ids(3, 6)
    output = model(row)
    assert output.values.shape == (3, 6) and output.values.dtype == torch.float32
    assert not output.values.any()
    assert torch.equal(output.logits, policy(row).logits)
    nn.init.ones_(model.value_head.weight)
    hidden = policy.base_model(row).last_hidden_state
    torch.testing.assert_close(model(row).values, hidden.sum(-1))
    mask = torch.tensor([[False, True, True, True]])
    given = {"attention_mask": mask, "position_ids": positions(mask)}
    alone = model(row[:1, 1:4]).values
    torch.testing.assert_close(model(row[:1, :4], **given).values[:, 1:], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("head", [RewardModel, ValuedModel])
def test_on_an_adapted_model(shape, head):
    model = head(adapted(shape))
    output = model(ids(2, 5))
    (output if head is RewardModel else output.logits.sum() + output.values).sum().backward()
    moved = [name for name, p in model.named_parameters() if p.grad is not None]
    assert any("lora_B" in name for name in moved)
    assert {name for name in moved if "lora" not in name} == {
        name for name, _ in model.named_parameters() if name.startswith(("score.", "value_head."))
    }
    assert all(p.requires_grad == (name in moved) for name, p in model.named_parameters())


@pytest.mark.parametrize("kind", ["scored", "valued"])
def test_an_adapter_goes_on_the_body_and_off_it(kind):
    plain = causal(kind=kind).eval()
    before = plain(ids(2, 5)) if kind == "scored" else plain(ids(2, 5)).logits
    model = add_adapter(plain, AdapterConfig(r=2), seed=0)
    assert isinstance(model, RewardModel | ValuedModel)
    after = model(ids(2, 5)) if kind == "scored" else model(ids(2, 5)).logits
    assert torch.equal(before, after)
    head = {name for name, p in model.named_parameters() if p.requires_grad and "lora" not in name}
    assert head == {name for name, _ in model.named_parameters() if not name.startswith("body.")} != set()
    assert all(p.requires_grad for p in merge(model).parameters())


def test_kinds_share_the_body():
    policy, scored, valued = (causal(seed=3, kind=kind) for kind in ("causal", "scored", "valued"))
    assert isinstance(scored, RewardModel) and isinstance(valued, ValuedModel)
    for one, other in zip(policy.model.parameters(), scored.body.parameters(), strict=True):
        assert torch.equal(one, other)
    for one, other in zip(policy.parameters(), valued.body.parameters(), strict=True):
        assert torch.equal(one, other)
    assert torch.equal(scored.score.weight, causal(seed=3, kind="scored").score.weight)
    assert vocabulary(scored) == vocabulary(valued) == 32
    assert describe_model(scored)["parameters"] == describe_model(policy)["parameters"] - 32 * 64 + 64


def test_half_precision_scores_are_float32():
    model = RewardModel(add_adapter(causal().to(torch.bfloat16), AdapterConfig(r=2), seed=0))
    assert model.score.weight.dtype == model(ids(2, 5)).dtype == torch.float32
    model = RewardModel(causal()).to(torch.bfloat16)
    assert model(ids(2, 5)).dtype == torch.float32
    model = RewardModel(causal())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model(ids(2, 5)).dtype == torch.float32


def test_a_reward_model_becomes_a_transformers_classifier_and_back(tmp_path):
    from transformers import AutoModelForSequenceClassification

    model = RewardModel(causal()).eval()
    model.save_pretrained(tmp_path)
    row = ids(1, 6)
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(theirs(row).logits[:, 0], model(row))
        again = build_model(str(tmp_path), vocab_size=32, context=16, seed=9, kind="scored")
        assert torch.equal(again.eval()(row), model(row))


def test_a_valued_model_saves_its_policy(tmp_path):
    model = ValuedModel(causal())
    model.save_pretrained(tmp_path)
    again = build_model(str(tmp_path), vocab_size=32, context=16, seed=9)
    assert torch.equal(again(ids(1, 4)).logits, model(ids(1, 4)).logits)


def test_mistakes(tmp_path):
    with pytest.raises(SteepestError, match="Linear gives no hidden states"):
        RewardModel(nn.Linear(3, 3))
    with pytest.raises(SteepestError, match="gives no hidden states"):
        ValuedModel(build_model("tiny-t5", vocab_size=32, context=8, seed=0, kind="seq2seq"))
    with pytest.raises(SteepestError, match="merge it before saving"):
        RewardModel(adapted("llama")).save_pretrained(tmp_path)
    model = causal()
    model.score = nn.Linear(64, 3)
    with pytest.raises(SteepestError, match="has 3 labels"):
        RewardModel(model)
