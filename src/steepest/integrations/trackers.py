"""Experiment trackers, each through its own library; without credentials each keeps to this machine.

A tracker is only ever called from one thread, the one that made it.
"""

from __future__ import annotations

import importlib
import json
import netrc
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

PROJECT = "steepest"
LEVELS = {"note": "INFO", "warn": "WARN", "act": "ERROR"}
"""Levels of a finding in the words of W&B's and trackio's alerts."""


class Told(Protocol):
    """What a tracker needs of a finding (`training.health.Finding`)."""

    @property
    def step(self) -> int: ...
    @property
    def indicator(self) -> str: ...
    @property
    def where(self) -> str: ...
    @property
    def level(self) -> str: ...
    @property
    def means(self) -> str: ...
    @property
    def do(self) -> str: ...


class Sink(Protocol):
    """Somewhere numbers go. Anything may raise or hang; training does not notice (`integrations.sinks`)."""

    def log(self, step: int, values: Mapping[str, float]) -> None: ...
    def finding(self, finding: Told) -> None: ...
    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Tracker:
    """A kind of sink: the module it needs, the package that has it, and how it is opened."""

    module: str
    package: str
    open: Callable[[Path, Mapping[str, Any]], Sink]


class TensorBoard:
    """Event files in `tensorboard/` of the run's folder: `tensorboard --logdir <folder>`."""

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        self._writer = importlib.import_module("torch.utils.tensorboard").SummaryWriter(
            folder / "tensorboard"
        )
        self._writer.add_text("config", f"```json\n{json.dumps(config, indent=1, default=str)}\n```", 0)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def finding(self, finding: Told) -> None:
        self._writer.add_text(f"findings/{finding.indicator}", sentence(finding), finding.step)

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """A W&B run. Offline, in `wandb/` of the run's folder, unless there is a key or WANDB_MODE says more."""

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        self._wandb = importlib.import_module("wandb")
        self._run = self._wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=folder.name,
            dir=str(folder),
            config=dict(config),
            mode=os.environ.get("WANDB_MODE") or ("online" if _has_wandb_key() else "offline"),
            settings=self._wandb.Settings(console="off", silent=True),
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def finding(self, finding: Told) -> None:
        level = getattr(self._wandb.AlertLevel, LEVELS[finding.level])
        self._run.alert(title=finding.indicator, text=sentence(finding), level=level)

    def close(self) -> None:
        self._run.finish()


def _has_wandb_key() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc().authenticators("api.wandb.ai") is not None
    except (OSError, netrc.NetrcParseError):
        return False


class MLflow:
    """An MLflow run: where MLFLOW_TRACKING_URI says, else `mlruns/` of the run's folder.

    MLflow opens a folder only where MLFLOW_ALLOW_FILE_STORE is true, and a database only with more than
    mlflow-skinny.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        entities = importlib.import_module("mlflow.entities")
        self._metric = entities.Metric
        self._param = entities.Param
        self._now = importlib.import_module("mlflow.utils.time").get_current_time_millis
        uri = os.environ.get("MLFLOW_TRACKING_URI")
        if not uri:
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
            uri = (folder / "mlruns").absolute().as_uri()
        self._client = importlib.import_module("mlflow.tracking").MlflowClient(tracking_uri=uri)
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        found = self._client.get_experiment_by_name(name)
        experiment = found.experiment_id if found else self._client.create_experiment(name)
        self._run = self._client.create_run(experiment, run_name=folder.name).info.run_id
        params = [self._param(name, text[:500]) for name, text in flat_config(config).items()]
        for start in range(0, len(params), 100):  # of which a request may hold a hundred
            self._client.log_batch(self._run, params=params[start : start + 100])

    def log(self, step: int, values: Mapping[str, float]) -> None:
        now = self._now()
        metrics = [self._metric(name, value, now, step) for name, value in values.items()]
        for start in range(0, len(metrics), 1000):
            self._client.log_batch(self._run, metrics=metrics[start : start + 1000])

    def finding(self, finding: Told) -> None:
        self._client.set_tag(self._run, f"finding.{finding.step}.{finding.indicator}", sentence(finding))

    def close(self) -> None:
        self._client.set_terminated(self._run)


class Trackio:
    """A trackio run, in its local database (TRACKIO_DIR): `trackio show --project steepest`."""

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        self._trackio = importlib.import_module("trackio")
        self._run = self._trackio.init(
            project=os.environ.get("TRACKIO_PROJECT", PROJECT), name=folder.name, config=flat_config(config)
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def finding(self, finding: Told) -> None:
        level = getattr(self._trackio.AlertLevel, LEVELS[finding.level])
        self._run.alert(title=finding.indicator, text=sentence(finding), level=level, step=finding.step)

    def close(self) -> None:
        self._run.finish()


TRACKERS: dict[str, Tracker] = {
    "tensorboard": Tracker("tensorboard", "tensorboard", TensorBoard),
    "wandb": Tracker("wandb", "wandb", WeightsAndBiases),
    "mlflow": Tracker("mlflow", "mlflow-skinny", MLflow),
    "trackio": Tracker("trackio", "trackio", Trackio),
}


def sentence(finding: Told) -> str:
    """A finding in words."""
    return f"step {finding.step}, {finding.where}: {finding.means}; {finding.do}"


def flat_config(config: Mapping[str, Any], above: str = "") -> dict[str, str]:
    """A config as text by dotted key; lists stay whole."""
    out: dict[str, str] = {}
    for key, value in config.items():
        name = f"{above}{key}"
        out |= flat_config(value, f"{name}.") if isinstance(value, Mapping) else {name: str(value)}
    return out
