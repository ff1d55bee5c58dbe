"""Does the lab find what is known? Learning-rate sweeps on the embedded text, long enough to tell.

    python bench/known_facts.py --seeds 2 --out bench/results/known_facts.json
    python bench/known_facts.py --study long --seeds 1 --out bench/results/known_facts_long.json

Published: Lion's best learning rate is about 1/4 to 1/8 of AdamW's (arXiv:2302.06675; Marin's sweeps), sign
descent's lies as low; SGD trails AdamW on a language model; AdamW's loss over log learning rate is a basin
with a wall. Each optimizer is swept on a factor-2 grid with paired seeds. "wide" covers both sides of every
basin; "long" looks at two rules after seven times the tokens, for the ratio of the rates moves with them.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import tempfile
import time
from pathlib import Path
from statistics import mean
from typing import Any

from steepest.lab import Pool
from steepest.lab.statistics import basin, vertex
from steepest.lab.trial import answer, versions
from steepest.rules import find_card
from steepest.training import RunConfig

# Rates are powers of two times 1e-3.
STUDIES: dict[str, dict[str, Any]] = {
    "wide": {
        "steps": 600,
        "batch": 16,
        "grids": {
            "adamw": range(-2, 7),
            "lion": range(-5, 3),
            "signum": range(-5, 3),
            "momentum": range(1, 10),
            "sgd": range(5, 13),
        },
    },
    "long": {
        "steps": 2000,
        "batch": 32,
        "grids": {"adamw": range(2, 6), "lion": range(0, 4)},
    },
}
SEEDS = (1, 2, 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--study", choices=list(STUDIES), default="wide")
    parser.add_argument("--seeds", type=int, default=len(SEEDS))
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    study = STUDIES[arguments.study]
    jobs = []
    for name, grid in study["grids"].items():
        card = find_card(name)
        for k in grid:
            for seed in SEEDS[: arguments.seeds]:
                optimizer = {"name": name, "lr": 1e-3 * 2.0**k, **card.settings, **card.lab}
                config = RunConfig(
                    optimizer=optimizer, steps=study["steps"], batch=study["batch"], seed=seed, threads=1
                )
                jobs.append((f"{name} {k} {seed}", config.model_dump(mode="json")))
    workers, start = len(os.sched_getaffinity(0)), time.perf_counter()
    with tempfile.TemporaryDirectory() as cache, Pool(answer, workers) as pool:
        work = [[(key, {"task": "trial", "phase": "tune", "config": c, "cache": cache}) for key, c in jobs]]
        losses: dict[str, float | None] = {}
        for key, record in pool.run(lambda: work.pop() if work else []):
            losses[key] = record["final"]["loss"]
            spent = time.perf_counter() - start
            left = spent / len(losses) * (len(jobs) - len(losses))
            print(f"{key}: {losses[key]}  ({len(losses)} of {len(jobs)}, {left:.0f} s left)", flush=True)
    found = {
        name: summary(name, grid, losses, SEEDS[: arguments.seeds]) for name, grid in study["grids"].items()
    }
    record = {
        "command": f"python bench/known_facts.py --study {arguments.study} --seeds {arguments.seeds}",
        "versions": versions(),
        "model": "tiny",
        "data": "stdlib",
        "steps": study["steps"],
        "batch": study["batch"],
        "tokens_per_trial": study["steps"] * study["batch"] * 64,
        "sweeps": found,
        "facts": facts(found),
    }
    print(json.dumps(record["facts"], indent=1))
    if arguments.out:
        arguments.out.write_text(json.dumps(record, indent=1) + "\n")


def summary(
    name: str, grid: range, losses: dict[str, float | None], seeds: tuple[int, ...]
) -> dict[str, Any]:
    """A sweep: mean loss at each rate (None where a seed diverged), its best, its basin, its vertex."""
    points: dict[float, float | None] = {}
    for k in grid:
        values = [losses[f"{name} {k} {seed}"] for seed in seeds]
        whole = [v for v in values if v is not None]
        points[1e-3 * 2.0**k] = mean(whole) if len(whole) == len(values) else None
    best = min((v, lr) for lr, v in points.items() if v is not None)
    width = basin(points, tolerance=0.02)
    return {
        "loss": {f"{lr:g}": v for lr, v in points.items()},
        "best_lr": best[1],
        "best_loss": best[0],
        "vertex_lr": vertex(points),
        "basin_factor_within_0.02": width.factor if width else None,
    }


def facts(found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The published facts as numbers."""
    base = found["adamw"]
    out: dict[str, Any] = {}
    for name, sweep in found.items():
        if name == "adamw":
            continue
        out[f"{name}_lr_over_adamw"] = sweep["best_lr"] / base["best_lr"]
        if sweep["vertex_lr"] and base["vertex_lr"]:
            out[f"{name}_vertex_over_adamw"] = sweep["vertex_lr"] / base["vertex_lr"]
        out[f"{name}_loss_minus_adamw"] = sweep["best_loss"] - base["best_loss"]
    rates = {float(lr): v for lr, v in base["loss"].items()}
    best = math.log2(base["best_lr"])
    for step in (-2, -1, 1, 2, 3):
        lr = next((r for r in rates if abs(math.log2(r) - best - step) < 0.01), None)
        if lr is not None:
            value = rates[lr]
            out[f"adamw_loss_at_lr_x{2.0**step:g}"] = None if value is None else value - base["best_loss"]
    return out


if __name__ == "__main__":
    main()
