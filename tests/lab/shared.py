"""Small studies of the mortal model, run by any executor, and what must come out of them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from steepest.lab import Question, Study, parse_budget
from steepest.lab.executors import Executor, Job, Start, attempt
from steepest.lab.records import read_records

NAMES = ("adamw", "sgd")


def ask(**changes: Any) -> Question:
    """Two optimizers, one seed, twenty steps of a bigram model."""
    asked = {
        "model": "mortal:bigram",
        "data": "synthetic:0:20000",
        "optimizers": NAMES,
        "budget": parse_budget("20steps"),
        "seeds": 1,
        "batch": 2,
        "context": 16,
    }
    return Question(**{**asked, **changes})


class Here(Executor[str]):
    """Jobs in this process, one after another."""

    advice = "there is one process only"

    def _submit(self, job: Job) -> str:
        return job[0]

    def _ended(self, handles: list[str]) -> list[str]:
        return handles[:1]

    def _answer(self, handle: str) -> Any:
        return attempt(self._task, self._running[handle][1])

    def _stop(self, handle: str) -> None:
        pass


def here(task: Any, workers: int | None, folder: Path) -> Here:
    return Here(task, workers or 2)


def complete(folder: Path, start: Start | None = here, **changes: Any) -> int:
    """Run a study to its end; how many records came."""
    with Study(ask(**changes), folder, start) as study:
        study.plan()
        return sum(1 for _ in study.run())


def numbers(folder: Path) -> dict[str, Any]:
    """All that a study measured but its times: equal studies have equal numbers, to the last bit."""
    sound, problems = read_records(folder / "trials")
    assert not problems
    return {
        record["id"]: (record["curve"]["loss"], record["validation"]["loss"], record["final"]["loss"])
        for record in sound
    }


@contextlib.contextmanager
def no_lock(folder: Path) -> Iterator[None]:
    """A file system whose locks do not reach other machines."""
    folder.mkdir(parents=True, exist_ok=True)
    yield


def narrow(patch: pytest.MonkeyPatch) -> None:
    """Grids that do not grow: where a trial costs a process, a study should have few."""
    patch.setattr("steepest.lab.bracket.LARGEST_GRID", 3)
