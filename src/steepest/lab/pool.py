"""Trials side by side: one process a worker, one thread a process, so that nothing is oversubscribed and
no number depends on how many run at once."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from steepest.contract import SteepestError

Job = tuple[str, dict[str, Any]]
"""A key to know the result by, and the keyword arguments of the task."""


class Pool:
    """Workers that run `task(**arguments)` for jobs, in any order; results come as they finish.

    task: a function importable by name (the workers are spawned, they share nothing).
    A worker that dies is replaced and its job run once more; a second death is an error.
    """

    def __init__(self, task: Callable[..., Any], workers: int) -> None:
        self._task, self._count = task, workers
        self._context = multiprocessing.get_context("spawn")
        self._workers: dict[Connection, BaseProcess] = {}
        self._running: dict[Connection, Job] = {}
        self._deaths: dict[str, int] = {}

    def __enter__(self) -> Pool:
        for _ in range(self._count):
            self._start()
        return self

    def __exit__(self, *_: Any) -> None:
        for connection, process in self._workers.items():
            process.kill()
            process.join()
            connection.close()
        self._workers.clear()

    def _start(self) -> None:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=_serve, args=(theirs, self._task), daemon=True)
        # One thread each from the first import on; a spawned process reads this before torch does.
        before = {name: os.environ.get(name) for name in THREADS}
        os.environ.update(THREADS)
        try:
            process.start()
        finally:
            for name, value in before.items():
                os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)
        theirs.close()
        self._workers[ours] = process

    def run(self, next_jobs: Callable[[], list[Job]]) -> Iterator[tuple[str, Any]]:
        """Yield (key, result) as jobs finish; `next_jobs` is asked for further jobs after each one.

        A result that is a `SteepestError` is raised here.
        """
        queue = next_jobs()
        while queue or self._running:
            idle = [c for c in self._workers if c not in self._running]
            for connection in idle[: len(queue)]:
                job = queue.pop(0)
                connection.send(job)
                self._running[connection] = job
            yield from self._collect(queue)
            queue += next_jobs()

    def _collect(self, queue: list[Job]) -> Iterator[tuple[str, Any]]:
        for ready in wait(list(self._running)):
            connection: Connection = ready  # type: ignore[assignment]
            job = self._running.pop(connection)
            try:
                result = connection.recv()
            except EOFError:
                self._bury(connection, job, queue)
                continue
            if isinstance(result, SteepestError):
                raise result
            yield job[0], result

    def _bury(self, connection: Connection, job: Job, queue: list[Job]) -> None:
        process = self._workers.pop(connection)
        process.join()
        connection.close()
        self._deaths[job[0]] = self._deaths.get(job[0], 0) + 1
        if self._deaths[job[0]] > 1:
            raise SteepestError(
                f"a worker died twice running {job[0]} (exit code {process.exitcode}); it may be out of "
                "memory: try --workers 1 or a smaller model."
            )
        self._start()
        queue.insert(0, job)


THREADS = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


def _serve(connection: Connection, task: Callable[..., Any]) -> None:
    """A worker's life: take a job, answer with its result or its error, until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the main process's to handle
    while True:
        try:
            _, arguments = connection.recv()
        except EOFError:
            return
        try:
            answer = task(**arguments)
        except SteepestError as error:
            answer = SteepestError(str(error))
        except Exception as error:  # a bug or a foreign module's failure: named, not lost
            answer = SteepestError(f"a trial failed with {type(error).__name__}: {error}")
        connection.send(answer)
