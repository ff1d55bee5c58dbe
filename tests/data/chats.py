"""A small tokenizer of `transformers`, words and line breaks, with a chat template to choose."""

from __future__ import annotations

from functools import cache
from typing import Any

from steepest.data.tokenizer import ModelTokenizer

TURN = "<|{{ m.role }}|>\n{{ m.content }}<|end|>\n"
MARKED = "<|assistant|>\n{% generation %}{{ m.content }}<|end|>{% endgeneration %}{{ '\n' }}"
LOOP = "{% for m in messages %}BODY{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
IF_ASSISTANT = "{% if m.role == 'assistant' %}MARKED{% else %}TURN{% endif %}"

PLAIN_TURNS = LOOP.replace("BODY", TURN)
MARKED_TURNS = LOOP.replace("BODY", IF_ASSISTANT).replace("MARKED", MARKED).replace("TURN", TURN)
FORGETFUL = LOOP.replace(
    "BODY", "{% if m.role == 'assistant' and not loop.last %}<|gone|>{% else %}TURN{% endif %}"
).replace("TURN", TURN)
"""Writes an answer otherwise once another turn follows, as templates that drop thoughts do."""
STRICT = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('no system turn') }}{% endif %}" + PLAIN_TURNS
)

SPECIALS = ["<|end|>", "<|system|>", "<|user|>", "<|assistant|>", "<|gone|>"]
WORDS = [f"w{i}" for i in range(40)]


@cache
def words(template: str | None, *, start: bool = False) -> ModelTokenizer:
    """The tokenizer; with `start` it puts <|start|> before a text."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: i for i, token in enumerate(["<unk>", " ", "\n", *WORDS])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"\s"), "isolated")
    backend.decoder = decoders.Fuse()
    options: dict[str, Any] = {"eos_token": "<|end|>", "extra_special_tokens": SPECIALS[1:]}
    if start:
        options["bos_token"] = "<|start|>"
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **options)
    if start:
        number = tokenizer.convert_tokens_to_ids("<|start|>")
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="<|start|> $A", special_tokens=[("<|start|>", number)]
        )
    tokenizer.chat_template = template
    return ModelTokenizer(tokenizer)
