"""The whole benchmark: case after case raced, then what needs fresh processes; one record of it all."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from steepest.contract import SteepestError
from steepest.engines import find_engine
from steepest.lab.bench import facts
from steepest.lab.bench.cases import FP32, STORAGES, Case, plan_cases
from steepest.lab.bench.field import Workspace, racers
from steepest.lab.bench.fresh import Job, attempt, first_steps, peak_memory
from steepest.lab.bench.race import error_line, race
from steepest.lab.bench.shapes import shapes_of
from steepest.lab.bench.traffic import state_bytes, traffic
from steepest.rules import CARDS

FORMAT = 1
FRESH_SECONDS = 12.0
"""About what a fresh process, or the two of a first step, take; a guess for sharing out the budget."""

SPENT = "left out: the time given was spent; give more with --budget."


@dataclass(frozen=True)
class Plan:
    """What to measure, and how long.

    model:    a preset, a folder with config.json, or "package.module:factory"; only its shapes count.
    cards:    optimizers by name.          storages: see `parse_storage`.
    rounds:   timed rounds a case.         seconds:  for everything together, about.
    patience: seconds that anybody's first step may take (a peer may compile).
    fresh:    also measure first steps and peak memory, in fresh processes.
    """

    model: str = "gpt2-124m"
    cards: tuple[str, ...] = tuple(CARDS)
    storages: tuple[str, ...] = STORAGES
    peers: bool = True
    rounds: int = 15
    seconds: float = 1800.0
    patience: float = 120.0
    threads: int | None = None
    device: str = "cpu"
    engine: str | None = None
    fresh: bool = True
    command: str = ""


class Bench:
    """One run of a plan. `run` yields the name of what comes next; `record` grows as it goes."""

    def __init__(self, plan: Plan) -> None:
        if plan.device not in ("cpu", "cuda"):
            raise SteepestError(f"device {plan.device!r} is not one of 'cpu', 'cuda'.")
        if plan.device == "cuda" and not torch.cuda.is_available():
            raise SteepestError("there is no CUDA device here; leave --device out to measure on the CPU.")
        for name, least in (("rounds", 1), ("seconds", 0), ("threads", 1)):
            value = getattr(plan, name)
            if value is not None and value < least:
                raise SteepestError(f"{name}={value!r} must be at least {least}.")
        find_engine(plan.engine)
        self.plan = plan
        self.shapes = shapes_of(plan.model)
        self.cases = plan_cases(plan.cards, plan.storages, self.shapes)
        self.alone = [case for case in self.cases if plan.fresh and _measured_alone(case)]
        self.record: dict[str, Any] = {}

    def __len__(self) -> int:
        return len(self.cases) + 2 * len(self.alone)

    def run(self) -> Iterator[str]:
        """Measure everything. A case that the budget leaves no time for is recorded as left out."""
        plan = self.plan
        torch.set_num_threads(plan.threads or torch.get_num_threads())
        self.record = {
            "format": FORMAT,
            "command": plan.command,
            "date": facts.today(),
            "machine": facts.machine(plan.device),
            "versions": facts.versions(),
            "model": plan.model,
            "tensors": len(self.shapes),
            "parameters": sum(shape.numel() for shape in self.shapes),
            "rounds": plan.rounds,
            "seconds": plan.seconds,
            "cases": [],
            "first_step": [],
            "memory": [],
        }
        began = time.monotonic()
        yield from self._races(began)
        yield from self._fresh(began)
        self.record["took_s"] = round(time.monotonic() - began, 1)

    def _races(self, began: float) -> Iterator[str]:
        fresh = 2 * FRESH_SECONDS * len(self.alone)
        kept = max(0.5 * self.plan.seconds, self.plan.seconds - fresh)
        weights = [
            len(racers(case, Workspace((), "cpu"), None, with_peers=self.plan.peers)) for case in self.cases
        ]
        for i, case in enumerate(self.cases):
            yield case.name
            left = kept - (time.monotonic() - began)
            self.record["cases"].append(self._case(case, left * weights[i] / sum(weights[i:])))

    def _case(self, case: Case, seconds: float) -> dict[str, Any]:
        plan = self.plan
        out: dict[str, Any] = {
            "name": case.name,
            "card": case.card.name,
            "title": case.card.title,
            "storage": case.storage.name,
            "small": case.small,
            "parameters": sum(shape.numel() for shape in case.shapes),
        }
        try:
            out |= {"bytes": traffic(case), "state_bytes": state_bytes(case)}
        except SteepestError as error:
            return {**out, "error": error_line(error), "racers": []}
        if seconds <= 0:
            return {**out, "error": SPENT, "racers": []}
        runners = racers(case, Workspace(case.shapes, plan.device), plan.engine, with_peers=plan.peers)
        out["hand_over_ns"] = race(
            runners, rounds=plan.rounds, seconds=seconds, device=plan.device, patience=plan.patience
        )
        out["racers"] = [runner.record() for runner in runners]
        del runners
        gc.collect()  # an optimizer and its hooks may be a cycle, and it holds as much as a model
        return out

    def _fresh(self, began: float) -> Iterator[str]:
        plan = self.plan
        for measure, kept, what in (
            (first_steps, "first_step", "first step"),
            (peak_memory, "memory", "peak memory"),
        ):
            for case in self.alone:
                yield f"{case.name}, {what}"
                named = {"name": case.name, "card": case.card.name, "storage": case.storage.name}
                if time.monotonic() - began > plan.seconds:
                    self.record[kept].append({**named, "error": SPENT})
                    continue
                job = Job(
                    case.card.name,
                    case.storage.name,
                    case.shapes,
                    plan.engine,
                    plan.device,
                    torch.get_num_threads(),
                )
                self.record[kept].append({**named, **attempt(measure, job)})


def updated(record: Mapping[str, Any], newer: Mapping[str, Any]) -> dict[str, Any]:
    """A record in which the cases that were measured in another run stand in place of the older ones.

    "updates" says which they are, with the command, machine and date of that run. Raises SteepestError where
    the two are not about the same shapes.
    """
    for key in ("format", "model", "parameters"):
        if record[key] != newer[key]:
            raise SteepestError(
                f"the figures to update have {key} {record[key]!r}, the new ones {newer[key]!r}."
            )
    out = dict(record)
    for part in ("cases", "first_step", "memory"):
        news = {row["name"]: row for row in newer[part] if row.get("error") != SPENT}
        known = {row["name"] for row in record[part]}
        out[part] = [news.get(row["name"], row) for row in record[part]]
        out[part] += [row for name, row in news.items() if name not in known]
    about = {key: newer[key] for key in ("command", "date", "machine", "versions", "took_s")}
    names = [case["name"] for case in newer["cases"] if case["racers"]]
    out["updates"] = [*record.get("updates", []), {**about, "cases": names}]
    return out


def _measured_alone(case: Case) -> bool:
    """Fresh processes cost seconds each: every rule in fp32, and every storage under AdamW."""
    return not case.small and (case.storage == FP32 or case.card.name == "adamw")
