"""LoRA and DoRA: nothing at the start, exact when merged, the same from the same seed, readable by peft."""

from __future__ import annotations

import importlib

import pytest
import torch
from torch import nn

from steepest.adapters import (
    AdapterConfig,
    add_adapter,
    is_lora_a,
    is_lora_b,
    is_magnitude,
    merge,
    save_adapter,
)
from steepest.contract import SteepestError
from steepest.models import RewardModel, build_model, canonical, trainable_parameters

KINDS = ("lora", "dora")
IDS = torch.randint(0, 32, (2, 7), generator=torch.Generator().manual_seed(0))


def plain(seed=0):
    return build_model("tiny", vocab_size=32, context=16, seed=seed)


def gpt2():
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    sizes = {"vocab_size": 32, "n_positions": 16, "n_embd": 16, "n_layer": 2, "n_head": 2}
    return GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=None, eos_token_id=None))


def own():
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(32, 8), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 32))


MODELS = {"llama": plain, "gpt2": gpt2, "own": own}


def logits(model):
    with torch.no_grad():
        output = model.eval()(IDS)
    return getattr(output, "logits", output)


def stirred(model, seed=1):
    """As after training: no trainable parameter is what it was."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in trainable_parameters(model).values():
            p.add_(torch.randn(p.shape, generator=generator), alpha=0.1)
    return model


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", MODELS)
def test_a_fresh_adapter_changes_nothing_and_a_merged_one_is_exact(name, kind, recwarn):
    """In float64, where rounding hides nothing."""
    before = logits(MODELS[name]().double())
    model = add_adapter(MODELS[name]().double(), AdapterConfig(kind=kind, r=4), seed=0)
    torch.testing.assert_close(logits(model), before, rtol=1e-12, atol=1e-12)
    expected = logits(stirred(model))
    assert not torch.allclose(expected, before, atol=1e-2)
    merged = merge(model)
    assert type(merged) is type(MODELS[name]())
    torch.testing.assert_close(logits(merged), expected, rtol=1e-10, atol=1e-10)
    names = [key for key, _ in MODELS[name]().named_parameters()]
    assert [key for key, _ in merged.named_parameters()] == names
    assert all(p.requires_grad for p in merged.parameters())
    assert not recwarn.list


@pytest.mark.parametrize("kind", KINDS)
def test_every_trained_parameter_has_one_name(kind):
    model = add_adapter(plain(), AdapterConfig(kind=kind), seed=0)
    predicates = (is_lora_a, is_lora_b, is_magnitude)
    found = {key: [match(key, p) for match in predicates] for key, p in trainable_parameters(model).items()}
    assert all(sum(which) == 1 for which in found.values())
    counts = [sum(column) for column in zip(*found.values(), strict=True)]
    assert counts == [14, 14, 14 if kind == "dora" else 0], "seven linear layers in each of two blocks"
    frozen = [key for key, p in model.named_parameters() if not p.requires_grad]
    assert [canonical(key) for key in frozen] == [key for key, _ in plain().named_parameters()]
    assert not any(match(key) for key in frozen for match in predicates)


def test_base_weights_do_not_move_and_have_no_gradient():
    model = add_adapter(plain(), AdapterConfig(), seed=0)
    model(IDS).logits.square().mean().backward()
    assert {key for key, p in model.named_parameters() if p.grad is not None} == set(
        trainable_parameters(model)
    )
    b = [p for key, p in model.named_parameters() if is_lora_b(key)]
    assert b and all(not p.any() and p.grad.any() for p in b)


def test_the_seed_decides_and_the_generator_is_left():
    def weights(seed):
        return list(trainable_parameters(add_adapter(plain(), AdapterConfig(), seed=seed)).values())

    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    first = weights(5)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.rand(3)
    assert all(map(torch.equal, first, weights(5)))
    assert not all(map(torch.equal, first, weights(6)))


def test_the_mode_is_kept():
    assert add_adapter(plain(), AdapterConfig(), seed=0).training
    assert not add_adapter(plain().eval(), AdapterConfig(), seed=0).training


def test_targets_and_modules_to_save():
    config = AdapterConfig(targets=("q_proj", "layers.1.mlp.up_proj"), modules_to_save=("lm_head",))
    model = stirred(add_adapter(plain(), config, seed=0))
    adapted = {canonical(key).partition(".lora")[0] for key in trainable_parameters(model) if is_lora_a(key)}
    assert adapted == {
        "model.layers.0.self_attn.q_proj",
        "model.layers.1.self_attn.q_proj",
        "model.layers.1.mlp.up_proj",
    }
    rest = [key for key in trainable_parameters(model) if not (is_lora_a(key) or is_lora_b(key))]
    assert len(rest) == 1 and "lm_head" in rest[0]
    expected = logits(model)
    torch.testing.assert_close(logits(merge(model)), expected, rtol=1e-4, atol=1e-5)


def test_what_was_frozen_before_is_frozen_after():
    model = plain()
    model.model.embed_tokens.requires_grad_(False)
    merged = merge(add_adapter(model, AdapterConfig(), seed=0))
    frozen = [key for key, p in merged.named_parameters() if not p.requires_grad]
    assert frozen == ["model.embed_tokens.weight"]


def test_an_adapter_can_follow_a_merged_one():
    model = merge(stirred(add_adapter(plain(), AdapterConfig(r=2), seed=0)))
    expected = logits(model)
    again = add_adapter(model, AdapterConfig(kind="dora", r=3), seed=1)
    torch.testing.assert_close(logits(again), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_peft_reads_what_is_saved(kind, tmp_path):
    peft = importlib.import_module("peft")
    config = AdapterConfig(kind=kind, r=3, modules_to_save=("lm_head",))
    model = stirred(add_adapter(plain(), config, seed=0))
    save_adapter(model, tmp_path)
    theirs = peft.PeftModel.from_pretrained(plain(), str(tmp_path))
    assert torch.equal(logits(theirs), logits(model))
    assert not list(tmp_path.glob("*.bin"))


def test_of_a_reward_model_the_bodys_adapter_is_saved(tmp_path):
    model = stirred(add_adapter(RewardModel(plain()), AdapterConfig(), seed=0))
    save_adapter(model, tmp_path)
    assert isinstance(model, RewardModel)
    theirs = importlib.import_module("peft").PeftModel.from_pretrained(plain().model, str(tmp_path))
    own = next(p for key, p in model.body.named_parameters() if is_lora_a(key))
    assert torch.equal(next(p for key, p in theirs.named_parameters() if is_lora_a(key)), own)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (AdapterConfig(targets=("q_prj",)), "did you mean 'q_proj'"),
        (AdapterConfig(targets=("_proj",)), "unknown module for the adapter '_proj'"),
        (AdapterConfig(modules_to_save=("lm_heads",)), "did you mean 'lm_head'"),
        (AdapterConfig(targets=("norm",)), "peft cannot adapt this model"),
    ],
)
def test_names_that_do_not_fit(config, message):
    with pytest.raises(SteepestError, match=message):
        add_adapter(plain(), config, seed=0)


def test_mistakes(monkeypatch):
    model = add_adapter(plain(), AdapterConfig(), seed=0)
    with pytest.raises(SteepestError, match="has an adapter already"):
        add_adapter(model, AdapterConfig(), seed=0)
    for change in (merge, lambda plain: save_adapter(plain, "nowhere")):
        with pytest.raises(SteepestError, match="has no adapter"):
            change(plain())
    with pytest.raises(SteepestError, match="Embedding has no linear layer"):
        add_adapter(nn.Embedding(3, 3), AdapterConfig(), seed=0)
    nn.init.constant_(next(p for key, p in model.named_parameters() if is_lora_b(key)), float("nan"))
    with pytest.raises(SteepestError, match="cannot be merged"):
        merge(model)
    monkeypatch.setitem(importlib.import_module("sys").modules, "peft", None)
    with pytest.raises(SteepestError, match=r"pip install peft"):
        add_adapter(plain(), AdapterConfig(), seed=0)
