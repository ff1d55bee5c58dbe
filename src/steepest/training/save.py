"""What a finished run leaves behind: the model and its curve."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path

from steepest.contract import SteepestError
from steepest.models import quiet
from steepest.training.files import write_atomic
from steepest.training.run import Run

TOKENIZER_FILES = ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt")
"""What makes a folder's tokenizer; it goes along with the model that was trained in its tokens."""


def save_run(run: Run, folder: Path) -> None:
    """Write `model/` (a Hugging Face folder where the model is one, else safetensors) and `run.json`.

    The model is written beside its place and moved there whole; one that was there goes last.
    """
    from safetensors import SafetensorError

    target, beside, before = folder / "model", folder / ".model.partial", folder / ".model.before"
    try:
        for leftover in (beside, before):
            shutil.rmtree(leftover, ignore_errors=True)
        beside.mkdir(parents=True)
        save_pretrained = getattr(run.model, "save_pretrained", None)
        if callable(save_pretrained):
            with quiet():
                save_pretrained(beside)
            if run.config.tokenizer == "model":
                for pattern in TOKENIZER_FILES:
                    for file in Path(run.config.model).glob(pattern):
                        shutil.copy2(file, beside)
        else:
            from safetensors.torch import save_model

            save_model(run.model, str(beside / "model.safetensors"))
        if target.exists():
            target.rename(before)
        beside.rename(target)
        shutil.rmtree(before, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise SteepestError(f"cannot save the model into {folder} ({reason}); free space there.") from error
    curve, validation = map(asdict, run.curves)
    record = {"config": run.config.model_dump(mode="json"), "curve": curve, "validation": validation}
    write_atomic(folder / "run.json", json.dumps(record, indent=1) + "\n")
