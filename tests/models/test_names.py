"""Canonical names: wrappers go, what belongs to the model stays."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from steepest.models import ValuedModel, build_model, canonical

PARTS = st.sampled_from(
    ["model", "layers", "0", "11", "q_proj", "lora_A", "default", "base_model", "module", "body", "h"]
)
NAMES = st.lists(PARTS, min_size=0, max_size=6).map(lambda parts: ".".join([*parts, "weight"]))
WRAPPERS = st.sampled_from(["base_model.model.", "_orig_mod.", "module.", "body."])

EXAMPLES = {
    "model.layers.0.mlp.up_proj.weight": "model.layers.0.mlp.up_proj.weight",
    "_orig_mod.model.norm.weight": "model.norm.weight",
    "module._orig_mod.model.norm.weight": "model.norm.weight",
    "model.layers.3._orig_mod.mlp.up_proj.weight": "model.layers.3.mlp.up_proj.weight",
    "base_model.model.model.layers.0.q_proj.base_layer.weight": "model.layers.0.q_proj.weight",
    "base_model.model.model.layers.0.q_proj.lora_A.default.weight": (
        "model.layers.0.q_proj.lora_A.default.weight"
    ),
    "body.base_model.model.model.norm.weight": "model.norm.weight",
    "model.module.weight": "model.module.weight",
    "weight": "weight",
    "module": "module",
}


@pytest.mark.parametrize(("name", "plain"), EXAMPLES.items())
def test_examples(name, plain):
    assert canonical(name) == plain


@given(NAMES, st.lists(WRAPPERS, max_size=4))
def test_wrapping_changes_no_canonical_name(name, wrappers):
    assert canonical("".join(wrappers) + name) == canonical(name)
    assert canonical(canonical(name)) == canonical(name)
    assert canonical(name).endswith("weight")


def test_a_wrapped_model_has_the_names_of_the_plain_one():
    def names(model):
        return [canonical(name) for name, _ in model.named_parameters()]

    plain = build_model("tiny", vocab_size=32, context=8, seed=0)
    expected = [name for name, _ in plain.named_parameters()]
    assert names(plain) == expected and len(set(expected)) == len(expected) > 10
    assert names(torch.nn.DataParallel(plain)) == expected
    assert names(ValuedModel(plain)) == [*expected, "value_head.weight", "value_head.bias"]
