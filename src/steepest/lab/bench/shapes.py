"""A model as the benchmark sees it: the shapes of its parameters. No weight is ever allocated."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from steepest.contract import SteepestError
from steepest.models import build_model

MANY_SMALL = (torch.Size([10_000]),) * 400
"""Four million elements in tensors so small that the cost of a call, not of a byte, decides."""


def shapes_of(model: str) -> tuple[torch.Size, ...]:
    """Shapes of all parameters of a model, as `meta_model` takes it; tied weights count once."""
    return tuple(p.shape for p in meta_model(model).parameters())


def meta_model(model: str) -> nn.Module:
    """A model without weights: a preset, a folder with `config.json` (or that file), or what a factory
    "package.module:factory" builds. Raises SteepestError for other names."""
    folder = Path(model).expanduser()
    folder = folder.parent if folder.name == "config.json" else folder
    with torch.device("meta"):
        if (folder / "config.json").is_file():
            return _from_config(folder)
        return build_model(model, vocab_size=None, context=1, seed=0)


def _from_config(folder: Path) -> nn.Module:
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        model: nn.Module = AutoModelForCausalLM.from_config(config)
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise SteepestError(f"cannot read a model's shapes from '{folder}': {reason}") from error
    return model
