"""Trials as tasks of a Ray cluster: Ray decides where each one runs, and says when a worker is gone."""

from __future__ import annotations

import contextlib
import logging
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

from steepest.contract import SteepestError
from steepest.lab.executors.base import Executor, Job, Lost, Task, attempt_from, origin
from steepest.lab.executors.choice import RayOptions


class RayTasks(Executor[Any]):
    """One Ray task a trial. Results travel through Ray, so that nodes need not share a file system.

    workers: at most so many tasks at once; None for as many as the cluster's CPUs have room for.
    Ray retries nothing by itself: a job is handed out again by the one rule of all executors.
    """

    library = "ray"
    advice = "it may be out of memory: give it more with --executor-options memory_gb=..., or a smaller model"

    def __init__(
        self, library: Any, task: Task, workers: int | None, folder: Path, options: RayOptions
    ) -> None:
        super().__init__(task, workers or 1)
        self._ray, self._asked, self._options = library, workers, options

    def __enter__(self) -> Self:
        self._ours = not self._ray.is_initialized()
        if self._ours:
            self._connect()
        cpus = self._ray.cluster_resources().get("CPU", 1)
        self.workers = self._asked or max(1, int(cpus // self._options.cpus))
        resources: dict[str, Any] = {"num_cpus": self._options.cpus, "num_gpus": self._options.gpus}
        if self._options.memory_gb is not None:
            resources["memory"] = int(self._options.memory_gb * 2**30)
        self._remote = self._ray.remote(max_retries=0, **resources)(attempt_from)
        return self

    def __exit__(self, *_: Any) -> None:
        super().__exit__()
        if self._ours:
            self._ray.shutdown()

    def _connect(self) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
        address = self._options.address or os.environ.get("RAY_ADDRESS")
        if address:
            where: dict[str, Any] = {"address": address}
        else:
            room = {} if self._asked is None else {"num_cpus": math.ceil(self._asked * self._options.cpus)}
            where = {"address": "local", "include_dashboard": False, **room}
        try:
            self._ray.init(**where, **quiet)
        except (ConnectionError, TimeoutError, RuntimeError, ValueError) as error:
            text = " ".join(str(error).split())
            raise SteepestError(
                f"no Ray cluster could be reached at {address or 'this machine'} ({text}); check the address."
            ) from None

    def _submit(self, job: Job) -> Any:
        return self._remote.remote(origin(), self._task, job[1])

    def _ended(self, handles: list[Any]) -> Iterable[Any]:
        ready, _ = self._ray.wait(handles, num_returns=1)
        return list(ready)

    def _answer(self, handle: Any) -> Any:
        errors = self._ray.exceptions
        try:
            return self._ray.get(handle)
        except errors.RayTaskError as error:  # `attempt` lets nothing out: it was never reached
            text = " ".join(str(error.cause or error).split())
            raise SteepestError(
                f"a Ray worker cannot run a trial ({text}); install steepest and what the model needs "
                "on every node, in the same versions."
            ) from None
        except errors.RayError as error:
            raise Lost(type(error).__name__) from None

    def _stop(self, handle: Any) -> None:
        with contextlib.suppress(Exception):  # the cluster itself may be gone
            self._ray.cancel(handle, force=True)
