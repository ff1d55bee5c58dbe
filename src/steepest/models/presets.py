"""Model shapes by name. Data only: nothing heavy is imported to list them or to count their parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

Fields = Mapping[str, Any]


def _llama_parameters(c: Fields) -> int:
    h, i = c["hidden_size"], c["intermediate_size"]
    kv = h * c["num_key_value_heads"] // c["num_attention_heads"]
    layer = 2 * h * h + 2 * h * kv + 3 * h * i + 2 * h
    embeddings = c["vocab_size"] * h * (1 if c["tie_word_embeddings"] else 2)
    return int(embeddings + c["num_hidden_layers"] * layer + h)


def _gpt2_parameters(c: Fields) -> int:
    h = c["n_embd"]
    layer = 12 * h * h + 13 * h
    return int((c["vocab_size"] + c["n_positions"]) * h + c["n_layer"] * layer + 2 * h)


@dataclass(frozen=True)
class Family:
    """An architecture in `transformers`: its module, its two classes, its exact parameter count."""

    module: str
    config: str
    model: str
    context: str
    count: Callable[[Fields], int]


LLAMA = Family(
    "transformers.models.llama",
    "LlamaConfig",
    "LlamaForCausalLM",
    "max_position_embeddings",
    _llama_parameters,
)
GPT2 = Family(
    "transformers.models.gpt2",
    "GPT2Config",
    "GPT2LMHeadModel",
    "n_positions",
    _gpt2_parameters,
)

_COMMON = {
    "attn_implementation": "sdpa",
    "use_cache": False,  # keys and values are kept for generation only; in training they are waste
    "bos_token_id": None,  # a byte or a locally trained vocabulary has no such token
    "eos_token_id": None,
}


@dataclass(frozen=True)
class Preset:
    """A model's shape: the arguments of its configuration, named as `transformers` names them."""

    name: str
    description: str
    family: Family
    fields: Fields

    @property
    def vocab_size(self) -> int:
        """The vocabulary if none is asked for."""
        return int(self.fields["vocab_size"])

    @property
    def context_limit(self) -> int:
        """The longest sequence, in tokens."""
        return int(self.fields[self.family.context])

    def arguments(self, vocab_size: int | None = None) -> dict[str, Any]:
        """The configuration's keyword arguments, with this vocabulary if one is given."""
        return {**_COMMON, **self.fields, "vocab_size": vocab_size or self.vocab_size}

    def parameters(self, vocab_size: int | None = None) -> int:
        """How many parameters the model has; tied embeddings count once."""
        return self.family.count(self.arguments(vocab_size))


def _llama(hidden: int, intermediate: int, layers: int, heads: int, **more: Any) -> Fields:
    # Weights start at GPT-2's 0.02 for its width of 768, and as 1/sqrt(width) for others: at width 64,
    # 0.02 is so small that a short run is spent on growing them.
    return {
        "initializer_range": round(0.02 * (768 / hidden) ** 0.5, 3),
        "vocab_size": 256,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": False,
        **more,
    }


PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        preset.name: preset
        for preset in (
            Preset(
                "tiny",
                "a two-layer Llama: a training step in about 15 ms on one CPU core",
                LLAMA,
                _llama(64, 172, 2, 4),
            ),
            Preset(
                "small",
                "a four-layer Llama: still trains on a laptop",
                LLAMA,
                _llama(192, 512, 4, 6),
            ),
            Preset(
                "gpt2-124m",
                "GPT-2's smallest size, without dropout",
                GPT2,
                {
                    "vocab_size": 50257,
                    "n_positions": 1024,
                    "n_embd": 768,
                    "n_layer": 12,
                    "n_head": 12,
                    "resid_pdrop": 0.0,
                    "embd_pdrop": 0.0,
                    "attn_pdrop": 0.0,
                },
            ),
            Preset(
                "llama-1b",
                "Llama 3.2 1B's shapes, fresh weights",
                LLAMA,
                _llama(
                    2048,
                    8192,
                    16,
                    32,
                    vocab_size=128256,
                    num_key_value_heads=8,
                    max_position_embeddings=131072,
                    tie_word_embeddings=True,
                    rms_norm_eps=1e-5,
                    rope_parameters={
                        "rope_type": "llama3",
                        "rope_theta": 500000.0,
                        "factor": 32.0,
                        "low_freq_factor": 1.0,
                        "high_freq_factor": 4.0,
                        "original_max_position_embeddings": 8192,
                    },
                ),
            ),
        )
    }
)


def presets() -> Mapping[str, Preset]:
    """Every preset by its name, smallest first."""
    return PRESETS
