"""Trials side by side: one process a worker, one thread a process, so that nothing is oversubscribed and
no number depends on how many run at once."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from steepest.contract import SteepestError

Job = tuple[str, dict[str, Any]]
"""A key to know the result by, and the keyword arguments of the task."""

THREADS = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


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
        try:
            self._fill()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: Any) -> None:
        for connection in list(self._workers):
            self._stop(connection)

    def run(self, next_jobs: Callable[[], list[Job]]) -> Iterator[tuple[str, Any]]:
        """Yield (key, result) as jobs finish; `next_jobs` is asked for further jobs after each one.

        A result that is a `SteepestError` is raised here. Jobs under way when this ends early are
        stopped, so that the next run begins with idle workers.
        """
        self._deaths.clear()
        try:
            queue = next_jobs()
            while queue or self._running:
                self._fill()
                idle = [c for c in self._workers if c not in self._running]
                for connection in idle[: len(queue)]:
                    self._send(connection, queue.pop(0))
                yield from self._collect(queue)
                queue += next_jobs()
        finally:
            for connection in list(self._running):
                self._stop(connection)

    def _fill(self) -> None:
        """Start the workers that are missing."""
        resource_tracker.ensure_running()  # it would unblock SIGINT below
        # One thread each from the first import on; a spawned process reads this before torch does.
        before = {name: os.environ.get(name) for name in THREADS}
        os.environ.update(THREADS)
        # Ctrl-C is the main process's to handle: workers inherit a mask that keeps it from them.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            while len(self._workers) < self._count:
                ours, theirs = self._context.Pipe()
                process = self._context.Process(target=_serve, args=(theirs, self._task), daemon=True)
                process.start()
                theirs.close()
                self._workers[ours] = process
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            for name, value in before.items():
                os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)

    def _stop(self, connection: Connection) -> int | None:
        """End a worker, whatever it is doing; returns its exit code."""
        self._running.pop(connection, None)
        process = self._workers.pop(connection)
        process.kill()
        process.join()
        connection.close()
        return process.exitcode

    def _send(self, connection: Connection, job: Job) -> None:
        self._running[connection] = job
        with contextlib.suppress(OSError):  # it died while idle: `_collect` finds out
            connection.send(job)

    def _collect(self, queue: list[Job]) -> Iterator[tuple[str, Any]]:
        for ready in wait(list(self._running)):
            connection: Connection = ready  # type: ignore[assignment]
            try:
                result = connection.recv()
            except (EOFError, OSError):  # the pipe's end, or its end in the middle of a message
                self._bury(connection, queue)
                continue
            key, _ = self._running.pop(connection)
            if isinstance(result, SteepestError):
                raise result
            yield key, result

    def _bury(self, connection: Connection, queue: list[Job]) -> None:
        """A worker has died: its job is first in the queue again, unless it was the second."""
        job = self._running[connection]
        self._workers[connection].join()  # it is ending by itself: let its own exit code stand
        exit_code = self._stop(connection)
        self._deaths[job[0]] = self._deaths.get(job[0], 0) + 1
        if self._deaths[job[0]] > 1:
            raise SteepestError(
                f"a worker died twice running {job[0]} (exit code {exit_code}); it may be out of "
                "memory: try --workers 1 or a smaller model."
            )
        queue.insert(0, job)


def _serve(connection: Connection, task: Callable[..., Any]) -> None:
    """A worker's life: take a job, answer with its result or its error, until the pipe closes."""
    logging.disable(logging.WARNING)  # it would tear the progress bar; what matters is in the results
    threading.Thread(target=_follow_parent, daemon=True).start()
    while True:
        try:
            _, arguments = connection.recv()
        except (EOFError, OSError):
            return
        try:
            answer = task(**arguments)
        except SteepestError as error:
            answer = SteepestError(str(error))
        except Exception as error:  # a bug or a foreign module's failure: named, not lost
            text = " ".join(str(error).split())
            answer = SteepestError(f"a trial failed with {type(error).__name__}: {text}; look at the model.")
        connection.send(answer)


def _follow_parent() -> None:
    """End with the process that started this one, however it ended: no trial outlives its study."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
