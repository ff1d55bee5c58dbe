"""One trial: a config in, one self-contained record out. Runs in a worker process."""

from __future__ import annotations

import hashlib
import json
import platform
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch

from steepest.contract import SteepestError
from steepest.lab.records import FORMAT
from steepest.models import build_model
from steepest.rules import find_card
from steepest.training import RunConfig, prepare, run

Phase = Literal["tune", "race"]


@lru_cache(maxsize=1)
def versions() -> dict[str, str]:
    """What the numbers depend on beside the config."""
    from importlib.metadata import version

    names = ("steepest", "torch", "transformers", "tokenizers", "numpy")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


@lru_cache(maxsize=2)
def model_digest(model: str, vocabulary: int, context: int) -> str:
    """A hash of the model as seed 0 builds it: a folder whose weights were changed, or a module whose code
    was, is another model under the same name."""
    built = build_model(model, vocab_size=vocabulary, context=context, seed=0)
    whole = hashlib.sha256()
    for name, value in built.state_dict().items():
        whole.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        whole.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return whole.hexdigest()


def trial_id(phase: Phase, config: RunConfig, data: str, model: str) -> str:
    """A name that is the same exactly when the trial is: phase, optimizer, rate, seed, and a hash of
    everything else that its numbers depend on, the digests of data and model among it."""
    whole = json.dumps([config.model_dump(mode="json"), data, model, versions()], sort_keys=True)
    short = hashlib.sha256(whole.encode()).hexdigest()[:10]
    return f"{phase}-{config.optimizer['name']}-lr{config.optimizer['lr']:g}-seed{config.seed}-{short}"


def run_trial(*, phase: Phase, config: dict[str, Any], cache: str) -> dict[str, Any]:
    """Train as the config says and return the record; a run that diverges is a record like any other."""
    parsed = RunConfig(**config)
    done = run(parsed, cache=Path(cache))
    card = find_card(parsed.optimizer["name"])
    loss, trained = done.final_loss, done.trained
    curve, validation = map(asdict, done.curves)
    corpus = done.text.corpus
    weights = model_digest(parsed.model, done.text.tokenizer.vocab_size, parsed.context)
    return {
        "format": FORMAT,
        "id": trial_id(phase, parsed, corpus.digest, weights),
        "phase": phase,
        "optimizer": card.name,
        "title": card.title,
        "hyper": {"lr": parsed.optimizer["lr"], **parsed.hyper},
        "seed": parsed.seed,
        "status": "diverged" if trained is None else "finished",
        "reason": done.reason,
        "config": parsed.model_dump(mode="json"),
        "versions": versions(),
        "data": {"name": corpus.name, "digest": corpus.digest},
        "model_digest": weights,
        "routing_digest": done.optimizer.routing_digest(),
        "parameters": sum(p.numel() for p in done.model.parameters()),
        "state_bytes": done.optimizer.state_bytes(),
        "curve": curve,
        "validation": validation,
        "final": {
            "loss": loss,
            "bits_per_byte": None if loss is None else done.text.bits_per_byte(loss),
            "train_seconds": trained and trained.curve.seconds[-1],
            "step_ms": trained and trained.step_ms,
            "optimizer_ms": trained and trained.optimizer_ms,
        },
    }


def probe(*, config: dict[str, Any], cache: str) -> dict[str, Any]:
    """What a plan needs to know: the data's digest and facts, the model's size, and seconds a step.
    Trains a few steps and keeps nothing."""
    parsed = RunConfig(**config)
    built = prepare(parsed, Path(cache))
    short = run(parsed, cache=Path(cache))
    if short.trained is None:
        raise SteepestError(f"a first try of {parsed.steps} steps failed: {short.reason}.")
    corpus = built.text.corpus
    return {
        "data": {
            "name": corpus.name,
            "digest": corpus.digest,
            "train_bytes": len(corpus.train),
            "validation_bytes": len(corpus.validation),
            "facts": corpus.facts,
            "train_tokens": len(built.text.train),
        },
        "parameters": sum(p.numel() for p in built.model.parameters()),
        "model_digest": model_digest(parsed.model, built.text.tokenizer.vocab_size, parsed.context),
        "seconds_per_step": short.trained.step_ms / 1e3,
    }


def answer(*, task: str, **arguments: Any) -> dict[str, Any]:
    """What a worker runs: a probe or a trial."""
    return probe(**arguments) if task == "probe" else run_trial(**arguments)
