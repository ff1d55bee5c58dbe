"""Trials a minute: this lab's workers against transformers' Trainer running the same trials in turn.

    python bench/trials.py --out bench/results/trials.json

The same model, data, batch size, number of steps and number of validations; both are timed from a warm
start (libraries imported, data read). The Trainer uses both cores for one trial at a time, the lab one
core for each of two trials.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from steepest.data import Batches, seed_for, validation_batches
from steepest.lab import Pool
from steepest.lab.trial import answer, versions
from steepest.models import build_model
from steepest.training import RunConfig
from steepest.training.text import text_of

RATES = (1e-3, 2e-3, 4e-3, 8e-3)


def config(lr: float, steps: int) -> RunConfig:
    return RunConfig(optimizer={"name": "adamw", "lr": lr, "weight_decay": 0.1}, steps=steps, threads=1)


def ours(steps: int, workers: int, cache: str) -> tuple[float, list[float]]:
    """Seconds for all trials in the lab's pool, and their final losses."""

    def job(lr: float, length: int) -> tuple[str, dict[str, Any]]:
        whole = config(lr, length).model_dump(mode="json")
        return f"{lr:g}", {"task": "trial", "phase": "tune", "config": whole, "cache": cache}

    with Pool(answer, workers) as pool:
        for length, rates in ((2, RATES[:workers]), (steps, RATES)):  # the first round warms the workers
            jobs = [[job(lr, length) for lr in rates]]
            start = time.perf_counter()
            results = dict(pool.run(lambda jobs=jobs: jobs.pop() if jobs else []))
            seconds = time.perf_counter() - start
    return seconds, [results[f"{lr:g}"]["final"]["loss"] for lr in RATES]


def theirs(steps: int) -> tuple[float, list[float]]:
    """Seconds for the same trials one after another through transformers.Trainer, and their losses."""
    from transformers import Trainer, TrainingArguments

    torch.set_num_threads(os.cpu_count() or 1)
    plan = config(RATES[0], steps)
    text = text_of(plan)
    batches = Batches(text.train, batch=plan.batch, length=plan.context, seed=seed_for(plan.seed, "data"))
    train = [row[:-1] for step in range(steps) for row in batches.at(step)]
    held_out = validation_batches(
        text.validation, batch=32, length=plan.context, limit=plan.validation_windows
    )
    held = [row[:-1] for batch in held_out for row in batch]

    def dataset(rows: list[torch.Tensor]) -> list[dict[str, torch.Tensor]]:
        return [{"input_ids": row, "labels": row} for row in rows]

    losses = []
    start = time.perf_counter()
    for lr in RATES:
        model = build_model(plan.model, vocab_size=256, context=plan.context, seed=seed_for(0, "init"))
        with tempfile.TemporaryDirectory() as folder:
            trainer = Trainer(
                model=model,
                args=TrainingArguments(
                    output_dir=folder,
                    per_device_train_batch_size=plan.batch,
                    per_device_eval_batch_size=32,
                    max_steps=steps,
                    learning_rate=lr,
                    weight_decay=0.1,
                    lr_scheduler_type="cosine",
                    warmup_steps=round(0.1 * steps),
                    eval_strategy="steps",
                    eval_steps=steps // plan.evals,
                    save_strategy="no",
                    logging_strategy="no",
                    report_to="none",
                    use_cpu=True,
                    disable_tqdm=True,
                ),
                train_dataset=dataset(train),
                eval_dataset=dataset(held),
            )
            trainer.train()
            losses.append(trainer.evaluate()["eval_loss"])
    return time.perf_counter() - start, losses


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=160)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    workers = len(os.sched_getaffinity(0))
    rounds = []
    for _ in range(arguments.rounds):
        with tempfile.TemporaryDirectory() as cache:
            lab, lab_losses = ours(arguments.steps, workers, cache)
        trainer, trainer_losses = theirs(arguments.steps)
        rounds.append({"lab_seconds": lab, "trainer_seconds": trainer, "ratio": trainer / lab})
        print(rounds[-1], flush=True)
    ratios = sorted(r["ratio"] for r in rounds)
    lab = sorted(r["lab_seconds"] for r in rounds)[len(rounds) // 2]
    record = {
        "command": f"python bench/trials.py --steps {arguments.steps} --rounds {arguments.rounds}",
        "versions": versions(),
        "cores": workers,
        "trials": len(RATES),
        "steps": arguments.steps,
        "rounds": rounds,
        "lab_trials_per_minute": 60 * len(RATES) / lab,
        "median_ratio": ratios[len(ratios) // 2],
        "losses": {"lab": lab_losses, "trainer": trainer_losses},
    }
    print(json.dumps(record, indent=1))
    if arguments.out:
        arguments.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
