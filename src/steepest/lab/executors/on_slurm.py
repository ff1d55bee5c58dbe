"""Trials as Slurm jobs, by way of submitit: they wait in the queue, and outlive the study that asked.

    <folder>/<key>/<job>_submitted.pkl    a job and its number, as submitit writes it
    <folder>/<key>/<job>.json             what the job answered
    <folder>/<key>/<job>_0_log.err        what it said meanwhile

A study that was killed finds its jobs again by these files: it takes the answers that have come, waits for
jobs that still wait or run, and only submits the rest. Answers are JSON; no pickle of a job is read here.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

from steepest.contract import SteepestError
from steepest.lab.executors.base import Executor, Job, Lost, Origin, Task, attempt_from, origin
from steepest.lab.executors.choice import SlurmOptions
from steepest.training import write_atomic

WORKERS = 16
"""Jobs in the queue at once, unless --workers says otherwise."""
PAUSE = 1.0
"""Seconds between two looks at the answers; submitit itself asks Slurm far less often."""
LATE = 5
"""Looks for the answer of a job that has ended: a shared file system shows a new file late."""
UNDER_WAY = ("PENDING", "RUNNING", "REQUEUED", "CONFIGURING", "COMPLETING", "SUSPENDED")
SUBMITTED = "_submitted.pkl"


class SlurmJobs(Executor[Any]):
    """One Slurm job a trial; the nodes share the study's file system.

    workers: at most so many jobs in the queue at once; None for 16.
    """

    library = "submitit"
    advice = "look at its log; more time, memory_gb or another partition may be what --executor-options needs"

    def __init__(
        self, library: Any, task: Task, workers: int | None, folder: Path, options: SlurmOptions
    ) -> None:
        super().__init__(task, workers or WORKERS)
        self._submitit, self._options = library, options
        self._folder = Path(options.folder or folder / "jobs").absolute()
        self._class = {"slurm": library.SlurmJob, "local": library.LocalJob}[options.cluster]
        self._pause = threading.Event()

    def __enter__(self) -> Self:
        if self._options.cluster == "slurm" and self._submitit.SlurmExecutor.affinity() < 0:
            raise SteepestError(
                "there is no Slurm here (no srun); run this on a login node, or try it out with "
                "--executor-options cluster=local."
            )
        return self

    def _submit(self, job: Job) -> Any:
        key, arguments = job
        folder = self._folder / key
        for submitted in sorted(folder.glob(f"*{SUBMITTED}")):
            earlier = self._class(folder, submitted.name.removesuffix(SUBMITTED))
            answer = _read(earlier)
            if earlier.state.upper() in UNDER_WAY if answer is None else "result" in answer:
                return earlier
        submit = self._submitit.AutoExecutor(folder=folder, cluster=self._options.cluster)
        submit.update_parameters(**self._parameters())
        try:
            return submit.submit(_work, origin(), self._task, arguments, str(folder))
        except RuntimeError as error:  # sbatch refused: its own words say why
            text = " ".join(str(error).split())
            raise SteepestError(f"Slurm took no job ({text}); look at --executor-options.") from None

    def _parameters(self) -> dict[str, Any]:
        asked = self._options
        named = {
            "mem_gb": asked.memory_gb,
            "gpus_per_node": asked.gpus or None,
            "slurm_partition": asked.partition,
            "slurm_account": asked.account,
            "slurm_qos": asked.qos,
            "slurm_constraint": asked.constraint,
        }
        return {
            "name": "steepest",
            "timeout_min": asked.time,
            "cpus_per_task": asked.cpus,
            **{key: value for key, value in named.items() if value is not None},
        }

    def _ended(self, handles: list[Any]) -> Iterable[Any]:
        while True:
            ended = [job for job in handles if _path(job).exists() or job.done()]
            if ended:
                return ended
            self._pause.wait(PAUSE)

    def _answer(self, handle: Any) -> Any:
        for _ in range(LATE):
            answer = _read(handle)
            if answer is not None:
                return answer["result"] if "result" in answer else SteepestError(answer["error"])
            self._pause.wait(PAUSE)
        raise Lost(f"job {handle.job_id}, {handle.state.lower()}, log {handle.paths.stderr}")

    def _stop(self, handle: Any) -> None:
        with contextlib.suppress(Exception):  # it may have ended by itself, or be another's to stop
            handle.cancel(check=False)


def _path(job: Any) -> Path:
    return Path(job.paths.folder) / f"{job.job_id}.json"


def _read(job: Any) -> dict[str, Any] | None:
    """A job's answer: {"result": ...} or {"error": sentence}; None if there is none."""
    try:
        answer = json.loads(_path(job).read_bytes())
    except (OSError, ValueError):
        return None
    return answer if isinstance(answer, dict) and answer.keys() & {"result", "error"} else None


def _work(place: Origin, task: Task, arguments: dict[str, Any], folder: str) -> None:
    """In a Slurm job: the job, and its answer in a file of the job's number."""
    import submitit

    found = attempt_from(place, task, arguments)
    answer = {"error": str(found)} if isinstance(found, SteepestError) else {"result": found}
    number = submitit.JobEnvironment().job_id
    write_atomic(Path(folder) / f"{number}.json", json.dumps(answer))
