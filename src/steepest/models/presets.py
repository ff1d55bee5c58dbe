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


def _t5_parameters(c: Fields) -> int:
    d, inner = c["d_model"], c["d_kv"] * c["num_heads"]
    forward = 3 * d * c["d_ff"] + d  # gated, with its norm; each attention has a norm of its own too
    attention = 4 * d * inner + d
    layers = c["num_layers"] * (3 * attention + 2 * forward)  # encoder: self; decoder: self and cross
    buckets = 2 * c["relative_attention_num_buckets"] * c["num_heads"]
    return int(c["vocab_size"] * d + layers + buckets + 2 * d)


def _whisper_parameters(c: Fields) -> int:
    d = c["d_model"]
    convolutions = 3 * d * (c["num_mel_bins"] + d) + 2 * d
    embeddings = (c["max_source_positions"] + c["max_target_positions"] + c["vocab_size"]) * d
    attention = 4 * d * d + 3 * d + 2 * d  # keys have no bias; a norm each

    def forward(width: int) -> int:
        return 2 * d * width + width + d + 2 * d

    encoder = c["encoder_layers"] * (attention + forward(c["encoder_ffn_dim"]))
    decoder = c["decoder_layers"] * (2 * attention + forward(c["decoder_ffn_dim"]))
    return int(convolutions + embeddings + encoder + decoder + 4 * d)


@dataclass(frozen=True)
class Family:
    """An architecture in `transformers`: its module, its two classes, its exact parameter count.

    context: the field of its configuration that limits the (decoder's) sequence, None if nothing does.
    kind:    "causal", or "seq2seq": an encoder of text or of audio features, and a decoder.
    """

    module: str
    config: str
    model: str
    context: str | None
    count: Callable[[Fields], int]
    kind: str = "causal"


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
T5 = Family(
    "transformers.models.t5",
    "T5Config",
    "T5ForConditionalGeneration",
    None,  # positions are relative
    _t5_parameters,
    "seq2seq",
)
WHISPER = Family(
    "transformers.models.whisper",
    "WhisperConfig",
    "WhisperForConditionalGeneration",
    "max_target_positions",
    _whisper_parameters,
    "seq2seq",
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
    def kind(self) -> str:
        """What it is trained as: "causal" or "seq2seq"."""
        return self.family.kind

    @property
    def context_limit(self) -> int | None:
        """The longest sequence, in tokens; None if there is no limit."""
        return None if self.family.context is None else int(self.fields[self.family.context])

    def arguments(self, vocab_size: int | None = None) -> dict[str, Any]:
        """The configuration's keyword arguments, with this vocabulary if one is given."""
        return {**_COMMON, **self.fields, "vocab_size": vocab_size or self.vocab_size}

    def parameters(self, vocab_size: int | None = None) -> int:
        """How many parameters the model has; tied embeddings count once."""
        return self.family.count(self.arguments(vocab_size))


def _spread(width: int) -> float:
    """The initial weights' deviation."""
    # GPT-2's 0.02 for its width of 768, and as 1/sqrt(width) for others: at width 64, 0.02 is so small
    # that a short run is spent on growing them.
    return round(0.02 * (768 / width) ** 0.5, 3)


def _llama(hidden: int, intermediate: int, layers: int, heads: int, **more: Any) -> Fields:
    return {
        "initializer_range": _spread(hidden),
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
                "tiny-t5",
                "a T5 with two layers each side: text to text",
                T5,
                {
                    "vocab_size": 256,
                    "d_model": 64,
                    "d_kv": 16,
                    "d_ff": 172,
                    "num_layers": 2,
                    "num_heads": 4,
                    "relative_attention_num_buckets": 32,
                    "feed_forward_proj": "gated-gelu",
                    "dropout_rate": 0.0,
                    "pad_token_id": 0,
                    "decoder_start_token_id": 0,
                },
            ),
            Preset(
                "tiny-whisper",
                "a Whisper with two layers each side: 64 frames of 16 mel bands to text",
                WHISPER,
                {
                    "init_std": _spread(64),
                    "vocab_size": 256,
                    "num_mel_bins": 16,
                    "d_model": 64,
                    "encoder_layers": 2,
                    "decoder_layers": 2,
                    "encoder_attention_heads": 4,
                    "decoder_attention_heads": 4,
                    "encoder_ffn_dim": 172,
                    "decoder_ffn_dim": 172,
                    "max_source_positions": 32,
                    "max_target_positions": 256,
                    "pad_token_id": None,
                    "decoder_start_token_id": 0,
                    "begin_suppress_tokens": None,
                },
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
