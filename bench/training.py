"""Steps a second of `steepest train` against transformers' Trainer: same model, rows, optimizer and rate.

    python bench/training.py --out bench/results/training.json

Interleaved, one after another in one process. A time is that from the end of the twentieth step to the end of
the last but one (ours validates in the last), with everything that happens between: journal and metrics,
health, the guard; what the Trainer logs. Neither saves there. "bare" is ours without health.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from steepest.data import Batches, seed_for
from steepest.lab.bench.facts import machine, today, versions
from steepest.models import build_model
from steepest.training import RunConfig, Session, write_atomic
from steepest.training.text import text_of

FIRST = 20
"""Steps that are not timed; in one of them ours saves a generation, before the highest rate."""


def config(model: str, steps: int, health: int) -> RunConfig:
    return RunConfig(
        model=model,
        optimizer={"name": "adamw", "lr": 1e-3, "weight_decay": 0.1},
        schedule={"name": "cosine", "warmup": 0.1},
        steps=steps,
        batch=8,
        context=64,
        evals=1,
        health={"every": health},
        checkpoint={"minutes": None},
    )


def ours(model: str, steps: int, health: int) -> float:
    """Milliseconds a step of a run as `steepest train` makes it."""
    times: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        Session(
            config(model, steps, health),
            Path(folder),
            log=lambda step, values: times.append(time.perf_counter()),
        ).run()
    return per_step(times)


def per_step(times: list[float]) -> float:
    """Milliseconds a step, from the ends of all steps."""
    return (times[-2] - times[FIRST - 1]) / (len(times) - 1 - FIRST) * 1e3


def theirs(model: str, steps: int) -> float:
    """The same through the Trainer, with its own AdamW (torch's, fused)."""
    from transformers import Trainer, TrainerCallback, TrainingArguments

    plan, times = config(model, steps, 0), []
    text = text_of(plan)
    batches = Batches(text.train, batch=plan.batch, length=plan.context, seed=seed_for(plan.seed, "data"))
    rows = [{"input_ids": row[:-1], "labels": row[:-1]} for step in range(steps) for row in batches.at(step)]

    class Clock(TrainerCallback):
        def on_step_end(self, *given: Any, **named: Any) -> None:
            times.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder:
        Trainer(
            model=build_model(model, vocab_size=256, context=plan.context, seed=seed_for(0, "init")),
            args=TrainingArguments(
                output_dir=folder,
                per_device_train_batch_size=plan.batch,
                max_steps=steps,
                learning_rate=1e-3,
                weight_decay=0.1,
                lr_scheduler_type="cosine",
                warmup_steps=round(0.1 * steps),
                save_strategy="no",
                logging_steps=10,
                report_to="none",
                use_cpu=True,
                disable_tqdm=True,
            ),
            train_dataset=rows,
            callbacks=[Clock()],
        ).train()
    return per_step(times)


def by_round(a: list[float], b: list[float]) -> float:
    """How much longer a took than b: the median over rounds, for the machine changes between them."""
    return statistics.median(x / y for x, y in zip(a, b, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description="Steps a second, ours and the Trainer's.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, nargs=2, default=[130, 50], help="for tiny, for small")
    parser.add_argument("--threads", type=int, help="torch's; its own choice if left out")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads or torch.get_num_threads())
    cases = {}
    for model, steps in zip(("tiny", "small"), arguments.steps, strict=True):
        racers: dict[str, Callable[[], float]] = {
            "ours": lambda m=model, s=steps: ours(m, s, 10),
            "bare": lambda m=model, s=steps: ours(m, s, 0),
            "trainer": lambda m=model, s=steps: theirs(m, s),
        }
        found: dict[str, list[float]] = {name: [] for name in racers}
        for turn in range(arguments.rounds):
            names = list(racers)[:: 1 if turn % 2 else -1]
            for name in names:
                found[name].append(racers[name]())
        cases[model] = {
            "steps": steps,
            "ms_a_step": found,
            "median_ms": {name: statistics.median(values) for name, values in found.items()},
            "times_the_trainer": by_round(found["trainer"], found["ours"]),
            "health_share": 1 - by_round(found["bare"], found["ours"]),
        }
        print(model, cases[model], flush=True)
    record = {
        "command": shlex.join(["python", *sys.argv]),
        "date": today(),
        "machine": machine("cpu"),
        "threads": torch.get_num_threads(),
        "versions": versions(),
        "cases": cases,
    }
    if arguments.out:
        write_atomic(arguments.out, json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
