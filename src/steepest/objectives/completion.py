"""Completions: supervised fine-tuning, of decoders and of models with an encoder for text or audio."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from steepest.contract import SteepestError
from steepest.objectives.forward import Facts, Reading, call, fields, read_rows, reading, rows
from steepest.objectives.logprobs import log_probabilities, masked_mean


def sft(model: nn.Module, batch: Any) -> tuple[Tensor, Facts]:
    """Mean cross-entropy of the target tokens, in nats per token.

    model: causal.  batch: {"ids", "mask" (real tokens), "targets" (tokens to be predicted)}, all (B, T).
    Facts: accuracy, the share of targets that have the largest logit.
    """
    return _cross_entropy(read_rows(model, batch, "completion"))


def seq2seq(model: nn.Module, batch: Any) -> tuple[Tensor, Facts]:
    """Mean cross-entropy of the decoder's target tokens given the encoder's input, in nats per token.

    batch: the decoder's {"ids", "mask", "targets"}, all (B, T), ids beginning with the decoder's start token;
    and {"inputs", "inputs_mask"}, ids and bool (B, S), or {"features"}, audio as float (B, mels, frames).
    Facts: accuracy, as for `sft`; tokens counts text on both sides.
    """
    ids, mask, targets = rows(batch, "seq2seq")
    tokens = int(mask.sum())
    if "features" in batch:
        given = {"input_features": batch["features"]}
    elif "inputs" in batch:
        inputs, inputs_mask = fields(batch, "seq2seq", "inputs", "inputs_mask")
        given = {"input_ids": inputs, "attention_mask": inputs_mask.long()}
        tokens += int(inputs_mask.sum())
    else:
        raise SteepestError(
            "a seq2seq batch must hold inputs and inputs_mask, or features; both are missing."
        )
    output = call(
        model,
        **given,
        decoder_input_ids=ids[:, :-1],
        decoder_attention_mask=mask[:, :-1].long(),
    )
    return _cross_entropy(reading(output, ids, targets, tokens))


def _cross_entropy(read: Reading) -> tuple[Tensor, Facts]:
    loss = -masked_mean(log_probabilities(read.logits, read.ids), read.targets)
    right = (read.logits.argmax(-1) == read.ids).float()
    return loss, {
        "tokens": read.tokens,
        "weight": read.weight,
        "accuracy": masked_mean(right, read.targets),
    }
