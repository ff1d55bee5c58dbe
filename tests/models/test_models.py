"""Models: presets, folders, import paths, and what goes wrong with each."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from steepest.contract import SteepestError
from steepest.models import build_model, context_limit, describe_model, presets, vocabulary

NAMES = list(presets())
FROZEN = {"tiny-whisper": 32 * 64}
"""Elements that are not trained: the sinusoids of Whisper's encoder."""


def tiny(seed=0, **changed):
    return build_model("tiny", **{"vocab_size": 256, "context": 64, "seed": seed, **changed})


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


@pytest.fixture
def folder(tmp_path):
    tiny(seed=3).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def factories(tmp_path, monkeypatch):
    """A module of the user's own in the current folder, which is not on Python's path."""
    (tmp_path / "mine_for_test.py").write_text(
        "import types\n"
        "from torch import nn\n"
        "class Model(nn.Embedding):\n"
        "    def __init__(self, vocab_size, context=8, width=4):\n"
        "        super().__init__(vocab_size, width)\n"
        "        self.config = types.SimpleNamespace(vocab_size=vocab_size, block_size=context)\n"
        "def plain():\n    return nn.Linear(3, 3)\n"
        "def anything(**options):\n    assert options == {'context': 64}\n    return nn.Identity()\n"
        "def number():\n    return 7\n"
        "def broken():\n    raise ValueError('no such size')\n"
        "width = 4\n"
    )
    (tmp_path / "damaged_for_test.py").write_text("import module_that_is_nowhere\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    sys.modules.pop("mine_for_test", None)


def test_the_presets():
    known = {
        "tiny": 131_904,
        "tiny-t5": 247_808,
        "tiny-whisper": 240_304,
        "small": 1_869_504,
        "gpt2-124m": 124_439_808,
        "llama-1b": 1_235_814_400,
    }
    assert list(known) == NAMES
    assert {name: preset.parameters() for name, preset in presets().items()} == known
    with pytest.raises(TypeError):
        presets()["mine"] = presets()["tiny"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("vocab_size", [None, 300])
def test_preset_is_what_it_says(name, vocab_size):
    preset = presets()[name]
    with torch.device("meta"):
        context = preset.context_limit or 64
        model = build_model(name, vocab_size=vocab_size, context=context, seed=0, kind=preset.kind)
    facts = describe_model(model)
    assert facts["parameters"] == preset.parameters(vocab_size)
    assert facts["trainable"] == facts["parameters"] - FROZEN.get(name, 0)
    assert facts["bytes"] == 4 * facts["parameters"]
    assert facts["vocab_size"] == vocabulary(model) == (vocab_size or preset.vocab_size)
    assert facts["context_limit"] == context_limit(model) == preset.context_limit
    assert facts["class"] == preset.family.model
    assert model.training and model.config.use_cache is False
    assert model.config._attn_implementation == "sdpa"


def test_llama_1b_is_the_published_shape():
    with torch.device("meta"):
        config = build_model("llama-1b", vocab_size=None, context=8, seed=0).config
    assert (config.head_dim, config.num_key_value_heads, config.tie_word_embeddings) == (64, 8, True)
    assert config.rope_parameters["rope_theta"] == 500_000 and config.rope_parameters["factor"] == 32


def test_same_seed_same_weights_whatever_the_generator():
    torch.manual_seed(1)
    first = tiny()
    torch.manual_seed(2)
    torch.rand(7)
    assert same(first, tiny())
    assert not same(first, tiny(seed=1))


def test_the_generator_is_left_as_it_was():
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    tiny()
    with pytest.raises(SteepestError):
        build_model("tiny", vocab_size=256, context=10**9, seed=0)
    assert torch.equal(before, torch.random.get_rng_state())


def test_tied_weights_count_once():
    tied = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False), nn.Linear(4, 1))
    tied[1].weight = tied[0].weight
    tied[2].bias.requires_grad_(False)
    facts = describe_model(tied)
    assert (facts["parameters"], facts["trainable"], facts["bytes"]) == (16 + 5, 16 + 4, 4 * 21)
    assert facts["vocab_size"] is facts["context_limit"] is None


def test_text_config_of_a_larger_model_is_read():
    text = SimpleNamespace(vocab_size=9, max_position_embeddings=5)
    model = nn.Identity()
    model.config = SimpleNamespace(get_text_config=lambda: text)
    assert (vocabulary(model), context_limit(model)) == (9, 5)


def test_folder_round_trip(folder):
    model = build_model(str(folder), vocab_size=200, context=64, seed=0)
    assert same(model, tiny(seed=3))
    assert model.training and model.config.use_cache is False


def test_folder_in_half_precision_is_read_as_float32(tmp_path):
    tiny().to(torch.bfloat16).save_pretrained(tmp_path)
    model = build_model(str(tmp_path), vocab_size=256, context=64, seed=0)
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_nothing_is_printed(folder, capfd):
    capfd.readouterr()
    tiny()
    build_model(str(folder), vocab_size=256, context=64, seed=0)
    assert capfd.readouterr() == ("", "")


def test_transformers_own_settings_are_left_alone(folder):
    from transformers.utils import logging

    logging.enable_progress_bar()
    before = logging.get_verbosity()
    build_model(str(folder), vocab_size=256, context=64, seed=0)
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == (before, True)


def test_factory_gets_what_it_accepts(factories):
    model = build_model("mine_for_test:Model", vocab_size=11, context=6, seed=0)
    assert (vocabulary(model), context_limit(model), model.weight.shape) == (11, 6, (11, 4))
    again = build_model("mine_for_test:Model", vocab_size=11, context=6, seed=0)
    assert same(model, again)
    assert isinstance(build_model("mine_for_test:plain", vocab_size=11, context=6, seed=0), nn.Linear)
    assert isinstance(build_model("mine_for_test:anything", vocab_size=None, context=64, seed=0), nn.Identity)


def test_path_is_given_back_to_python(factories):
    build_model("mine_for_test:plain", vocab_size=None, context=6, seed=0)
    assert sys.path[-1] == str(Path.cwd())


def expect(message, spec, vocab_size=256, context=64):
    with pytest.raises(SteepestError) as error:
        build_model(str(spec), vocab_size=vocab_size, context=context, seed=0)
    assert message in str(error.value)
    assert "\n" not in str(error.value) and str(error.value).endswith((".", "?"))


def test_unknown_names():
    expect("did you mean 'tiny'?", "tny")
    expect("did you mean 'gpt2-124m'?", "gpt2-124")
    expect("there is no folder 'meta-llama/Llama-3.2-1B'", "meta-llama/Llama-3.2-1B")
    expect("there is no folder '~/nowhere'", "~/nowhere")


@pytest.mark.parametrize(
    ("spec", "message"),
    {
        "no_such_module:build": "cannot import 'no_such_module'",
        "damaged_for_test:build": "No module named 'module_that_is_nowhere'",
        ":build": "cannot import ''",
        "mine_for_test:plian": "did you mean 'plain'?",
        "mine_for_test:width": "unknown factory in module 'mine_for_test' 'width'",
        "mine_for_test:number": "returned int; it must return a torch.nn.Module",
        "mine_for_test:broken": "failed: ValueError: no such size",
    }.items(),
)
def test_bad_import_paths(factories, spec, message):
    expect(message, spec)


def test_bad_fits(folder):
    expect("takes 2048 tokens; lower the context from 4096", "tiny", context=4096)
    expect("the tokenizer has 257 tokens and model", folder, vocab_size=257)


def test_bad_folders(folder, tmp_path):
    expect("has no config.json", tmp_path)
    expect("is a file; give the folder", folder / "config.json")
    (folder / "model.safetensors").rename(tmp_path / "kept")
    expect("cannot load the model in", folder)
    (folder / "model.safetensors").write_bytes(b"not weights")
    expect("cannot load the model in", folder)
    (tmp_path / "kept").rename(folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    expect("missing model.layers.2", folder)
    (folder / "config.json").write_text("{")
    expect("cannot load the model in", folder)


def test_every_preset_is_documented():
    page = (Path(__file__).parents[2] / "docs" / "models.md").read_text()
    assert not [name for name in NAMES if f"`{name}`" not in page]


def test_listing_the_presets_imports_nothing_heavy():
    code = "import sys, steepest.models, steepest.objectives; print('transformers' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "False"


def test_a_folder_with_fewer_tokens_can_be_padded(folder):
    """Old tokens say of each other what they said before; new rows, of both ends, are the mean."""
    ids = torch.arange(32)[None]
    plain = build_model(str(folder), vocab_size=256, context=64, seed=0)
    grown = build_model(str(folder), vocab_size=300, context=64, seed=0, pad_vocab=True)
    assert vocabulary(grown) == 300 and grown(ids).logits.shape == (1, 32, 300)
    assert torch.equal(grown(ids).logits[..., :256], plain(ids).logits)
    for layer in (grown.get_input_embeddings(), grown.get_output_embeddings()):
        torch.testing.assert_close(layer.weight[256:], layer.weight[:256].mean(0).expand(44, -1))
    assert same(plain, build_model(str(folder), vocab_size=200, context=64, seed=0, pad_vocab=True))


def test_a_sequence_model_can_be_padded(tmp_path):
    build_model("tiny-t5", vocab_size=32, context=8, seed=0, kind="seq2seq").save_pretrained(tmp_path)
    grown = build_model(str(tmp_path), vocab_size=40, context=8, seed=0, kind="seq2seq", pad_vocab=True)
    rows = grown.get_output_embeddings().weight
    assert vocabulary(grown) == 40
    torch.testing.assert_close(rows[32:], rows[:32].mean(0).expand(8, -1))


def test_a_module_that_cannot_grow_says_so(factories, tmp_path):
    (tmp_path / "narrow_for_test.py").write_text(
        "from mine_for_test import Model\ndef build(): return Model(11)\n"
    )
    with pytest.raises(SteepestError, match="Model knows 11 tokens and cannot be given more"):
        build_model("narrow_for_test:build", vocab_size=12, context=6, seed=0, pad_vocab=True)
