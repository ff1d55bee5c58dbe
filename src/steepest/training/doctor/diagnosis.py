"""`diagnose(path)`: is it the optimizer?"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from steepest.training.doctor.causes import LEVELS, Cause
from steepest.training.doctor.reading import Found, read_run
from steepest.training.doctor.rules import RULES
from steepest.training.doctor.series import Series, is_finite

LEAST = 20
"""Steps of a log below which it is too early for any answer."""


@dataclass(frozen=True)
class Diagnosis:
    """What a run's files say.

    causes:  the gravest first.  looked: what was looked at, by rule.  missing: what could not be, and the
    column that was not there.  found: the files' content.
    """

    found: Found
    causes: tuple[Cause, ...]
    looked: dict[str, str]
    missing: dict[str, str]

    @property
    def steps(self) -> int:
        return sum(len(series.rows) for series in self.found.stages)

    @property
    def healthy(self) -> bool:
        """Enough was seen, and nothing asks for a change."""
        return self.steps >= LEAST and all(cause.level == "note" for cause in self.causes)

    @property
    def urgent(self) -> bool:
        return any(cause.level == "act" for cause in self.causes)

    @property
    def answer(self) -> str:
        """Is it the optimizer? One sentence."""
        grave = [cause for cause in self.causes if cause.level != "note"]
        if grave:
            where = f" (stage {grave[0].stage})" if grave[0].stage else ""
            return f"{grave[0].optimizer.capitalize()}: {grave[0].title}{where}."
        if not self.healthy:
            return f"Too early to say: the log has {self.steps} steps, and {LEAST} are needed."
        return f"No: this run is healthy in all {len(self.looked)} respects that were looked at."

    def to_json(self) -> dict[str, Any]:
        return {
            "path": str(self.found.path),
            "source": self.found.source,
            "running": self.found.running,
            "answer": self.answer,
            "healthy": self.healthy,
            "causes": [asdict(cause) for cause in self.causes],
            "looked": self.looked,
            "missing": self.missing,
            "remarks": list(self.found.remarks),
            "stages": [
                {"name": s.name, "logged": len(s.rows), "last_step": s.last, "planned": s.planned}
                for s in self.found.stages
            ],
        }


def diagnose(path: Path | str) -> Diagnosis:
    """Read a run and say what its numbers point at.

    path: the folder of a run of `steepest train`, finished or not; a folder of transformers' Trainer; or
    its `trainer_state.json`. Raises SteepestError if there is nothing that can be read.
    """
    found = read_run(Path(path))
    looked: dict[str, str] = {}
    missing: dict[str, str] = {}
    causes: list[Cause] = []
    for series in found.stages:
        causes += examine(series, looked, missing)
    causes.sort(key=lambda cause: -LEVELS.index(cause.level))  # stable: then by stage, then by the table
    return Diagnosis(found, tuple(causes), looked, {k: v for k, v in missing.items() if k not in looked})


def examine(series: Series, looked: dict[str, str], missing: dict[str, str]) -> Iterable[Cause]:
    """The causes of one stage, in the table's order; fills what was looked at and what could not be."""
    causes: dict[str, Cause] = {}
    for rule in RULES:
        absent = [key for key in rule.needs if not _has(series, key)]
        if absent:
            if not (series.is_policy and absent[0] == "loss"):  # it has one, of which nothing follows
                missing[rule.name] = absent[0]
            continue
        looked[rule.name] = rule.looks
        with np.errstate(all="ignore"):
            cause = rule.find(series)
        if cause is not None and not any(name in causes for name in rule.unless):
            causes[rule.name] = replace(cause, rule=rule.name, stage=series.name)
    return causes.values()


def _has(series: Series, key: str) -> bool:
    if key == "loss":
        return len(series.loss) > 0
    return any(
        bool(value) if key == "layers" else is_finite(value) for value in (r.get(key) for r in series.rows)
    )
