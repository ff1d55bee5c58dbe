"""What can be asked of a model, whoever wrote it."""

from __future__ import annotations

from typing import Any

from torch import nn

_CONTEXT_NAMES = (
    "max_position_embeddings",
    "n_positions",
    "max_target_positions",
    "block_size",
    "max_seq_len",
)


def _config(model: nn.Module) -> Any:
    config: Any = getattr(model, "config", None)
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def context_limit(model: nn.Module) -> int | None:
    """The longest sequence the model takes, in tokens; None where its config does not say."""
    found = (getattr(_config(model), name, None) for name in _CONTEXT_NAMES)
    return next((limit for limit in found if isinstance(limit, int)), None)


def vocabulary(model: nn.Module) -> int | None:
    """How many tokens the model knows: its config's `vocab_size`; None where there is none."""
    size = getattr(_config(model), "vocab_size", None)
    return size if isinstance(size, int) else None


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that training changes, by name; a tied one stands under its first name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def describe_model(model: nn.Module) -> dict[str, Any]:
    """The model in numbers; a tied parameter counts once.

    Keys: class, parameters, trainable (elements), bytes (of the parameters), vocab_size and
    context_limit (tokens, None if unknown).
    """
    parameters = list(model.parameters())
    return {
        "class": type(model).__name__,
        "parameters": sum(p.numel() for p in parameters),
        "trainable": sum(p.numel() for p in parameters if p.requires_grad),
        "bytes": sum(p.numel() * p.element_size() for p in parameters),
        "vocab_size": vocabulary(model),
        "context_limit": context_limit(model),
    }
