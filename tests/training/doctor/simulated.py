"""Simulated runs: a healthy one, and what goes wrong with one, each a change of its rows."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from steepest.schedules import make
from steepest.training.doctor import Series
from steepest.training.doctor.series import tidy

Rows = list[dict[str, Any]]
STEPS, PEAK, WARMUP = 600, 3e-3, 60


def healthy(steps: int = STEPS, seed: int = 0, schedule: str = "cosine", **options: Any) -> Rows:
    """A language model's pre-training as the metrics have it: a power law, noise, validations, layers."""
    draw = np.random.default_rng(seed)
    rate = make(schedule, PEAK, steps, warmup=WARMUP, **options)
    done, rows = 0.0, []
    for i in range(steps):
        done += rate(i) / PEAK
        mean = 1.4 + 4.2 / (1 + 0.12 * done) ** 0.6 - 0.12 * (1 - rate(i) / PEAK) * (i > WARMUP)
        row = {
            "step": i + 1,
            "attempt": i + 1,
            "loss": mean + 0.05 * draw.standard_normal(),
            "lr": rate(i),
            "grad_norm": (0.4 + 2 / (1 + 0.1 * i)) * math.exp(0.15 * draw.standard_normal()),
            "update_norm": 120 * rate(i) * math.exp(0.05 * draw.standard_normal()),
            "param_norm": 60.0 + 0.01 * i,
            "clipped": bool(draw.random() < 0.05),
            "tokens": 512 * (i + 1),
            "seconds": 0.1 * (i + 1),
            "step_ms": 100 * math.exp(0.03 * draw.standard_normal()),
        }
        if (i + 1) % (steps // 12) == 0:
            row["validation"] = mean + 0.06 + 0.002 * draw.standard_normal()
        if (i + 1) % 10 == 0:
            row["layers"] = {name: dict(LAYER) for name in ("wte", "attn", "mlp", "norm")}
        rows.append(row)
    return rows


LAYER = {"update_ratio": 1e-2, "decay_share": 0.2, "balance": 1.1, "lost": 0.0, "grad_norm": 0.2, "dead": 0.0}


def policy(steps: int = 200, seed: int = 0) -> Rows:
    """A policy gradient that goes well."""
    draw = np.random.default_rng(seed)
    rows = []
    for i in range(steps):
        part = i / steps
        row = {
            "step": i + 1,
            "loss": 0.02 * draw.standard_normal(),
            "lr": 1e-5,
            "grad_norm": 0.5 * math.exp(0.2 * draw.standard_normal()),
            "reward": 0.9 - 0.7 * math.exp(-4 * part) + 0.04 * draw.standard_normal(),
            "kl": 0.15 * part + 0.002 * abs(draw.standard_normal()),
            "kl_old": 0.004 * abs(draw.standard_normal()),
            "clip_fraction": 0.08 + 0.02 * draw.random(),
            "entropy": 1.2 - 0.5 * part + 0.02 * draw.standard_normal(),
            "zero_variance_groups": 0.2 + 0.1 * draw.random(),
        }
        if (i + 1) % 20 == 0:
            row["validation"] = 0.88 - 0.7 * math.exp(-4 * part) + 0.01 * draw.standard_normal()
        rows.append(row)
    return rows


def series(rows: Rows, events: tuple[Mapping[str, Any], ...] = (), **plan: Any) -> Series:
    return Series(tidy(rows), events, plan)


def change(rows: Rows, where: Callable[[int], bool], **columns: Callable[[int, float], float]) -> Rows:
    """Columns that are a function of the step and of what was there, at some steps."""
    out = []
    for row in rows:
        new = {
            key: f(row["step"], row[key]) for key, f in columns.items() if key in row and where(row["step"])
        }
        out.append({**row, **new})
    return out


def always(step: int) -> bool:
    return True


def with_layers(rows: Rows, **values: float) -> Rows:
    return [
        {**row, "layers": {name: {**own, **values} for name, own in row["layers"].items()}}
        if "layers" in row
        else row
        for row in rows
    ]


def write_run(folder: Path, rows: Rows, events: tuple[Mapping[str, Any], ...] = (), config: str = "") -> Path:
    """A run's folder as training leaves it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "journal.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    (folder / "config.yaml").write_text(config or f"optimizer: {{name: adamw, lr: {PEAK}}}\nsteps: {STEPS}\n")
    return folder


def trainer_state(rows: Rows, every: int = 10) -> dict[str, Any]:
    """The same run as transformers' Trainer would log it: means over `every` steps."""
    history: list[dict[str, Any]] = []
    for start in range(0, len(rows), every):
        part = rows[start : start + every]
        step = part[-1]["step"]
        line = {"epoch": step / len(rows), "step": step, "learning_rate": part[-1]["lr"]}
        line["loss"] = sum(row["loss"] for row in part) / len(part)
        line["grad_norm"] = part[-1]["grad_norm"]
        history.append(line)
        history += [
            {"epoch": step / len(rows), "step": step, "eval_loss": row["validation"], "eval_runtime": 1.2}
            for row in part
            if "validation" in row
        ]
    last = rows[-1]["step"]
    history.append({"epoch": 1.0, "step": last, "train_runtime": 60.0, "train_loss": 2.0})
    return {"global_step": last, "max_steps": last, "log_history": history, "logging_steps": every}
