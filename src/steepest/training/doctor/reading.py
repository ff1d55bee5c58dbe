"""What a run leaves behind, as the doctor reads it: our folders, and those of transformers' Trainer."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steepest.contract import SteepestError
from steepest.training.config import load_config
from steepest.training.doctor.series import TRAINER, Row, Series, is_finite, tidy
from steepest.training.journal import METRICS, read_journal, read_metrics

STATE = "trainer_state.json"

KEYS = {
    "learning_rate": "lr",
    "eval_loss": "validation",
    "eval_reward": "validation",
    "clip_ratio": "clip_fraction",
    "clip_ratio/region_mean": "clip_fraction",
    "policy/clipfrac_avg": "clip_fraction",
    "policy/approxkl_avg": "kl_old",
    "policy/entropy_avg": "entropy",
    "objective/kl": "kl",
    "objective/scores": "reward",
    "frac_reward_zero_std": "zero_variance_groups",
}
"""What Trainer and TRL's trainers call what we call otherwise; names not here are the same."""


@dataclass(frozen=True)
class Found:
    """A run's files, read. running: a process holds the folder.  remarks: what could not be read."""

    path: Path
    source: str
    stages: tuple[Series, ...]
    running: bool = False
    remarks: tuple[str, ...] = ()


def read_run(path: Path) -> Found:
    """Read a run's folder or file. Raises SteepestError if there is none, or nothing in it can be read."""
    try:
        if path.name == METRICS or (path / METRICS).exists():
            return _read_own(path.parent if path.name == METRICS else path)
        state = path if path.is_file() else _newest_state(path)
        if state is not None:
            return _read_trainer(state)
        missing = not path.exists()
    except OSError as error:
        raise SteepestError(f"cannot read {path} ({error.strerror}); give the folder of a run.") from None
    raise SteepestError(
        f"there is no folder or file {path}; give the folder of a run."
        if missing
        else f"{path} holds no run: it has neither a {METRICS} nor a {STATE}; give the folder of a run."
    )


def _read_own(folder: Path) -> Found:
    lines, events = read_metrics(folder), read_journal(folder)
    if not lines:
        raise SteepestError(f"{folder / METRICS} has no whole line yet; ask again when a step is done.")
    remarks = []
    plans: dict[str, Mapping[str, Any]] = {}
    try:
        config = load_config(folder / "config.yaml")
        plans = {stage.name: {**config.model_dump(), **stage.model_dump()} for stage in config.plan()}
    except SteepestError as error:
        remarks.append(f"without the config ({error})")
    torn = sum(1 for line in lines if not is_finite(line.get("step")))
    if torn:
        remarks.append(f"{torn} lines of {METRICS} have no step and are left out")
    stages = []
    for name, rows in _by_stage(lines).items():
        tidied = tidy({**row, "step": row.get("attempt", row.get("step"))} for row in rows)
        if tidied:
            first, last = tidied[0]["step"], tidied[-1]["step"]
            own = [event for event in tidy_events(events) if first - 1 <= event["step"] <= last]
            stages.append(Series(tidied, tuple(own), plans.get(name, {}), name, start=first - 1))
    return Found(folder, "a run of steepest", tuple(stages), is_held(folder), tuple(remarks))


def is_held(folder: Path) -> bool:
    """Whether a process holds the folder's lock (`training.files.lock`)."""
    import fcntl

    try:
        with open(folder / ".lock", "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _by_stage(lines: Iterable[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """The rows of each stage, in the order of their first row."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for line in lines:
        found.setdefault(str(line.get("stage") or ""), []).append(line)
    return found


def tidy_events(events: Iterable[Mapping[str, Any]]) -> list[Row]:
    """The events that say where they happened."""
    return [{**event, "step": int(step)} for event in events if is_finite(step := event.get("step"))]


def _newest_state(folder: Path) -> Path | None:
    """The Trainer's state in a folder, else in its checkpoint with the highest number."""
    if (folder / STATE).exists():
        return folder / STATE
    numbered = {
        int(found[1]): path
        for path in folder.glob(f"checkpoint-*/{STATE}")
        if (found := re.fullmatch(r"checkpoint-(\d+)", path.parent.name))
    }
    return numbered[max(numbered)] if numbered else None


def _read_trainer(path: Path) -> Found:
    """`log_history` of a Trainer: losses are means over the steps since the line before."""
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        history = state["log_history"]
        rows = tidy(_named(line) for line in history)
    except (ValueError, KeyError, TypeError, RecursionError):
        raise SteepestError(f"{path} is not the state of a Trainer: it has no log_history.") from None
    if not rows:
        raise SteepestError(f"{path} has an empty log_history; train with logging_steps=10 or so.")
    plan = {"steps": state.get("max_steps")}
    return Found(path, "a run of transformers' Trainer", (Series(rows, (), plan, lines=TRAINER),))


def _named(line: Any) -> Any:
    """One line of `log_history` under our names; the summary at the end is no step."""
    if not isinstance(line, Mapping) or "train_runtime" in line:
        return None
    return {KEYS.get(str(key), str(key)): _number(value) for key, value in line.items()}


def _number(value: Any) -> Any:
    """TRL logs some numbers as text."""
    with contextlib.suppress(ValueError):
        return float(value) if isinstance(value, str) else value
    return value
