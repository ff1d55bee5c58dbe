"""The small run whose save is kept for every version of a session's facts: `fixtures/session-<version>`.

When that version is raised, the save of the old one is there already; the new one's is written by
`python tests/training/saved_fixture.py tests/training/fixtures/session-<version>`.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import nn

from steepest.models import quiet
from steepest.training import Session, parse_config
from steepest.training.checkpoint import Store
from steepest.training.journal import read_metrics

CONFIG: Mapping[str, Any] = {
    "model": "saved_fixture:narrow",
    "optimizer": {"name": "lion", "lr": 1e-3, "weight_decay": 0.1},
    "schedule": {"name": "cosine", "warmup": 1},
    "batch": 2,
    "context": 16,
    "evals": 2,
    "validation_windows": 4,
    "threads": 1,
    "seed": 5,
    "checkpoint": {"every": 1, "keep": 1, "background": False, "minutes": None},
    "health": {"every": 3},
    "stages": [
        {"name": "pretrain", "data": "synthetic:0:4000", "steps": 3},
        {"name": "finetune", "objective": "sft", "data": "tasks:copy:1:40", "steps": 4, "context": 24},
    ],
}
"""Two stages, so that a save within the second holds the result of the first."""
LAST = 5
"""The step after which the save is taken."""


def narrow(vocab_size: int) -> nn.Module:
    """Two blocks of width 8: the save is small."""
    from transformers import GPT2Config, GPT2LMHeadModel

    with quiet():
        sizes = {"n_embd": 8, "n_layer": 2, "n_head": 2, "n_positions": 24}
        ends = {"bos_token_id": None, "eos_token_id": None}
        drop = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
        return GPT2LMHeadModel(GPT2Config(vocab_size=vocab_size, **sizes, **ends, **drop, use_cache=False))


class Cut(BaseException):
    """The run stops here."""


def stop(step: int, values: Mapping[str, Any]) -> None:
    if step > LAST:
        raise Cut


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in read_metrics(folder)]


def write(folder: Path) -> None:
    """The run, stopped within its second stage; beside its files the losses of one that nobody stopped."""
    Session(parse_config(CONFIG, "a fixture"), folder).run()
    whole = losses(folder)
    shutil.rmtree(folder)
    with suppress(Cut):
        Session(parse_config(CONFIG, "a fixture"), folder, log=stop).run()
    (folder / "losses.json").write_text(json.dumps(whole) + "\n")
    store = Store(folder / "checkpoints")
    for generation in {*store.generations()} - {store.newest()}:
        shutil.rmtree(store.folder / generation)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
