"""On an accelerator: does every case agree with the reference, what does a step cost, how fast is training?

    python bench/accelerator.py parity   --out OUT/parity.json    # every rule x storage against the reference
    python bench/accelerator.py step     --out OUT/step.json      # `steepest bench step` on the device
    python bench/accelerator.py training --out OUT/training.json  # tokens a second, against torch's fused

--device cpu --quick runs the same code, small, where there is none. `accelerator.sh` runs all three.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

import steepest
from steepest.lab.bench import (
    STORAGES,
    Bench,
    Case,
    Plan,
    Workspace,
    error_line,
    facts,
    ours,
    plan_cases,
    tables,
)
from steepest.models import build_model
from steepest.rules import CARDS

SHAPES = tuple(map(torch.Size, [(257, 384), (1030, 129), (384,), (1,), (40_000,), (64, 8, 3, 3)]))
"""Matrices, vectors and a scalar whose sizes no block, row or warp divides."""

STEPS = 5
LR = 1e-3
EXACT, LOSSY = 1e-3, 2e-2
"""The most that parameters may differ after STEPS, relative to how far they moved: for what is stored without
loss, the order of roundings; for lossy storage, a code here and there that falls to the other side."""

PARITY_SECONDS, STEP_SECONDS = 180.0, 180.0
"""Seconds. Compiling for every case may take longer; the last cases are then left out, and said to be."""

QUICK = {"cards": ("adamw", "lamb", "adafactor"), "storages": ("fp32", "int8", "split24")}


def moved(case: Case, device: str, engine: str) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """The parameters before and after STEPS with gradients that are the same for every engine."""
    torch.manual_seed(0)
    params = Workspace(case.shapes, "cpu").params(case.storage.dtype)
    moved_to = [torch.nn.Parameter(p.detach().to(device)) for p in params]
    start = [p.detach().double().cpu() for p in moved_to]
    optimizer = ours(case, moved_to, engine, lr=LR)
    for step in range(STEPS):
        generator = torch.Generator().manual_seed(step)
        for p in moved_to:
            p.grad = (torch.randn(p.shape, generator=generator) * 0.01).to(device, p.dtype)
        optimizer.step()
    return start, [p.detach().double().cpu() for p in moved_to]


def parity(arguments: argparse.Namespace) -> dict[str, Any]:
    """Every rule and storage: the fused engine against the reference engine, both on the device."""
    cards, storages = (QUICK["cards"], QUICK["storages"]) if arguments.quick else (tuple(CARDS), STORAGES)
    rows, began = [], time.monotonic()
    for case in (c for c in plan_cases(cards, storages, SHAPES) if not c.small):
        row: dict[str, Any] = {"name": case.name, "bound": EXACT if case.storage.exact else LOSSY}
        if time.monotonic() - began > PARITY_SECONDS:
            rows.append({**row, "error": "left out: the time for parity was spent."})
            continue
        try:
            start, expected = moved(case, arguments.device, "reference")
            _, found = moved(case, arguments.device, arguments.engine)
        except Exception as error:
            row["error"] = error_line(error)
        else:
            far = sum(float((a - b).square().sum()) for a, b in zip(expected, start, strict=True)) ** 0.5
            off = sum(float((a - b).square().sum()) for a, b in zip(expected, found, strict=True)) ** 0.5
            row |= {"moved": far, "off": off, "relative": off / far, "holds": off <= row["bound"] * far}
        rows.append(row)
        print(row, flush=True)
    off = [
        r["name"] for r in rows if not r.get("holds", r.get("error", "").startswith(("refused", "left out")))
    ]
    counted = {"holds": sum(r.get("holds", False) for r in rows), "of": len(rows), "off": off}
    return {"cases": rows, **counted, "passed": not off}


def step(arguments: argparse.Namespace) -> dict[str, Any]:
    """The step benchmark on the device."""
    small = {"model": "tiny", "seconds": 60.0, "rounds": 3, "peers": False, **QUICK}
    large: dict[str, Any] = {"model": "gpt2-124m", "rounds": 20, "patience": 20.0}
    large |= {"seconds": STEP_SECONDS, "fresh": False}
    chosen = small if arguments.quick else large
    command = " ".join(sys.argv)
    bench = Bench(Plan(device=arguments.device, engine=arguments.engine, command=command, **chosen))
    for name in bench.run():
        print(name, flush=True)
    print(tables(bench.record))
    mine = [r for case in bench.record["cases"] for r in case["racers"] if r["by"] == "steepest"]
    return {**bench.record, "passed": not any(r.get("error", "").startswith("failed") for r in mine)}


def training(arguments: argparse.Namespace) -> dict[str, Any]:
    """Tokens a second of a whole training step, clipping included, one optimizer after another by rounds."""
    model_name, batch, context, steps, rounds = (
        ("tiny", 2, 32, 2, 2) if arguments.quick else ("gpt2-124m", 8, 512, 10, 5)
    )
    model = build_model(model_name, vocab_size=None, context=context, seed=0).to(arguments.device)
    tokens = torch.randint(0, 256, (batch, context), device=arguments.device)
    params = [p for p in model.parameters() if p.requires_grad]
    contenders = dict(_contenders(params, arguments.engine))

    def train(update: Callable[[], Any]) -> float:
        _synchronize(arguments.device)
        start = time.perf_counter()
        for _ in range(steps):
            with torch.autocast(arguments.device, torch.bfloat16):
                loss = model(input_ids=tokens, labels=tokens).loss
            loss.backward()
            update()
            for p in params:
                p.grad = None
        _synchronize(arguments.device)
        return steps * batch * context / (time.perf_counter() - start)

    speeds: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(rounds + 1):  # the first round is dropped
        for name in list(contenders)[:: 1 if turn % 2 else -1]:
            speed = train(contenders[name])
            if turn:
                speeds[name].append(round(speed, 1))
    medians = {name: statistics.median(found) for name, found in speeds.items()}
    print(medians, flush=True)
    shape = {"model": model_name, "batch": batch, "context": context, "steps": steps, "autocast": "bfloat16"}
    return {**shape, "tokens_per_second": speeds, "median": medians, "passed": True}


def _contenders(params: list[torch.nn.Parameter], engine: str) -> Iterator[tuple[str, Callable[[], Any]]]:
    own = steepest.AdamW(params, lr=1e-5, engine=engine, max_grad_norm=1.0)
    yield f"steepest {own.engine}", own.step
    packed = steepest.AdamW(params, lr=1e-5, engine=engine, max_grad_norm=1.0, state="int8")
    yield f"steepest {packed.engine}, int8 state", packed.step
    for kind in ("fused", "foreach"):
        theirs = torch.optim.AdamW(params, lr=1e-5, **{kind: True})

        def clip_and_step(theirs: torch.optim.Optimizer = theirs) -> None:
            torch.nn.utils.clip_grad_norm_(params, 1.0, foreach=True)
            theirs.step()

        yield f"clip_grad_norm_ and torch {kind}", clip_and_step


def _synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("task", choices=("parity", "step", "training"))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--engine", default="fused")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    found = {"parity": parity, "step": step, "training": training}[arguments.task](arguments)
    about = {"date": facts.today(), "machine": facts.machine(arguments.device), "versions": facts.versions()}
    arguments.out.write_text(json.dumps({"task": arguments.task, **about, **found}, indent=1) + "\n")
    return 0 if found["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
