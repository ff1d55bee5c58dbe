"""Trials side by side: one process a worker, one thread a process, so that nothing is oversubscribed and
no number depends on how many run at once."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import signal
import threading
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Self

from steepest.lab.executors.base import Executor, Job, Lost, Task, attempt

THREADS = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


class Pool(Executor[Connection]):
    """The executor of this machine: worker processes, spawned, which share nothing.

    A worker that dies is replaced and its job run once more; a second death is an error.
    """

    lives = 2
    advice = "it may be out of memory: try --workers 1 or a smaller model"

    def __init__(self, task: Task, workers: int) -> None:
        super().__init__(task, workers)
        self._context = multiprocessing.get_context("spawn")
        self._workers: dict[Connection, BaseProcess] = {}

    def __enter__(self) -> Self:
        try:
            self._fill()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: Any) -> None:
        for connection in list(self._workers):
            self._stop(connection)
        self._running.clear()

    def _submit(self, job: Job) -> Connection:
        self._fill()
        idle = next(c for c in self._workers if c not in self._running)
        with contextlib.suppress(OSError):  # it died while idle: `_answer` finds out
            idle.send(job)
        return idle

    def _ended(self, handles: list[Connection]) -> list[Any]:
        return wait(handles)

    def _answer(self, handle: Connection) -> Any:
        try:
            return handle.recv()
        except (EOFError, OSError):  # the pipe's end, or its end in the middle of a message
            self._workers[handle].join()  # it is ending by itself: let its own exit code stand
            raise Lost(f"exit code {self._end(handle)}") from None

    def _stop(self, handle: Connection) -> None:
        self._end(handle)

    def _end(self, handle: Connection) -> int | None:
        """End a worker, whatever it is doing; returns its exit code."""
        process = self._workers.pop(handle)
        process.kill()
        process.join()
        handle.close()
        return process.exitcode

    def _fill(self) -> None:
        """Start the workers that are missing."""
        resource_tracker.ensure_running()  # it would unblock SIGINT below
        # One thread each from the first import on; a spawned process reads this before torch does.
        before = {name: os.environ.get(name) for name in THREADS}
        os.environ.update(THREADS)
        # Ctrl-C is the main process's to handle: workers inherit a mask that keeps it from them.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            while len(self._workers) < self.workers:
                ours, theirs = self._context.Pipe()
                process = self._context.Process(target=_serve, args=(theirs, self._task), daemon=True)
                process.start()
                theirs.close()
                self._workers[ours] = process
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            for name, value in before.items():
                os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)


def _serve(connection: Connection, task: Task) -> None:
    """A worker's life: take a job, answer with its result or its error, until the pipe closes."""
    logging.disable(logging.WARNING)  # it would tear the progress bar; what matters is in the results
    threading.Thread(target=_follow_parent, daemon=True).start()
    while True:
        try:
            _, arguments = connection.recv()
        except (EOFError, OSError):
            return
        connection.send(attempt(task, arguments))


def _follow_parent() -> None:
    """End with the process that started this one, however it ended: no trial outlives its study."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
