"""Recompute: the same losses and gradients, bit by bit, with dropout too, and fewer activations kept."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from steepest.adapters import AdapterConfig, add_adapter
from steepest.contract import SteepestError
from steepest.models import RewardModel, build_model, recompute


class Own(nn.Module):
    """Somebody's own model: blocks with dropout in a list, and a shorter list beside it."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(16, 8)
        self.others = nn.ModuleList([nn.Linear(8, 8)])
        self.blocks = nn.ModuleList(
            [nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Dropout(0.3)) for _ in range(3)]
        )

    def forward(self, ids):
        x = self.embedding(ids)
        for block in self.blocks:
            x = x + block(x)
        return x @ self.embedding.weight.T


def gpt2(dropout):
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    sizes = {"vocab_size": 16, "n_positions": 16, "n_embd": 16, "n_layer": 3, "n_head": 2}
    drop = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), dropout)
    return GPT2LMHeadModel(GPT2Config(**sizes, **drop, use_cache=False, **NO_TOKENS))


NO_TOKENS = {"bos_token_id": None, "eos_token_id": None}


def own():
    torch.manual_seed(0)
    return Own()


def llama():
    return build_model("tiny", vocab_size=16, context=16, seed=0)


MODELS = {
    "own": own,
    "llama": llama,
    "gpt2_with_dropout": lambda: gpt2(0.3),
    "gpt2_without": lambda: gpt2(0.0),
    "lora": lambda: add_adapter(llama(), AdapterConfig(r=2, dropout=0.3), seed=0),
    "scored": lambda: RewardModel(gpt2(0.3)),
}
IDS = torch.randint(0, 16, (2, 9), generator=torch.Generator().manual_seed(0))


def one_pass(model, seed=7):
    """The loss, the gradients, and how many bytes the graph kept for the backward pass."""
    model.zero_grad()
    kept = {}

    def keep(x):
        kept[x.data_ptr()] = x.numel() * x.element_size()
        return x

    torch.manual_seed(seed)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        output = model(IDS)
        loss = getattr(output, "logits", output).square().mean()
    loss.backward()
    return (
        loss,
        {name: p.grad for name, p in model.named_parameters() if p.grad is not None},
        sum(kept.values()),
    )


@pytest.mark.parametrize("name", MODELS)
def test_losses_and_gradients_are_bitwise_the_same(name):
    plain, again = MODELS[name](), recompute(MODELS[name]())
    names = [name for name, _ in plain.named_parameters()]
    assert [name for name, _ in again.named_parameters()] == names
    loss, gradients, kept = one_pass(plain)
    loss_again, gradients_again, kept_again = one_pass(again)
    assert torch.equal(loss, loss_again)
    assert gradients.keys() == gradients_again.keys() and gradients
    for key, value in gradients.items():
        assert torch.equal(value, gradients_again[key]), key
    assert kept_again < kept


def test_dropout_is_really_there():
    model = gpt2(0.3)
    assert not torch.equal(one_pass(model)[0], one_pass(model, seed=8)[0])


def test_only_the_longest_list_and_only_once():
    model = recompute(recompute(own()))
    calls = []
    model.blocks[0][0].register_forward_hook(lambda *_: calls.append(1))
    one_pass(model)
    assert len(calls) == 2, "once forward, once again in the backward pass"
    assert "forward" not in vars(model.others[0])


def test_a_copy_recomputes_its_own_blocks():
    model = recompute(own())
    twin = copy.deepcopy(model)
    nn.init.zeros_(twin.blocks[0][0].weight)
    assert not torch.equal(one_pass(twin)[0], one_pass(model)[0])


def test_a_module_without_blocks():
    with pytest.raises(SteepestError, match="Linear has no list of blocks"):
        recompute(nn.Linear(2, 2))
