"""Python threads that share the pieces of a step, each running torch on one core.

A torch operation on several cores begins and ends with all of them meeting, ten times a piece, and any other
process on one core holds up the rest. Threads with pieces of their own never meet, and one computes while
another waits for memory. Torch releases the interpreter's lock inside its operations.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, Lock
from typing import Any, TypeVar

import torch

T = TypeVar("T")
_POOLS: dict[tuple[int, int], ThreadPoolExecutor] = {}
_LOCK = Lock()


def share(work: Callable[[Iterator[T]], None], items: Sequence[T]) -> None:
    """Call `work` in as many threads as torch uses; each draws from the same iterator over `items`.

    In the threads torch has one thread and gradients are off. Raises the first error of any of them.
    """
    threads = torch.get_num_threads()
    queue = _drawn(items)
    jobs = [_pool(threads).submit(torch.no_grad()(work), queue) for _ in range(threads)]
    for job in jobs:
        job.result()


class _drawn(Iterator[T]):
    """An iterator that several threads may draw from."""

    def __init__(self, items: Sequence[T]) -> None:
        self.items, self.lock = iter(items), Lock()

    def __next__(self) -> T:
        with self.lock:
            return next(self.items)


def _pool(threads: int) -> ThreadPoolExecutor:
    """The pool of this process; a forked child has none of its parent's threads and makes its own."""
    key = os.getpid(), threads
    with _LOCK:
        if key not in _POOLS:
            _POOLS.clear()
            _POOLS[key] = ThreadPoolExecutor(threads, "steepest")
            ready = Barrier(threads)

            def start(*_: Any) -> None:
                torch.get_num_threads()  # a thread takes the default when first asked, not later
                torch.set_num_threads(1)  # its own number, and the default of threads still to come
                ready.wait()

            list(_POOLS[key].map(start, range(threads)))
            torch.set_num_threads(threads)
        return _POOLS[key]
