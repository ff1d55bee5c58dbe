"""Heads that read a language model's last hidden states: a score for a sequence, a value for every token."""

from __future__ import annotations

import copy
import importlib
import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from steepest.contract import SteepestError


class Headed(nn.Module):
    """A model (`body`) with a head of one output on its hidden states.

    An adapter goes on the body; the head is trained whole beside it. Raises SteepestError for a model that
    gives no hidden states.
    """

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body
        trunk(body)

    @property
    def config(self) -> Any:
        """The body's configuration."""
        return self.body.config


class RewardModel(Headed):
    """One score a sequence, read at its last token: what Bradley-Terry training fits (arXiv:2203.02155).

    backbone: a causal `transformers` model, plain or with an adapter; its vocabulary head is dropped if it
              is plain. A sequence classifier with one label brings its own score layer.
    """

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__(backbone if is_adapted(backbone) else trunk(backbone))
        own = getattr(backbone, "score", None)
        if isinstance(own, nn.Linear):
            if own.out_features != 1:
                raise SteepestError(
                    f"the classifier has {own.out_features} labels and a reward model has one score; "
                    "give a causal model, or a classifier with one label."
                )
            self.score = own
        else:
            # 1 / width, not its root: scores then start near zero at every width
            self.score = _linear(self.body, bias=False)
            nn.init.normal_(self.score.weight, std=1 / self.score.in_features)

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """Scores, float32 (B,), of ids (B, T); mask, bool (B, T): the real tokens, padded on either side."""
        inner = trunk(self.body)
        if mask is None:
            return _read(self.score, inner(input_ids=ids).last_hidden_state[:, -1])
        given = {"attention_mask": mask}
        if "position_ids" in inspect.signature(inner.forward).parameters:
            given["position_ids"] = positions(mask)
        hidden = inner(input_ids=ids, **given).last_hidden_state
        ends = (mask * torch.arange(mask.shape[1], device=mask.device)).amax(1)
        return _read(self.score, hidden[torch.arange(len(ends), device=mask.device), ends])

    def save_pretrained(self, folder: Path | str) -> None:
        """Write a `transformers` sequence classifier with one label, which `from_pretrained` loads."""
        if is_adapted(self.body):
            raise SteepestError("the reward model still has its adapter; merge it before saving the whole.")
        auto: Any = importlib.import_module("transformers").AutoModelForSequenceClassification
        config = copy.deepcopy(self.config)
        config.num_labels = 1
        with torch.device("meta"):
            whole = auto.from_config(config)
        setattr(whole, whole.base_model_prefix, self.body)
        whole.score = self.score
        whole.save_pretrained(folder)


@dataclass(frozen=True)
class Valued:
    """What a `ValuedModel` returns: logits (B, T, V), and float32 values (B, T)."""

    logits: Tensor
    values: Tensor


class ValuedModel(Headed):
    """A policy with a value for every token, one forward pass for both (PPO's actor and critic).

    The value head starts at zero, so that early advantages are the rewards themselves.
    """

    def __init__(self, policy: nn.Module) -> None:
        super().__init__(policy)
        self.value_head = _linear(policy, bias=True)
        nn.init.zeros_(self.value_head.weight)
        nn.init.zeros_(self.value_head.bias)

    def forward(self, input_ids: Tensor, **given: Any) -> Valued:
        """input_ids (B, T), and whatever the policy takes besides, by name."""
        output = self.body(input_ids=input_ids, output_hidden_states=True, **given)
        hidden = getattr(output, "hidden_states", None)
        if not hidden:
            raise _no_hidden_states(self.body)
        return Valued(output.logits, _read(self.value_head, hidden[-1]))

    def save_pretrained(self, folder: Path | str) -> None:
        """Write the policy alone, as it is used; the value head is of use in training only."""
        policy: Any = self.body
        policy.save_pretrained(folder)


def is_adapted(model: nn.Module) -> bool:
    """Whether the model is inside peft's wrapper."""
    return hasattr(model, "get_base_model")


def trunk(model: Any) -> nn.Module:
    """The model without its vocabulary head: what gives `.last_hidden_state`. Adapters stay in it."""
    inner = model.get_base_model() if is_adapted(model) else model
    base, config = getattr(inner, "base_model", None), getattr(inner, "config", None)
    causal = hasattr(config, "hidden_size") and not getattr(config, "is_encoder_decoder", False)
    if not isinstance(base, nn.Module) or not causal:
        raise _no_hidden_states(model)
    return base


def positions(mask: Tensor) -> Tensor:
    """Position ids (B, T) of rows padded on either side: real tokens count from 0."""
    return (mask.long().cumsum(-1) - 1).clamp(min=0)


def _linear(model: nn.Module, bias: bool) -> nn.Linear:
    """One output on the model's hidden states, where the model is."""
    inner: Any = trunk(model)
    return nn.Linear(inner.config.hidden_size, 1, bias=bias, device=next(inner.parameters()).device)


def _read(head: nn.Linear, hidden: Tensor) -> Tensor:
    """The head's output without its last dimension, in float32: bfloat16 cannot tell scores apart."""
    bias = None if head.bias is None else head.bias.float()
    with torch.autocast(hidden.device.type, enabled=False):
        return nn.functional.linear(hidden.float(), head.weight.float(), bias).squeeze(-1)


def _no_hidden_states(model: nn.Module) -> SteepestError:
    return SteepestError(
        f"{type(model).__name__} gives no hidden states for a score or value head to read; "
        "use a causal transformers model."
    )
