"""Running a compiled function on all cores.

Torch's own pool of threads is used where it can be reached (libgomp, in torch's wheels for Linux): a second
pool would compete with it for the same cores. Elsewhere threads of Python call the function, which runs
without the interpreter's lock.
"""

from __future__ import annotations

import ctypes
import glob
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache, partial
from typing import NamedTuple

import torch

_FUNCTION = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class Team(NamedTuple):
    """run(function, argument, threads): calls the function in so many threads, and waits for all.
    number: the address of a C function that tells a thread its number among them; 0 where there is none."""

    run: Callable[[int, int, int], None]
    number: int


def threads_for(shares: int) -> int:
    """In how many threads to run what has so many shares that are worth one: torch's choice at most."""
    return min(torch.get_num_threads(), shares)


def run_on_all_cores(function: int, argument: int, threads: int) -> None:
    """Call the function at this address with this pointer in so many threads."""
    if threads > 1:
        team().run(function, argument, threads)
    elif threads:
        _call(function)(argument)


def team() -> Team:
    """The threads of this process: a forked child has none of its parent's."""
    return _team(os.getpid())


@cache
def _call(function: int) -> Callable[[int], None]:
    return _FUNCTION(function)


@cache
def _team(process: int) -> Team:
    return _openmp() or _threads()


def _openmp() -> Team | None:
    for path in glob.glob(os.path.join(os.path.dirname(torch.__file__), "lib", "libgomp*.so*")):
        try:
            library = ctypes.CDLL(path)
            parallel, number = library.GOMP_parallel, library.omp_get_thread_num
        except (OSError, AttributeError):
            continue
        parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
        parallel.restype = None
        return Team(partial(_parallel, parallel), ctypes.cast(number, ctypes.c_void_p).value or 0)
    return None


def _parallel(parallel: Callable[..., None], function: int, argument: int, threads: int) -> None:
    parallel(function, argument, threads, 0)


def _threads() -> Team:
    pools: dict[int, ThreadPoolExecutor] = {}

    def run(function: int, argument: int, threads: int) -> None:
        pool = pools.setdefault(threads, ThreadPoolExecutor(threads, "steepest"))
        jobs = [pool.submit(_call(function), argument) for _ in range(threads)]
        wait(jobs)
        for job in jobs:
            job.result()

    return Team(run, 0)
