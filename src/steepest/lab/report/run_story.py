"""A run's folder as its page sees it: the stages it went through, one after another on one clock."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from steepest.contract import SteepestError
from steepest.lab.statistics import Estimate, proportion_interval
from steepest.objectives import OBJECTIVES
from steepest.training.checkpoint import Damaged, Manifest, Store
from steepest.training.config import parse_config
from steepest.training.doctor.reading import read_run, tidy_events
from steepest.training.doctor.series import Column, Row, Series, is_finite
from steepest.training.journal import METRICS, read_journal

Floats = NDArray[np.float64]
State = Literal["finished", "running", "stopped", "diverged"]

RIGHT = "of answers right"
UNITS = {"preference": "nats a pair", "policy": "reward"}
"""What a stage of an older run, which does not say so, is validated in where it is not nats a token."""
OWN = frozenset(
    (
        *("step", "attempt", "committed", "stage", "stage_step", "of", "loss", "lr", "clipped", "validation"),
        *("grad_norm", "update_norm", "param_norm", "tokens", "seconds", "tokens_per_second", "step_ms"),
        *("eta_seconds", "layers", "nonfinite"),
    )
)
"""Keys of a line of metrics that are not the objective's facts."""


@dataclass(frozen=True)
class Stage:
    """A stage that has begun. begins: seconds of training before it.  plan: its config.  record: of run.json.
    events: the journal's, from its first step to its last."""

    series: Series
    index: int
    begins: float
    plan: Mapping[str, Any]
    record: Mapping[str, Any]
    events: tuple[Row, ...] = ()

    @property
    def name(self) -> str:
        return self.series.name or "training"

    @cached_property
    def objective(self) -> str:
        given = self.plan.get("objective", self.record.get("objective", ""))
        return str(given.get("name", "") if isinstance(given, Mapping) else given)

    @cached_property
    def kind(self) -> str:
        """The kind of batch that its objective reads, "" if it is not known."""
        return OBJECTIVES[self.objective].batch if self.objective in OBJECTIVES else ""

    @cached_property
    def rising(self) -> bool:
        """Whether its validation is better when it is higher."""
        return self.kind == "policy" or self.series.is_policy

    @cached_property
    def unit(self) -> str:
        """Of its validation."""
        kind = "policy" if self.rising else self.kind
        given = [self.record, *reversed(self.of_kind("stage"))]
        said = [unit for each in given if isinstance(unit := each.get("unit"), str)]
        return next(filter(None, said), UNITS.get(kind, "nats a token"))

    @cached_property
    def seconds(self) -> Floats:
        """Seconds of training at the end of every row, never falling; steps where no row knows its time."""
        column = self.series.get("seconds")
        steps = np.array([row["step"] for row in self.series.rows], dtype=np.float64)
        if not len(column):
            return steps - self.series.start
        # The first step counts as long as the second, which is known one line later.
        known = np.minimum.accumulate(np.maximum(column.values, 0.0)[::-1])[::-1]
        return np.interp(steps, column.steps, known)

    @property
    def length(self) -> float:
        return float(self.seconds[-1])

    def clock(self, steps: Iterable[float]) -> Floats:
        """Seconds of the run's training after these steps of the run; those outside of the stage are at its
        ends."""
        rows = np.array([self.series.start, *(row["step"] for row in self.series.rows)], dtype=np.float64)
        return self.begins + np.interp(
            np.array(list(steps), dtype=np.float64), rows, [0.0, *self.seconds.tolist()]
        )

    @property
    def taken(self) -> int:
        """Steps tried so far."""
        return self.series.last - self.series.start

    @property
    def planned(self) -> int | None:
        of = self.series.planned
        return None if of is None else of - self.series.start

    @cached_property
    def tokens(self) -> float | None:
        column = self.series.get("tokens")
        return float(column.values.max()) if len(column) else None

    @cached_property
    def validation(self) -> Column:
        """By step of the run; the first is that before the first step, where it is known."""
        curve = self.record.get("validation")
        found = _pairs(curve.get("step"), curve.get("loss")) if isinstance(curve, Mapping) else []
        if not found:
            own = self.series.get("validation")
            told = [event.get("validation") for event in self.of_kind("baseline")[-1:]]
            found = [(0, float(value)) for value in told if is_finite(value)]
            found += zip((own.steps - self.series.start).tolist(), own.values.tolist(), strict=True)
        steps = np.array([step for step, _ in found], dtype=np.int64) + self.series.start
        return Column(steps, np.array([value for _, value in found], dtype=np.float64))

    @property
    def before(self) -> float | None:
        """The validation before the first step."""
        checked = self.validation
        known = len(checked) > 0 and int(checked.steps[0]) == self.series.start
        return float(checked.values[0]) if known else None

    @property
    def after(self) -> float | None:
        """The latest validation after a step."""
        checked = self.validation
        known = len(checked) > 0 and int(checked.steps[-1]) > self.series.start
        return float(checked.values[-1]) if known else None

    @cached_property
    def answers(self) -> int | None:
        """How many prompts its validation asks, where it counts right answers and that is known."""
        data, count = str(self.plan.get("data", "")), self.plan.get("validation_windows")
        known = self.unit == RIGHT and data.count(":") < 2 and isinstance(count, int) and count > 0
        return count if known else None

    def interval(self, share: float) -> Estimate:
        """A share of right answers with its interval; without one where it is not known of how many."""
        if self.answers is None or not 0 <= share <= 1:
            return Estimate(share, None, None, 1)
        return proportion_interval(share, self.answers)

    @cached_property
    def facts(self) -> tuple[str, ...]:
        """The objective's own numbers, in the order that the lines have them."""
        keys = dict.fromkeys(key for row in self.series.rows for key in row if key not in OWN)
        return tuple(key for key in keys if len(self.series.get(key)))

    def of_kind(self, kind: str) -> list[Row]:
        return [event for event in self.events if event.get("kind") == kind]


@dataclass(frozen=True)
class Story:
    """A run: what its files say, and no more.

    stages: those that have begun.  ahead: names of those that have not.  state: how it stands.
    timed: whether its clock counts seconds, or steps.  ledger: what was read of every source, as ranges.
    """

    folder: Path
    config: Mapping[str, Any]
    stages: tuple[Stage, ...]
    ahead: tuple[str, ...]
    state: State
    timed: bool
    journal: tuple[Row, ...] = ()
    ledger: Mapping[str, Any] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()

    @property
    def last(self) -> Stage:
        return self.stages[-1]

    @property
    def seconds(self) -> float | None:
        return self.last.begins + self.last.length if self.timed else None

    @property
    def tokens(self) -> float:
        return math.fsum(stage.tokens or 0.0 for stage in self.stages)


def is_run(folder: Path) -> bool:
    """Whether `steepest train` has written into a folder."""
    return (Path(folder) / METRICS).is_file()


def read_story(folder: Path) -> Story:
    """Read a run's folder, finished or not. Raises SteepestError if no step of it can be read."""
    found = read_run(Path(folder))
    if not found.stages:
        raise SteepestError(
            f"no line of {Path(folder) / METRICS} says which step it is of; train a step first."
        )
    events = tidy_events(read_journal(folder))
    record = _record(folder)
    plans = {series.name: series.plan for series in found.stages if series.plan}
    given = record.get("config")
    config: Mapping[str, Any] = given if isinstance(given, Mapping) else next(iter(plans.values()), {})
    plans = plans or _plans(config)
    records = _by_name(record.get("stages"))
    ends = [*(series.last for series in found.stages[:-1]), math.inf]
    stages: list[Stage] = []
    begins, first = 0.0, -math.inf
    for index, (series, end) in enumerate(zip(found.stages, ends, strict=True)):
        own = tuple(event for event in events if first < event["step"] <= end and not _border(event))
        own += tuple(event for event in events if _border(event) and event.get("name") == series.name)
        plan = plans.get(series.name, {})
        stages.append(Stage(series, index, begins, plan, records.get(series.name, {}), own))
        begins, first = begins + stages[-1].length, end
    names = [str(name) for name in _names(config)]
    known = {series.name for series in found.stages}
    return Story(
        Path(folder),
        config,
        tuple(stages),
        tuple(name for name in names if name not in known),
        _state(events, bool(record), found.running),
        all(len(stage.series.get("seconds")) for stage in stages),
        tuple(events),
        _ledger(folder),
        tuple(remark for remark in found.remarks if not (plans and "without the config" in remark)),
    )


def _state(events: Iterable[Row], recorded: bool, held: bool) -> State:
    """How a run stands: what its journal says since it was begun or continued, and who holds it."""
    diverged = False
    for event in events:
        diverged = event.get("kind") == "diverged" or (
            diverged and event.get("kind") not in ("start", "resume")
        )
    if diverged:
        return "diverged"
    return "finished" if recorded else "running" if held else "stopped"


def _border(event: Row) -> bool:
    return event.get("kind") == "stage"


def _record(folder: Path) -> Mapping[str, Any]:
    try:
        record = json.loads((Path(folder) / "run.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}


def _plans(config: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The stages of a config as run.json has it, complete."""
    try:
        return {stage.name: stage.model_dump() for stage in parse_config(config, "run.json").plan()}
    except SteepestError:
        return {}


def _names(config: Mapping[str, Any]) -> Iterable[Any]:
    """The stages that there are to be."""
    listed = config.get("stages")
    stages = enumerate(listed if isinstance(listed, (list, tuple)) else (), 1)
    return (stage.get("name") or f"stage{i}" for i, stage in stages if isinstance(stage, Mapping))


def _by_name(records: Any) -> dict[str, Mapping[str, Any]]:
    listed = records if isinstance(records, list) else []
    return {str(each.get("name", "")): each for each in listed if isinstance(each, Mapping)}


def _pairs(steps: Any, values: Any) -> list[tuple[int, float]]:
    """Two lists as rising steps with finite values."""
    if not isinstance(steps, list) or not isinstance(values, list):
        return []
    found = {
        int(step): float(value)
        for step, value in zip(steps, values, strict=False)
        if is_finite(step) and abs(step) < 2**53 and is_finite(value)
    }
    return sorted(found.items())


def _ledger(folder: Path) -> Mapping[str, Any]:
    """What the newest generation says was read; nothing where there is none that is whole."""
    store = Store(Path(folder) / "checkpoints")
    try:
        newest = store.newest()
        if newest is None:
            return {}
        found = Manifest.parse((store.folder / newest / "manifest.json").read_bytes()).facts.get("ledger")
    except (OSError, Damaged, SteepestError):
        return {}
    return found if isinstance(found, Mapping) else {}
