"""Starting the laboratory's processes, and ending those that do not end by themselves.

They are forked from one server that has already imported everything: a start takes a tenth of a second, not
five. They are processes like any others, and a fault may kill, stop or crash them.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from steepest.training.faults.worker import End, Order, work

LIMIT = 180.0
"""Seconds that the processes of one start may take."""
GRACE = 3.0
"""Seconds for the others after one has gone, as torchrun gives them before it kills them."""
PAUSE = 0.02


class Crew:
    """Starts processes. modules: what the server imports beforehand."""

    def __init__(self, modules: Sequence[str] = ()) -> None:
        self._context: Any = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([work.__module__, *modules])

    def run(self, order: Order, *, alone: bool = False, limit: float = LIMIT) -> list[End]:
        """Start all ranks, wait for them, and say how each has ended. See `finish`."""
        return self.finish(order, self.begin(order), alone=alone, limit=limit)

    def begin(self, order: Order) -> list[BaseProcess]:
        """Start all ranks."""
        order.notes.mkdir(parents=True, exist_ok=True)
        port = _free_port()
        ranks = [
            self._context.Process(target=work, args=(order, rank, port), daemon=True)
            for rank in range(order.ranks)
        ]
        for process in ranks:
            process.start()
        return ranks

    def finish(
        self, order: Order, ranks: Sequence[BaseProcess], *, alone: bool = False, limit: float = LIMIT
    ) -> list[End]:
        """Wait for all ranks. Once one has gone wrong the others have a moment, and are killed; with `alone`
        they end by themselves, and only who is stopped, with nobody left to wait for, is killed."""
        until = time.monotonic() + limit
        gone: float | None = None
        try:
            while waited := [process for process in ranks if process.exitcode is None]:
                now = time.monotonic()
                if gone is None and any(process.exitcode for process in ranks):
                    gone = now
                stopped = all(_is_stopped(process.pid) for process in waited)
                late = gone is not None and not alone and now - gone > GRACE
                if now > until or late or (gone is not None and stopped):
                    _kill(waited)
                time.sleep(PAUSE)
        finally:
            _kill([process for process in ranks if process.exitcode is None])
        return [End.read(_end(order.notes, i), process.exitcode or 0) for i, process in enumerate(ranks)]


def _end(notes: Path, rank: int) -> Path:
    return notes / f"end-{rank}.json"


def _kill(processes: Sequence[BaseProcess]) -> None:
    for process in processes:
        if process.pid is not None:
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
        process.join()


def _is_stopped(pid: int | None) -> bool:
    """Whether a process is stopped by a signal, as far as the system says."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
    except OSError:
        return False


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])
