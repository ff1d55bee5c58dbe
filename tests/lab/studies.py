"""Made-up studies: records as a finished comparison leaves them, without training anything."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from steepest.lab.records import write_record

PARAMETERS = 131_904
STEPS, TOKENS_PER_STEP = 200, 512
SEEDS = (101, 102, 103, 104, 105)
TUNING_SEED = 1


class Entry(NamedTuple):
    """One optimizer of a made-up study: its title, best rate, loss there, spread, cost."""

    title: str
    lr: float
    loss: float
    state_words: float
    optimizer_ms: float
    curvature: float = 0.03
    wall: int = 3
    hyper: Mapping[str, Any] = MappingProxyType({})


FIELD = {
    "adamw": Entry(
        "AdamW", 4e-3, 2.312, 2, 1.1, hyper={"betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.1}
    ),
    "sgd": Entry("SGD", 0.5, 3.405, 0, 0.4, 0.1, 2, hyper={"momentum": 0.0, "weight_decay": 0.0}),
    "momentum": Entry(
        "SGD + momentum", 0.12, 2.91, 1, 0.6, 0.07, 2, hyper={"momentum": 0.9, "nesterov": True}
    ),
    "rmsprop": Entry("RMSprop", 2e-3, 2.349, 1, 0.9, 0.04),
    "adagrad": Entry("Adagrad", 3.2e-2, 2.47, 1, 0.8),
    "adam": Entry("Adam", 4e-3, 2.3135, 2, 1.1, hyper={"betas": [0.9, 0.95]}),
    "adafactor": Entry("Adafactor", 1.6e-2, 2.336, 0.03, 2.2, hyper={"dialect": "t5x"}),
    "lamb": Entry("LAMB", 8e-3, 2.327, 2, 1.9, 0.015),
    "lars": Entry("LARS", 1.0, 2.72, 1, 1.3, 0.05),
    "lion": Entry("Lion", 5e-4, 2.3125, 1, 0.7, 0.05, 2, hyper={"betas": [0.9, 0.99], "weight_decay": 0.6}),
    "signum": Entry("Signum", 5e-4, 2.352, 1, 0.6, 0.06, 2),
}


def plan(optimizers: Iterable[str] = tuple(FIELD), **changes: Any) -> dict[str, Any]:
    config = {
        "model": "tiny",
        "data": "stdlib",
        "tokenizer": "bytes",
        "schedule": {"name": "cosine", "warmup": 20, "final": 0.1},
        "clip": 1.0,
        "batch": 8,
        "context": 64,
        "steps": STEPS,
        "threads": 1,
    }
    config |= {key: value for key, value in changes.items() if key in config and key != "data"}
    return {
        "format": 1,
        "config": config,
        "model_digest": "77ae" * 16,
        "question": {"model": "tiny", "data": "stdlib", "budget": "3m"},
        "model": "tiny",
        "data": {
            "name": "stdlib",
            "digest": "3f1c" * 16,
            "train_bytes": 11_900_000,
            "validation_bytes": 610_000,
            "facts": {"files": 799, "python": "3.11.7"},
        },
        "tokenizer": "bytes",
        "parameters": PARAMETERS,
        "baseline": "adamw",
        "optimizers": list(optimizers),
        "steps": STEPS,
        "batch": 8,
        "context": 64,
        "tokens_per_trial": STEPS * TOKENS_PER_STEP,
        "clip": 1.0,
        "schedule": {"name": "cosine", "warmup": 20, "final": 0.1},
        "tuning_seed": TUNING_SEED,
        "seeds": list(SEEDS),
        "grid_factor": 2.0,
        "versions": {"steepest": "0.1.0", "torch": "2.13.0", "python": "3.11.7"},
        "environment": {
            "cpu": "Example CPU",
            "cores": 2,
            "workers": 2,
            "threads_per_trial": 1,
            "device": "cpu",
        },
        "command": "steepest compare tiny stdlib --budget 3m",
        **changes,
    }


def trial(
    study: dict[str, Any],
    name: str,
    phase: str,
    lr: float,
    seed: int,
    *,
    diverged: bool = False,
    loss: float | None = None,
) -> dict[str, Any]:
    """A record. Its loss, unless given, is the optimizer's parabola in log lr plus what the seed does."""
    entry = FIELD[name]
    shared, own = random.Random(seed), random.Random(f"{name} {seed} {lr}")
    if loss is None:
        loss = entry.loss + entry.curvature * math.log2(lr / entry.lr) ** 2
        loss += shared.gauss(0, 0.012) + own.gauss(0, 0.0022)
    steps = list(range(0, STEPS + 1, 20))
    step_ms = 14.0 + entry.optimizer_ms + own.uniform(0, 0.4)
    shape = [math.exp(-5 * step / STEPS) * (1 - 0.5 * step / STEPS) for step in steps]
    series = {
        "step": steps,
        "tokens": [step * TOKENS_PER_STEP for step in steps],
        "seconds": [step * step_ms / 1e3 for step in steps],
        "loss": [loss + (5.6 - loss) * (s - shape[-1]) / (1 - shape[-1]) for s in shape],
    }
    if diverged:
        series = {key: [*values[:2]] for key, values in series.items()}
        series["loss"][-1] = math.nan
    return {
        "format": 1,
        "id": f"{phase}-{name}-{lr:.3g}-{seed}",
        "phase": phase,
        "optimizer": name,
        "title": entry.title,
        "hyper": {"lr": lr, **entry.hyper},
        "seed": seed,
        "status": "diverged" if diverged else "finished",
        "reason": "loss became NaN at step 20" if diverged else None,
        "config": {**study["config"], "optimizer": {"name": name, "lr": lr, **entry.hyper}, "seed": seed},
        "versions": study["versions"],
        "data": {"digest": study["data"]["digest"]},
        "model_digest": study["model_digest"],
        "routing_digest": "ab12" * 16,
        "parameters": PARAMETERS,
        "state_bytes": int(entry.state_words * 4 * PARAMETERS),
        "curve": series,
        "validation": series,
        "final": {
            "loss": None if diverged else loss,
            "bits_per_byte": None if diverged else loss / math.log(2),
            "train_seconds": series["seconds"][-1],
            "step_ms": step_ms,
            "optimizer_ms": entry.optimizer_ms,
        },
    }


def tuning(study: dict[str, Any], name: str, below: int = 2, above: int = 2) -> list[dict[str, Any]]:
    """The factor-2 sweep of one optimizer; from `wall` grid points above the best, it diverges."""
    entry = FIELD[name]
    return [
        trial(study, name, "tune", entry.lr * 2.0**k, TUNING_SEED, diverged=k >= entry.wall)
        for k in range(-below, above + 1)
    ]


def races(study: dict[str, Any], name: str, **changes: Any) -> list[dict[str, Any]]:
    return [trial(study, name, "race", FIELD[name].lr, seed, **changes) for seed in study["seeds"]]


def finished(study: dict[str, Any]) -> list[dict[str, Any]]:
    """Every trial of the plan."""
    return [record for name in study["optimizers"] for record in (*tuning(study, name), *races(study, name))]


def write(folder: Path, study: dict[str, Any], records: Iterable[dict[str, Any]]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "study.json").write_text(json.dumps(study))
    for record in records:
        write_record(folder / "trials", record)
    return folder
