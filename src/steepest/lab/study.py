"""A study on disk: planned once, run in any order, continued wherever it stopped."""

from __future__ import annotations

import json
import os
import platform
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from steepest.contract import SteepestError
from steepest.lab.bracket import best_point, wanted
from steepest.lab.executors import Executor, Job, Start
from steepest.lab.pool import Pool
from steepest.lab.question import GRID_FACTOR, MIN_STEPS, START, Question, grid_rate, prior_lr
from steepest.lab.records import FORMAT, Problem, Record, find_record, read_records, write_record
from steepest.lab.trial import Phase, answer, trial_id, versions
from steepest.rules import find_card
from steepest.training import RunConfig, lock, parse_config, write_atomic
from steepest.training.claims import Claims


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a study will cost, shown before it starts."""

    steps: int
    tokens: int
    parameters: int
    workers: int
    trials: int
    finished: int
    seconds: float
    data: dict[str, Any]
    problems: tuple[Problem, ...]


@dataclass(frozen=True, slots=True)
class Event:
    """A trial has finished: its record, how many are done, and how many there will be as far as known."""

    record: Record
    done: int
    expected: int


class Study:
    """One question, one folder. `plan()` first, then `run()`; both may be repeated at any time.

    The folder is locked while the study is open, and belongs to the question it was made for: the
    records of another are left alone and not used. Where locks do not reach, on a file system that
    machines share, several studies of one question divide its trials: each claims what it runs, and
    waits for the records of the rest.
    start: makes the executor; None for the worker processes of this machine.
    """

    def __init__(self, question: Question, folder: Path, start: Start | None = None) -> None:
        self.question, self.folder, self._start = question, Path(folder), start
        self.trials_folder = self.folder / "trials"
        self.workers = question.workers or (1 if question.device != "cpu" else _cores())
        self.records: dict[str, Record] = {}
        self._asked: set[str] = set()
        self._elsewhere: set[str] = set()
        self._waiting: dict[str, dict[str, Any]] = {}
        self._arrived: list[Record] = []
        self._ids: dict[tuple[Phase, str, float, int], str] = {}
        # The question's mistakes come out before a process is started.
        parse_config(self._trying(MIN_STEPS), "this comparison").schedule.build(0.0, 10**6)

    def __enter__(self) -> Study:
        self._lock = lock(self.folder)
        self._lock.__enter__()
        try:
            self._open()
        except BaseException:
            self._lock.__exit__(None, None, None)
            raise
        return self

    def _open(self) -> None:
        if self._start is None:
            self._pool: Executor[Any] = Pool(answer, self.workers)
            self._pool.__enter__()
        else:
            self._pool = self._start(answer, self.question.workers, self.folder)
            self.workers = self._pool.__enter__().workers

    def __exit__(self, *reason: Any) -> None:
        self._pool.__exit__(*reason)
        self._lock.__exit__(None, None, None)

    # ------------------------------------------------------------------ the plan

    def plan(self) -> Estimate:
        """Load the data, try the model, fix the length of a trial, find old records; nothing is written."""
        found = self._probe()
        steps = self._steps(found["seconds_per_step"])
        tokens = steps * self.question.batch * self.question.context
        self._config = self._base(steps)
        self._ids.clear()
        self._prior = prior_lr(found["parameters"], tokens)
        self._digests = found["data"]["digest"], found["model_digest"]
        self._plan = self._describe(found, steps, tokens)
        sound, problems = read_records(self.trials_folder)
        self.records = {record["id"]: record for record in sound}
        likely = self.question.trials()
        finished = self._finished()
        seconds = max(0, likely - finished) * steps * found["seconds_per_step"] * 1.2 / self.workers
        return Estimate(
            steps=steps,
            tokens=tokens,
            parameters=found["parameters"],
            workers=self.workers,
            trials=likely,
            finished=finished,
            seconds=seconds,
            data=found["data"],
            problems=tuple(problems),
        )

    def _probe(self) -> dict[str, Any]:
        config = {**self._trying(6), "evals": 1, "validation_windows": 1}
        # A key of its own: an executor may know answers of an earlier session, and this one must be fresh.
        key = f"first-try-{uuid.uuid4().hex[:8]}"
        job: Job = (key, {"task": "probe", "config": config, "cache": self._cache})
        jobs = [[job], []]
        return next(result for _, result in self._pool.run(lambda: jobs.pop(0) if jobs else []))

    def _steps(self, seconds_per_step: float) -> int:
        """A time budget is turned into steps once; a study that goes on keeps the length it began with."""
        if self.question.budget.unit == "seconds":
            before, now = self._saved(), self._answers()
            if before and all(before.get(key) == value for key, value in now.items()):
                return int(before["steps"])
        return self.question.steps(seconds_per_step, self.workers)

    def _saved(self) -> dict[str, Any] | None:
        try:
            found = json.loads((self.folder / "study.json").read_bytes())
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) and isinstance(found.get("steps"), int) else None

    def _answers(self) -> dict[str, Any]:
        asked = self.question
        return {
            "model": asked.model,
            "tokenizer": asked.tokenizer,
            "baseline": asked.baseline,
            "optimizers": list(asked.optimizers),
            "batch": asked.batch,
            "context": asked.context,
            "clip": asked.clip,
            "schedule": asked.schedule,
            "tuning_seed": asked.tuning_seed,
            "seeds": asked.evaluation_seeds,
            "budget": [asked.budget.amount, asked.budget.unit],
        }

    def _describe(self, found: dict[str, Any], steps: int, tokens: int) -> dict[str, Any]:
        """The plan as `study.json` holds it."""
        return {
            "format": FORMAT,
            **self._answers(),
            "data": found["data"],
            "model_digest": found["model_digest"],
            "parameters": found["parameters"],
            "steps": steps,
            "tokens_per_trial": tokens,
            "config": self._config,
            "grid_factor": GRID_FACTOR,
            "prior_lr": self._prior,
            "versions": versions(),
            "environment": {
                "cpu": _processor(),
                "cores": os.cpu_count(),
                "workers": self.workers,
                "threads_per_trial": self._config["threads"],
                "device": self.question.device,
            },
            "command": self.question.command,
        }

    def _base(self, steps: int) -> dict[str, Any]:
        """What every trial of the study shares."""
        asked = self.question
        return {
            "model": asked.model,
            "data": asked.data,
            "text_key": asked.text_key,
            "tokenizer": asked.tokenizer,
            "schedule": asked.schedule,
            "clip": asked.clip,
            "batch": asked.batch,
            "context": asked.context,
            "steps": steps,
            "device": asked.device,
            "threads": 1,
        }

    def _trying(self, steps: int) -> dict[str, Any]:
        """A run that moves nothing, so that it cannot end worse than it began."""
        return {**self._base(steps), "optimizer": {"name": "adamw", "lr": 0.0}}

    @property
    def _cache(self) -> str:
        return str(self.folder / "cache")

    # ------------------------------------------------------------------ the trials

    def run(self) -> Iterator[Event]:
        """Write `study.json` and run what is missing; a trial is on disk before its event comes."""
        write_atomic(self.folder / "study.json", json.dumps(self._plan, indent=1) + "\n")
        self._asked, self._elsewhere, self._waiting, self._arrived = set(), set(), {}, []
        with Claims(self.folder / "claims") as self._claims:
            for record in self._records():
                yield Event(record, self._finished(), self._expected())

    def _records(self) -> Iterator[Record]:
        """The records of missing trials as they come, from workers here and from other studies."""
        while True:
            for key, result in self._pool.run(self._next_jobs):
                yield self._accept(key, result)
            while self._arrived:
                yield self._arrived.pop(0)
            if not self._elsewhere:
                return
            self._claims.wait()

    def _accept(self, key: str, result: dict[str, Any]) -> Record:
        """The record that counts: the first that was written. What comes twice is the same trial."""
        if result["id"] != key:
            own, other = versions(), result["versions"]
            differ = [
                f"{name} {other.get(name)} for {own[name]}" for name in own if other.get(name) != own[name]
            ]
            what = ", ".join(differ) or "other data, another model or other code"
            raise SteepestError(
                f"trial {key} came back as {result['id']}: its worker has {what}; give every machine the "
                "same versions, data and model."
            )
        record = find_record(self.trials_folder, key)
        if record is None:
            write_record(self.trials_folder, result)
            record = cast(Record, result)
        self.records[key] = record
        self._claims.drop(key)
        return record

    def _look(self) -> None:
        """Take in the records that other studies have written meanwhile."""
        found = [r for key in sorted(self._elsewhere) if (r := find_record(self.trials_folder, key))]
        self._arrived += found
        for record in found:
            self.records[record["id"]] = record
            self._elsewhere.remove(record["id"])
            self._waiting.pop(record["id"], None)

    def _config_of(self, name: str, lr: float, seed: int) -> RunConfig:
        card = find_card(name)
        optimizer = {"name": name, "lr": lr, **card.settings, **card.lab}
        return RunConfig(**{**self._config, "optimizer": optimizer, "seed": seed})

    def _tunings(self, name: str) -> dict[int, float | None]:
        """Grid points of an optimizer that have a record, with their loss."""
        found: dict[int, float | None] = {}
        for k in range(min(START) - 16, max(START) + 17):
            record = self.records.get(self._id("tune", name, self._rate(name, k), self.question.tuning_seed))
            if record is not None:
                found[k] = record["final"]["loss"]
        return found

    def _rate(self, name: str, k: int) -> float:
        return grid_rate(self._prior * find_card(name).relative_lr, k)

    def _id(self, phase: Phase, name: str, lr: float, seed: int) -> str:
        key = (phase, name, lr, seed)
        if key not in self._ids:
            self._ids[key] = trial_id(phase, self._config_of(name, lr, seed), *self._digests)
        return self._ids[key]

    def _missing(self, name: str) -> list[tuple[Phase, float, int]]:
        """The trials of one optimizer that can run now: its grid's next points, or its races."""
        tunings = self._tunings(name)
        points = wanted(tunings)
        if points:
            return [("tune", self._rate(name, k), self.question.tuning_seed) for k in points]
        best = best_point(tunings)
        if best is None:
            return []
        lr = self._rate(name, best)
        races: list[tuple[Phase, float, int]] = [("race", lr, s) for s in self.question.evaluation_seeds]
        return [race for race in races if self._id(race[0], name, *race[1:]) not in self.records]

    def _next_jobs(self) -> list[Job]:
        """Trials that can run now and are ours to run: no more than there is room for, so that a study on
        another machine finds some to claim too. First found, first run."""
        self._look()
        for name in self.question.optimizers:
            for phase, lr, seed in self._missing(name):
                key = self._id(phase, name, lr, seed)
                if key not in self._asked:
                    config = self._config_of(name, lr, seed).model_dump(mode="json")
                    arguments = {"task": "trial", "phase": phase, "config": config, "cache": self._cache}
                    self._waiting.setdefault(key, arguments)
        room = self.workers - len(self._asked - self.records.keys())
        jobs: list[Job] = []
        for key in list(self._waiting):
            if len(jobs) < room and self._claim(key):
                self._asked.add(key)
                jobs.append((key, self._waiting.pop(key)))
        return jobs

    def _claim(self, key: str) -> bool:
        """Whether a trial is ours; another study may have it, or may just have finished it."""
        mine = self._claims.take(key)
        if mine and find_record(self.trials_folder, key) is None:
            self._elsewhere.discard(key)
            return True
        if mine:
            self._claims.drop(key)
        self._elsewhere.add(key)
        return False

    def _finished(self) -> int:
        return sum(self._count(name)[0] for name in self.question.optimizers)

    def _expected(self) -> int:
        return sum(sum(self._count(name)) for name in self.question.optimizers)

    def _count(self, name: str) -> tuple[int, int]:
        """Trials of an optimizer that are done, and that are still to come as far as is known."""
        tunings = self._tunings(name)
        ahead = len(wanted(tunings))
        if ahead:
            return len(tunings), ahead + self.question.seeds
        best = best_point(tunings)
        left = len(self._missing(name))
        return len(tunings) + (0 if best is None else self.question.seeds - left), left


def _cores() -> int:
    """Cores this process may use; not every system says which."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _processor() -> str:
    """The processor's name as the system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
