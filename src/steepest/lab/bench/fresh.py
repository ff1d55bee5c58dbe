"""What needs a process of its own: the first step, and the most memory a step takes beside its state.

The processes are spawned, so they share nothing, and what the environment says is read anew.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from steepest.lab.bench.cases import Case, parse_storage
from steepest.lab.bench.field import LR, Workspace, ours
from steepest.lab.bench.race import error_line
from steepest.rules import find_card

FIRST = (torch.Size([768, 768]), torch.Size([768]))
"""Shapes for the first step: what it costs is compiling, which does not depend on sizes."""

NO_ARENA = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
"""glibc gives memory back to the system as soon as it is freed, so that each step's temporaries are seen."""

EVERY = 5e-4
"""Seconds between two looks at the resident memory."""


@dataclass(frozen=True)
class Job:
    """A case by its names, which is all that a spawned process is given."""

    card: str
    storage: str
    shapes: tuple[torch.Size, ...]
    engine: str | None
    device: str
    threads: int

    def case(self) -> Case:
        """The case."""
        return Case(find_card(self.card), parse_storage(self.storage), self.shapes)


def first_steps(job: Job) -> dict[str, Any]:
    """Seconds from an optimizer's construction to the end of its first step: "cold_s" with an empty cache of
    kernels, "warm_s" in a further process.

    Not counted is what any optimizer costs: importing torch and this package, and what torch loads (its
    compiler, above a second) when the first `torch.optim` optimizer is made.
    """
    with TemporaryDirectory(prefix="steepest-bench-") as folder:
        empty_at_first = {"STEEPEST_CACHE_DIR": folder}
        small = replace(job, shapes=FIRST)
        return {kind: _in_fresh_process(_first_step, small, empty_at_first) for kind in ("cold_s", "warm_s")}


def peak_memory(job: Job) -> dict[str, Any]:
    """Bytes that a step takes at most beside parameters, gradients and state, after a first step."""
    return {"temporary_bytes": _in_fresh_process(_peak, job, NO_ARENA)}


def attempt(measure: Callable[[Job], dict[str, Any]], job: Job) -> dict[str, Any]:
    """What `measure` finds, or why it cannot be found, in one line."""
    named = {"card": job.card, "storage": job.storage}
    try:
        return {**named, **measure(job)}
    except Exception as error:
        return {**named, "error": error_line(error)}


def _in_fresh_process(task: Callable[[Job], Any], job: Job, environment: Mapping[str, str]) -> Any:
    spawn = multiprocessing.get_context("spawn")
    with _environment(environment), ProcessPoolExecutor(1, mp_context=spawn) as pool:
        return pool.submit(task, job).result()


@contextlib.contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    before = {key: os.environ.get(key) for key in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value


def _first_step(job: Job) -> float:
    torch.set_num_threads(job.threads)
    case = job.case()
    params = Workspace(job.shapes, job.device).params(case.storage.dtype)
    torch.optim.SGD(params, lr=LR).step()
    start = time.perf_counter()
    ours(case, params, job.engine).step()
    if job.device == "cuda":
        torch.cuda.synchronize()
    return round(time.perf_counter() - start, 3)


def _peak(job: Job) -> int:
    torch.set_num_threads(job.threads)
    case = job.case()
    optimizer = ours(case, Workspace(job.shapes, job.device).params(case.storage.dtype), job.engine)
    optimizer.step()  # touches the state, compiles
    if job.device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        optimizer.step()
        return torch.cuda.max_memory_allocated() - before
    with _resident() as seen:
        for _ in range(3):
            optimizer.step()
    return max(seen) - seen[0]


@contextlib.contextmanager
def _resident() -> Iterator[list[int]]:
    """Resident bytes of this process, looked at again and again while the block runs."""
    seen, done = [_rss()], threading.Event()

    def watch() -> None:
        while not done.wait(EVERY):
            seen.append(_rss())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield seen
    finally:
        done.set()
        watcher.join()


def _rss() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
