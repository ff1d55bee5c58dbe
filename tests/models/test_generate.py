"""Sampling: a function of weights and seed, with and without a cache, that leaves no trace."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from steepest.adapters import AdapterConfig, add_adapter
from steepest.contract import SteepestError
from steepest.models import ValuedModel, build_model, positions, recompute, sample

PAD, END = 0, 5


class Plain(nn.Module):
    """A module without `generate`: ids to logits, nothing else."""

    def __init__(self, model):
        super().__init__()
        self.inner = model

    def forward(self, ids):
        return self.inner(ids).logits


class Fixed(nn.Module):
    """Whatever stands before, the same distribution."""

    def __init__(self, probabilities):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(probabilities).log())

    def forward(self, ids):
        return SimpleNamespace(logits=self.logits.expand(*ids.shape, -1))


@pytest.fixture(scope="module")
def model():
    return build_model("tiny", vocab_size=16, context=64, seed=1).train()


@pytest.fixture(scope="module")
def models(model):
    """One whose positions are rotations, which no shift changes, and one that has learned each position."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(1)
    sizes = {"vocab_size": 16, "n_positions": 32, "n_embd": 32, "n_layer": 2, "n_head": 2}
    none = {"bos_token_id": None, "eos_token_id": None}
    gpt2 = GPT2LMHeadModel(GPT2Config(**sizes, **none, use_cache=False, initializer_range=0.3)).eval()
    return {"llama": model, "gpt2": gpt2}


def prompts(*lengths, seed=0):
    generator = torch.Generator().manual_seed(seed)
    mask = torch.arange(max(lengths))[None] >= max(lengths) - torch.tensor(lengths)[:, None]
    return torch.randint(1, 16, mask.shape, generator=generator).where(mask, PAD), mask


def draw(model, given, mask, **changed):
    options = {"new_tokens": 6, "end_id": END, "pad_id": PAD, "seed": 3, **changed}
    return sample(model, given, mask, **options)


def equal(one, other):
    return all(torch.equal(getattr(one, key), getattr(other, key)) for key in ("ids", "mask", "targets"))


@settings(max_examples=15)
@given(
    st.sampled_from(["llama", "gpt2"]),
    st.lists(st.integers(1, 7), min_size=1, max_size=5),
    st.sampled_from([0.0, 0.7, 1.0]),
    st.sampled_from([0.8, 1.0]),
    st.integers(0, 2**31),
    st.sampled_from([None, END]),
)
def test_cache_or_no_cache_is_one_answer(models, shape, lengths, temperature, top_p, seed, end_id):
    """The plain loop knows neither cache nor left padding, and draws the same tokens."""
    model = models[shape].eval()
    how = {"temperature": temperature, "top_p": top_p, "seed": seed, "end_id": end_id}
    cached = draw(model, *prompts(*lengths), **how)
    assert equal(cached, draw(Plain(model), *prompts(*lengths), **how))
    start = max(lengths)
    assert cached.ids.shape[1] <= start + 6 and cached.targets.sum(1).min() >= 1
    assert torch.equal(cached.ids[:, :start], prompts(*lengths)[0])
    assert torch.equal(
        cached.mask,
        cached.targets | nn.functional.pad(prompts(*lengths)[1], (0, cached.ids.shape[1] - start)),
    )
    assert cached.targets[:, -1].any(), "the last column is somebody's"
    assert (cached.ids[~cached.mask] == PAD).all()
    for row, real in zip(cached.ids[:, start:], cached.targets[:, start:], strict=True):
        own = row[real].tolist()
        assert not real[len(own) :].any()
        assert end_id is None or END not in own[:-1]
        assert len(own) == cached.ids.shape[1] - start or own[-1] == end_id


@pytest.mark.parametrize("shape", ["llama", "gpt2"])
def test_the_same_log_probabilities_in_one_forward_pass(models, shape):
    """What a policy gradient recomputes: padded rows with mask and positions, against each row alone."""
    model = models[shape].eval()
    drawn = draw(model, *prompts(2, 5, 3), end_id=None)
    with torch.no_grad():
        logits = model(
            input_ids=drawn.ids, attention_mask=drawn.mask, position_ids=positions(drawn.mask)
        ).logits
    assert drawn.targets.sum() == 18
    for i, (row, mask, targets) in enumerate(zip(drawn.ids, drawn.mask, drawn.targets, strict=True)):
        with torch.no_grad():
            alone = model(row[mask][None]).logits[0].log_softmax(-1)
        own = targets[mask][1:]
        expected = alone[:-1].gather(1, row[mask][1:, None])[own, 0]
        together = logits[i, :-1].log_softmax(-1).gather(1, row[1:, None])[targets[1:], 0]
        torch.testing.assert_close(together, expected, rtol=1e-4, atol=1e-5)


def test_greedy_takes_the_likeliest_token(model):
    given, mask = prompts(3, 3)
    drawn = draw(model, given, mask, temperature=0, end_id=None)
    with torch.no_grad():
        likeliest = model(drawn.ids).logits.argmax(-1)
    assert torch.equal(likeliest[:, 2:-1], drawn.ids[:, 3:])
    assert equal(drawn, draw(model, given, mask, temperature=0, end_id=None, seed=4))


def test_the_seed_decides(model):
    given, mask = prompts(4, 2)
    torch.manual_seed(1)
    first = draw(model, given, mask)
    torch.manual_seed(2)
    assert equal(first, draw(model, given, mask))
    assert not equal(first, draw(model, given, mask, seed=4))


def test_frequencies_are_the_softmaxs():
    """Temperature 1 draws from the model's own distribution; 1/2 from its square; top_p cuts the tail."""
    model, given = Fixed([0.5, 0.3, 0.2]), torch.ones(400, 1, dtype=torch.long)
    for how, expected in {
        (1.0, 1.0): [0.5, 0.3, 0.2],
        (0.5, 1.0): [0.25 / 0.38, 0.09 / 0.38, 0.04 / 0.38],
        (1.0, 0.7): [0.5 / 0.8, 0.3 / 0.8, 0.0],
    }.items():
        drawn = draw(model, given, given.bool(), temperature=how[0], top_p=how[1], end_id=None, new_tokens=10)
        share = torch.bincount(drawn.ids[:, 1:].flatten(), minlength=3) / 4000
        torch.testing.assert_close(share, torch.tensor(expected), atol=0.03, rtol=0)
        assert (share[2] == 0) == (expected[2] == 0)


def test_a_folders_own_settings_do_not_shape_the_draws(model):
    given, mask = prompts(4, 2)
    before = draw(model, given, mask)
    own = model.generation_config
    try:
        model.generation_config = type(own)(top_k=1, repetition_penalty=9.0, suppress_tokens=[1, 2, 3])
        changed = model.generation_config
        assert equal(before, draw(model, given, mask))
        assert model.generation_config is changed
    finally:
        model.generation_config = own


def test_nothing_is_left_behind(model):
    model.train().model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    state = torch.random.get_rng_state()
    draw(model, *prompts(3, 1))
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.random.get_rng_state(), state)
    assert model.config.use_cache is False
    model.train()


def test_wrapped_models_draw_the_same(model):
    given, mask = prompts(3, 5)
    expected = draw(model, given, mask)
    assert equal(expected, draw(ValuedModel(model), given, mask))
    fresh = build_model("tiny", vocab_size=16, context=64, seed=1)
    assert equal(expected, draw(add_adapter(recompute(fresh), AdapterConfig(r=2), seed=0), given, mask))


def test_nothing_is_said(model, capfd, recwarn):
    capfd.readouterr()
    draw(model, *prompts(3, 5))
    draw(model, *prompts(3, 5), temperature=0)
    assert capfd.readouterr() == ("", "")
    assert not recwarn.list


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"prompts": torch.ones(2, 3)[0]}, "must be of one shape"),
        ({"mask": torch.ones(2, 2, dtype=torch.bool)}, r"got \(2, 3\) and \(2, 2\)"),
        ({"mask": torch.tensor([[1, 1, 1], [1, 1, 0]]).bool()}, "pad prompts on the left"),
        ({"mask": torch.tensor([[1, 1, 1], [0, 0, 0]]).bool()}, "a prompt is empty"),
        ({"temperature": -1.0}, "temperature -1.0"),
        ({"temperature": float("nan")}, "temperature nan"),
        ({"top_p": 0.0}, "top_p 0.0"),
        ({"new_tokens": 0}, "0 new tokens"),
        ({"new_tokens": 2046}, "are 2049, and the model takes 2048"),
    ],
)
def test_mistakes(model, changed, message):
    given = {"prompts": torch.ones(2, 3, dtype=torch.long), "mask": torch.ones(2, 3, dtype=torch.bool)}
    options = {"new_tokens": 6, "end_id": END, "pad_id": PAD, "seed": 3, **given, **changed}
    with pytest.raises(SteepestError, match=message):
        sample(model, **options)


def test_a_model_with_an_encoder():
    model = build_model("tiny-t5", vocab_size=16, context=16, seed=0, kind="seq2seq")
    with pytest.raises(SteepestError, match="T5ForConditionalGeneration has an encoder"):
        draw(model, *prompts(3))
