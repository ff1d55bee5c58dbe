"""Asking a model about a batch: which arguments it is called with, and what it must answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from steepest.contract import SteepestError

Facts = dict[str, Tensor | float | int]
"""What an objective says beside its loss: "tokens" read, the "weight" that the loss is a mean over (target
tokens, rows or pairs), and more means over the same weight, as numbers or detached scalars."""

Batch = Mapping[str, Any]


class Reading(NamedTuple):
    """What a model says of every token of some rows but the first, each from the tokens before it.

    logits: (B, T - 1, V).  ids: the tokens themselves, (B, T - 1).  targets: those of them that are asked
    for, bool (B, T - 1).  tokens: how many were read.  output: whatever the model returned.
    """

    logits: Tensor
    ids: Tensor
    targets: Tensor
    tokens: int
    output: Any

    @property
    def weight(self) -> int:
        """How many tokens are asked for."""
        return int(self.targets.sum())


def fields(batch: Any, kind: str, *names: str) -> tuple[Any, ...]:
    """The entries of these names; SteepestError names the first that is missing."""
    if not isinstance(batch, Mapping):
        raise SteepestError(
            f"a {kind} batch must be a mapping with {', '.join(names)}, got {type(batch).__name__}."
        )
    for name in names:
        if name not in batch:
            raise SteepestError(f"a {kind} batch must hold {', '.join(names)}; {name} is missing.")
    return tuple(batch[name] for name in names)


def read_rows(model: nn.Module, batch: Any, kind: str) -> Reading:
    """Read rows of {"ids", "mask", "targets"}, all (B, T), through a causal model.

    A first token has nothing before it and is never a target. Raises SteepestError for another shape.
    """
    ids, mask, targets = rows(batch, kind)
    output = call_causal(model, ids[:, :-1], mask[:, :-1])
    return reading(output, ids, targets, int(mask.sum()))


def rows(batch: Any, kind: str) -> tuple[Tensor, Tensor, Tensor]:
    """Checked ids, mask and targets of a batch."""
    ids, mask, targets = fields(batch, kind, "ids", "mask", "targets")
    shapes = [tuple(x.shape) for x in (ids, mask, targets)]
    if ids.dim() != 2 or ids.shape[1] < 2 or len(set(shapes)) > 1:
        raise SteepestError(
            f"ids, mask and targets of a {kind} batch must have one shape (rows, at least 2 tokens), "
            f"got {', '.join(map(str, shapes))}."
        )
    return ids, mask.bool(), targets.bool()


def reading(output: Any, ids: Tensor, targets: Tensor, tokens: int) -> Reading:
    """A model's output for ids[:, :-1] as what it says of ids[:, 1:]."""
    return Reading(logits_of(output, ids[:, :-1].shape), ids[:, 1:], targets[:, 1:], tokens, output)


def logits_of(output: Any, shape: torch.Size) -> Tensor:
    """The logits (B, T, V) in a model's output, itself a tensor or an object with `.logits`."""
    logits = getattr(output, "logits", output)
    if not isinstance(logits, Tensor) or logits.dim() != 3 or logits.shape[:2] != shape:
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise SteepestError(
            f"the model must return logits of shape {(*shape, 'vocabulary')} or an object "
            f"with such `.logits`, got {got}."
        )
    return logits


def call_causal(model: nn.Module, ids: Tensor, mask: Tensor) -> Any:
    """A causal model's output for ids (B, T) of which `mask` are real.

    Padding on the right needs no mask, because nothing real looks there: the model then takes its fastest
    path. With padding elsewhere, positions count real tokens only.
    """
    if bool((mask[:, 1:] <= mask[:, :-1]).all()):
        return model(ids)
    positions = (mask.long().cumsum(1) - 1).clamp(min=0)
    return call(model, input_ids=ids, attention_mask=mask.long(), position_ids=positions)


def call(model: nn.Module, **arguments: Tensor) -> Any:
    """The model, called by names as `transformers` has them."""
    try:
        return model(**arguments)
    except TypeError as error:
        if "unexpected keyword argument" not in str(error):
            raise
        raise SteepestError(
            f"the model does not take {', '.join(arguments)} ({error}); padded and packed batches need one "
            "that does, as those of transformers do."
        ) from error


def call_packed(model: nn.Module, ids: Tensor, segments: Tensor) -> Any:
    """A causal model's output where each of a row's segments is read as if it stood alone; both (B, T)."""
    seen, positions = block_causal(segments)
    attention = getattr(getattr(model, "config", None), "_attn_implementation", None)
    if attention not in (None, "sdpa", "eager"):
        raise SteepestError(
            f"packed documents need a model with attention sdpa or eager, this one has {attention}; "
            "load it with attn_implementation sdpa, or turn packing off."
        )
    if attention == "eager":  # adds its mask to the scores, where sdpa takes a boolean one
        dtype = next(model.parameters()).dtype
        seen = torch.zeros_like(seen, dtype=dtype).masked_fill(~seen, torch.finfo(dtype).min)
    return call(model, input_ids=ids, attention_mask=seen, position_ids=positions)


def block_causal(segments: Tensor) -> tuple[Tensor, Tensor]:
    """Who sees whom, bool (B, 1, T, T), and positions from 0 in each segment, (B, T).

    segments: int64 (B, T), the same number throughout a segment, another one in the next.
    """
    index = torch.arange(segments.shape[1], device=segments.device)
    starts = torch.ones_like(segments, dtype=torch.bool)
    starts[:, 1:] = segments[:, 1:] != segments[:, :-1]
    positions = index - torch.where(starts, index, 0).cummax(1).values
    same = segments.unsqueeze(2) == segments.unsqueeze(1)
    return (same & (index.unsqueeze(1) >= index)).unsqueeze(1), positions
