"""The next token: language modelling, from pre-training to continued training."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from steepest.contract import SteepestError
from steepest.objectives.forward import Batch, Facts, call_packed, fields, logits_of, reading
from steepest.objectives.logprobs import log_probabilities, masked_mean


def next_token(model: nn.Module, batch: Tensor | Batch) -> tuple[Tensor, Facts]:
    """Mean cross-entropy of every next token, in nats per token, computed in float32.

    model: token ids (B, T) to logits (B, T, V), as a tensor or as an object with `.logits`.
    batch: token ids, int64 (B, T + 1); each row gives T inputs and, one to the right, T targets. Or documents
           packed into such rows: {"ids", "segments"}, both (B, T + 1), where segments count the documents
           of a row and are -1 for padding; no document sees or predicts another.

    Returns the loss (a float32 scalar) and {"tokens", "weight"}: inputs read, and targets. For whole rows
    nothing but the ids is passed, no mask and no cache: a causal model then takes its fastest path. Raises
    SteepestError for a batch or logits of another shape.
    """
    if not isinstance(batch, Tensor):
        return _packed(model, batch)
    _check(batch)
    inputs, targets = batch[:, :-1], batch[:, 1:]
    logits = logits_of(model(inputs), inputs.shape)
    loss = F.cross_entropy(logits.to(torch.float32).flatten(0, 1), targets.flatten())
    return loss, {"tokens": targets.numel(), "weight": targets.numel()}


def _packed(model: nn.Module, batch: Any) -> tuple[Tensor, Facts]:
    ids, segments = fields(batch, "packed", "ids", "segments")
    _check(ids)
    if segments.shape != ids.shape:
        raise SteepestError(
            f"ids and segments must have one shape, got {tuple(ids.shape)} and {tuple(segments.shape)}."
        )
    targets = segments >= 0
    targets[:, 1:] &= segments[:, 1:] == segments[:, :-1]
    output = call_packed(model, ids[:, :-1], segments[:, :-1])
    read = reading(output, ids, targets, int((segments[:, :-1] >= 0).sum()))
    loss = -masked_mean(log_probabilities(read.logits, read.ids), read.targets)
    return loss, {"tokens": read.tokens, "weight": read.weight}


def _check(ids: Tensor) -> None:
    if ids.dim() != 2 or ids.shape[1] < 2:
        raise SteepestError(
            f"a batch must be token ids of shape (rows, at least 2 tokens), got {tuple(ids.shape)}."
        )
