"""LoRA and DoRA on a model, off it again, and on disk."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from steepest.adapters.config import AdapterConfig
from steepest.contract import SteepestError, unknown


def add_adapter(model: nn.Module, config: AdapterConfig, seed: int) -> nn.Module:
    """The model with a fresh adapter that changes nothing yet; the model itself is changed in place.

    Everything is frozen but the adapter, `modules_to_save`, and the head of a reward or value model (its
    `body` gets the adapter). The adapter's weights depend on the seed alone, and torch's CPU generator is
    left as it was found. Raises SteepestError without peft, for names that match no module, and for a model
    that has an adapter.
    """
    return _inside(model, lambda body: _wrap(body, config, seed))


def merge(model: nn.Module) -> nn.Module:
    """The plain model with the adapter's product added to its weights, in place; trainable as before it.

    Outputs equal the adapted model's in evaluation mode, to rounding. Raises SteepestError without an
    adapter, and where the sum is not finite.
    """
    return _inside(model, _unwrap)


def save_adapter(model: nn.Module, folder: Path | str) -> None:
    """Write the adapter as peft does (`PeftModel.from_pretrained(plain model, folder)` loads it).

    Of a reward or value model the body's adapter is written, without the head.
    """

    def write(body: nn.Module) -> nn.Module:
        # not "auto": that asks the network whether the base model's vocabulary has grown
        _adapted(body).save_pretrained(str(folder), save_embedding_layers=False)
        return body

    _inside(model, write)


def _inside(model: Any, change: Callable[[nn.Module], nn.Module]) -> nn.Module:
    """The model with its body changed if it has a score or value head, else itself changed."""
    if not (hasattr(model, "body") and (hasattr(model, "score") or hasattr(model, "value_head"))):
        return change(model)
    model.body = change(model.body)
    whole: nn.Module = model
    return whole


def _wrap(model: Any, config: AdapterConfig, seed: int) -> nn.Module:
    if _has_adapter(model):
        raise SteepestError("the model has an adapter already; merge it before another is added.")
    peft = _peft()
    modules = dict(model.named_modules())
    targets = _linear(model) if config.targets == "all-linear" else config.targets
    for name in (*targets, *config.modules_to_save):
        if not any(own == name or own.endswith(f".{name}") for own in modules):
            raise unknown("module for the adapter", name, {own.rpartition(".")[2] for own in modules if own})
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    settings = peft.LoraConfig(
        r=config.r,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=sorted(targets),
        modules_to_save=list(config.modules_to_save) or None,
        use_dora=config.kind == "dora",
        fan_in_fan_out=any(type(module).__name__ == "Conv1D" for module in modules.values()),
    )
    training = model.training
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers by a name that it has renamed
        torch.default_generator.manual_seed(seed)
        try:
            adapted = peft.get_peft_model(model, settings)
        except ValueError as error:
            raise SteepestError(f"peft cannot adapt this model ({_first_line(error)}).") from error
    adapted.frozen_before = frozen
    whole: nn.Module = adapted.train(training)
    return whole


def _unwrap(model: nn.Module) -> nn.Module:
    adapted = _adapted(model)
    frozen = adapted.frozen_before
    try:
        plain: nn.Module = adapted.merge_and_unload(progressbar=False, safe_merge=True)
    except ValueError as error:
        raise SteepestError(f"the adapter cannot be merged ({_first_line(error)}).") from error
    for name, p in plain.named_parameters():
        p.requires_grad_(name not in frozen)
    return plain


def _linear(model: Any) -> Iterable[str]:
    """Every linear layer but the vocabulary's, by its whole name."""
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    found = [
        name
        for name, module in model.named_modules()
        if name
        and module is not head
        and (isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D")
    ]
    if not found:
        raise SteepestError(f"{type(model).__name__} has no linear layer to adapt; train it without adapter.")
    return found


def _adapted(model: Any) -> Any:
    if not _has_adapter(model):
        raise SteepestError("the model has no adapter; add one first.")
    return model


def _has_adapter(model: nn.Module) -> bool:
    return hasattr(model, "peft_config")


def _peft() -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of libraries that it imports
            return importlib.import_module("peft")
    except ImportError as error:
        raise SteepestError(
            f"adapters need peft, which cannot be imported ({_first_line(error)}); "
            "`pip install peft` installs it."
        ) from error


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
