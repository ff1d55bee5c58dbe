"""What every executor promises: each job is answered once, wherever and however often it had to be run."""

from __future__ import annotations

import logging
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar, Generic, Self, TypeVar

from steepest.contract import SteepestError

Job = tuple[str, dict[str, Any]]
"""A key to know the result by, and the keyword arguments of the task."""
Task = Callable[..., Any]
Handle = TypeVar("Handle")


class Lost(Exception):
    """A worker ended before it answered; the text says how, as far as that is known."""


def attempt(task: Task, arguments: dict[str, Any]) -> Any:
    """The task's result, or the sentence it failed with as a `SteepestError`: what a worker sends back."""
    try:
        return task(**arguments)
    except SteepestError as error:
        return SteepestError(str(error))
    except Exception as error:  # a bug or a foreign module's failure: named, not lost
        text = " ".join(str(error).split())
        return SteepestError(f"a trial failed with {type(error).__name__}: {text}; look at the model.")


Origin = tuple[str, list[str]]


def origin() -> Origin:
    """What relative paths and imports mean where jobs are asked for: the working folder, the import path."""
    return os.getcwd(), [str(Path(entry).absolute()) for entry in sys.path]


def attempt_from(place: Origin, task: Task, arguments: dict[str, Any]) -> Any:
    """`attempt` in a process that another program has started, perhaps on another machine."""
    logging.disable(logging.WARNING)
    folder, entries = place
    if Path(folder).is_dir():
        os.chdir(folder)
    sys.path += [entry for entry in entries if entry not in sys.path]
    return attempt(task, arguments)


class Executor(ABC, Generic[Handle]):
    """Workers that run `task(**arguments)` for jobs, in any order; results come as they finish.

    task:    a function importable by name where the workers are.
    workers: jobs handed out at once.
    A job whose worker dies is handed out again, in all `lives` times; one death more is an error. A
    subclass says four things: how a job is handed out, when one has ended, what it answered, and how it
    is stopped. `Handle` is what it knows a job by meanwhile, a key of a dict.
    """

    lives: ClassVar[int] = 3
    advice: ClassVar[str]

    def __init__(self, task: Task, workers: int) -> None:
        self._task, self.workers = task, workers
        self._running: dict[Handle, Job] = {}
        self._deaths: dict[str, int] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        self._stop_all()

    def run(self, next_jobs: Callable[[], list[Job]]) -> Iterator[tuple[str, Any]]:
        """Yield (key, result) as jobs finish; `next_jobs` is asked for further jobs after each round.

        A result that is a `SteepestError` is raised here. Jobs under way when this ends early are
        stopped, so that the next run begins with idle workers.
        """
        self._deaths.clear()
        try:
            queue = next_jobs()
            while queue or self._running:
                while queue and len(self._running) < self.workers:
                    self._running[self._submit(queue[0])] = queue[0]
                    del queue[0]
                yield from self._collect(queue)
                queue += next_jobs()
        finally:
            self._stop_all()

    def _collect(self, queue: list[Job]) -> Iterator[tuple[str, Any]]:
        for handle in self._ended(list(self._running)):
            try:
                result = self._answer(handle)
            except Lost as lost:
                queue.insert(0, self._bury(self._running.pop(handle), lost))
                continue
            key, _ = self._running.pop(handle)
            if isinstance(result, SteepestError):
                raise result
            yield key, result

    def _bury(self, job: Job, lost: Lost) -> Job:
        """The job of a worker that has died, to be the next one again, unless it was its last life."""
        key = job[0]
        self._deaths[key] = self._deaths.get(key, 0) + 1
        if self._deaths[key] >= self.lives:
            often = "twice" if self.lives == 2 else f"{self.lives} times"
            raise SteepestError(f"a worker died {often} running {key} ({lost}); {self.advice}.")
        return job

    def _stop_all(self) -> None:
        for handle in list(self._running):
            self._stop(handle)
        self._running.clear()

    @abstractmethod
    def _submit(self, job: Job) -> Handle:
        """Hand a job out; there is room for it."""

    @abstractmethod
    def _ended(self, handles: list[Handle]) -> Iterable[Handle]:
        """Those that have ended, in whatever way; waits until there is one."""

    @abstractmethod
    def _answer(self, handle: Handle) -> Any:
        """What `attempt` gave for a job that has ended; raises `Lost` if its worker gave nothing."""

    @abstractmethod
    def _stop(self, handle: Handle) -> None:
        """End a job that is under way, whatever it is doing."""
