"""The next token: language modelling, from pre-training to continued training."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from steepest.contract import SteepestError

Facts = dict[str, float | int]


def next_token(model: nn.Module, batch: Tensor) -> tuple[Tensor, Facts]:
    """Mean cross-entropy of every next token, in nats per token, computed in float32.

    model: token ids (B, T) to logits (B, T, V), as a tensor or as an object with `.logits`.
    batch: token ids, int64 (B, T + 1); each row gives T inputs and, one to the right, T targets.

    Returns the loss (a float32 scalar) and {"tokens": B * T}. Nothing but the ids is passed, no mask and
    no cache: a causal model then takes its fastest path. Raises SteepestError for a batch or logits of
    another shape.
    """
    if batch.dim() != 2 or batch.shape[1] < 2:
        raise SteepestError(
            f"a batch must be token ids of shape (rows, at least 2 tokens), got {tuple(batch.shape)}."
        )
    inputs, targets = batch[:, :-1], batch[:, 1:]
    output = model(inputs)
    logits = getattr(output, "logits", output)
    if not isinstance(logits, Tensor) or logits.dim() != 3 or logits.shape[:2] != inputs.shape:
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise SteepestError(
            f"the model must return logits of shape {(*inputs.shape, 'vocabulary')} or an object "
            f"with such `.logits`, got {got}."
        )
    loss = F.cross_entropy(logits.to(torch.float32).flatten(0, 1), targets.flatten())
    return loss, {"tokens": targets.numel()}
