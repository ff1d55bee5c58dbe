"""From the words of a command line to an executor."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field, ValidationError

from steepest.contract import SteepestError, unknown
from steepest.lab.executors.base import Executor, Task
from steepest.training.config import sentence
from steepest.training.stage_config import Frozen

Start = Callable[[Task, int | None, Path], Executor[Any]]
"""Makes an executor of (task, workers or None for its own default, the study's folder)."""


class LocalOptions(Frozen):
    """This machine's workers are told everything by --workers."""


class RayOptions(Frozen):
    """address: of a cluster (`auto`, host:port, ray://host:port); a cluster of this machine's if there is
    neither one nor RAY_ADDRESS. cpus, gpus, memory_gb: what a trial is given."""

    address: str | None = None
    cpus: float = Field(default=1, gt=0)
    gpus: float = Field(default=0, ge=0)
    memory_gb: float | None = Field(default=None, gt=0)


class SlurmOptions(Frozen):
    """time: minutes a trial may take. cpus, gpus, memory_gb: what a trial is given. folder: for submitit's
    files, where all nodes can read it. cluster: `local` runs the jobs here, to try things out."""

    partition: str | None = None
    time: int = Field(default=60, ge=1)
    cpus: int = Field(default=1, ge=1)
    gpus: int = Field(default=0, ge=0)
    memory_gb: int | None = Field(default=None, ge=1)
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    folder: str | None = None
    cluster: str = Field(default="slurm", pattern="^(slurm|local)$")


class Kind(NamedTuple):
    """An executor that can be asked for: its options, and the module and class that run it."""

    options: type[Frozen]
    module: str = ""
    name: str = ""


EXECUTORS = {
    "local": Kind(LocalOptions),
    "ray": Kind(RayOptions, "steepest.lab.executors.on_ray", "RayTasks"),
    "slurm": Kind(SlurmOptions, "steepest.lab.executors.on_slurm", "SlurmJobs"),
}


def executor(name: str, options: str = "", device: str = "cpu") -> Start | None:
    """What starts the executor of this name; None for this machine's own.

    options: "key=value,key=value". On an accelerator a trial is given one unless they say otherwise.
    Raises SteepestError for a name, a key or a value that there is not, and for a library that is absent.
    """
    if name not in EXECUTORS:
        raise unknown("executor", name, EXECUTORS)
    kind = EXECUTORS[name]
    given = _pairs(options)
    if "gpus" in kind.options.model_fields and device != "cpu":
        given.setdefault("gpus", "1")
    try:
        parsed = kind.options.model_validate(given)
    except ValidationError as error:
        if not kind.options.model_fields:
            raise SteepestError(
                f"--executor {name} takes no options; leave --executor-options out."
            ) from None
        raise SteepestError(sentence(error, f"--executor-options of {name}", kind.options)) from None
    if not kind.module:
        return None
    made = getattr(importlib.import_module(kind.module), kind.name)
    library = needed(made.library, name)
    return lambda task, workers, folder: made(library, task, workers, folder, parsed)


def needed(module: str, extra: str) -> Any:
    """An optional library, imported now that it is asked for."""
    try:
        return importlib.import_module(module)
    except ImportError:
        raise SteepestError(
            f"--executor {extra} needs {module}, which is not installed: pip install 'steepest[{extra}]'."
        ) from None


def _pairs(text: str) -> dict[str, Any]:
    pairs: dict[str, Any] = {}
    for part in filter(None, map(str.strip, text.split(","))):
        key, equals, value = (word.strip() for word in part.partition("="))
        if not (key and equals and value):
            raise SteepestError(f"--executor-options: {part!r} is not key=value; write it as in cpus=2.")
        if key in pairs:
            raise SteepestError(f"--executor-options: {key} is given twice; leave one.")
        pairs[key] = value
    return pairs
