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
from functools import cache

import torch

_FUNCTION = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
Team = Callable[[int, int, int], None]
"""team(function, argument, threads): calls the function in so many threads, and waits for all."""


def run_on_all_cores(function: int, argument: int, shares: int) -> None:
    """Call the function at this address with this pointer, in as many threads as torch uses, but no more than
    the work has shares that are worth a thread."""
    threads = min(torch.get_num_threads(), shares)
    if threads > 1:
        _team(os.getpid())(function, argument, threads)
    elif shares:
        _call(function)(argument)


@cache
def _call(function: int) -> Callable[[int], None]:
    return _FUNCTION(function)


@cache
def _team(process: int) -> Team:
    """Of this process: a forked child has none of its parent's threads."""
    return _openmp() or _threads()


def _openmp() -> Team | None:
    for path in glob.glob(os.path.join(os.path.dirname(torch.__file__), "lib", "libgomp*.so*")):
        try:
            parallel = ctypes.CDLL(path).GOMP_parallel
        except (OSError, AttributeError):
            continue
        parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
        parallel.restype = None
        return lambda function, argument, threads: parallel(function, argument, threads, 0)
    return None


def _threads() -> Team:
    pools: dict[int, ThreadPoolExecutor] = {}

    def team(function: int, argument: int, threads: int) -> None:
        pool = pools.setdefault(threads, ThreadPoolExecutor(threads, "steepest"))
        jobs = [pool.submit(_call(function), argument) for _ in range(threads)]
        wait(jobs)
        for job in jobs:
            job.result()

    return team
