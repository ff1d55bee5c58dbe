"""What a finished run leaves behind: its models, and its curves."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from steepest.contract import SteepestError
from steepest.models import quiet
from steepest.training.config import RunConfig
from steepest.training.files import write_atomic
from steepest.training.run import Run

TOKENIZER_FILES = ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt")
"""What makes a folder's tokenizer; it goes along with the model that was trained in its tokens."""


def save_model(model: nn.Module, config: RunConfig, target: Path) -> None:
    """Write a model to `target`: a Hugging Face folder where the model is one, else safetensors.

    It is written beside its place and moved there whole; one that was there goes last.
    """
    from safetensors import SafetensorError

    beside, before = (target.with_name(f".{target.name}.{kind}") for kind in ("partial", "before"))
    try:
        for leftover in (beside, before):
            shutil.rmtree(leftover, ignore_errors=True)
        beside.mkdir(parents=True)
        save_pretrained = getattr(model, "save_pretrained", None)
        if callable(save_pretrained):
            with quiet():
                save_pretrained(beside)
            if config.tokenizer == "model":
                for pattern in TOKENIZER_FILES:
                    for file in Path(config.model).glob(pattern):
                        shutil.copy2(file, beside)
        else:
            from safetensors.torch import save_model

            save_model(model, str(beside / "model.safetensors"))
        if target.exists():
            target.rename(before)
        beside.rename(target)
        shutil.rmtree(before, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise SteepestError(
            f"cannot save the model into {target.parent} ({reason}); free space there."
        ) from error


def save_record(config: RunConfig, stages: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """Write `run.json`: the config, and the curves of every stage; of the last one at the top as well."""
    last = stages[-1]
    record = {
        "config": config.model_dump(mode="json"),
        "curve": last["curve"],
        "validation": last["validation"],
        "stages": list(stages),
    }
    write_atomic(folder / "run.json", json.dumps(record, indent=1) + "\n")


def save_run(run: Run, folder: Path) -> None:
    """Write `model/` and `run.json` of a run that had one stage and no folder."""
    save_model(run.model, run.config, folder / "model")
    curve, validation = map(asdict, run.curves)
    save_record(run.config, [{"curve": curve, "validation": validation}], folder)
