"""The page of a run: one self-contained HTML file, from what `steepest train` left in its folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from steepest.lab.report import run_figures, run_words, words
from steepest.lab.report.html import fill
from steepest.lab.report.run_story import Stage, Story, read_story
from steepest.lab.report.run_timeline import legend, timeline, width
from steepest.training.doctor.series import Row, is_finite
from steepest.training.files import write_atomic

LINES = 400
"""Lines of the journal that the page holds at most: the first half of them, and the last."""
COLUMNS = (
    "stage",
    "objective",
    "optimizer",
    "lr",
    "steps",
    "tokens",
    "time",
    "validation\nbefore",
    "\nafter",
)


def write_run_page(folder: Path, out: Path | None = None) -> Path:
    """Write the page of a run, finished or not (default `<folder>/run.html`), and return its path.

    Raises SteepestError if no step of it can be read, or the page cannot be written.
    """
    path = Path(out) if out else Path(folder) / "run.html"
    write_atomic(path, render_run(read_story(Path(folder))))
    return path


def render_run(run: Story) -> str:
    """The page as text. Pure: the same run gives the same bytes."""
    import yaml

    small = run_figures.panels(run)
    drawn = {"timeline": timeline(run)} | {p.id: p.figure for panels in small for p in panels}
    return fill(
        "run.html.j2",
        drawn,
        folder=run.folder.resolve().name,
        state=run.state,
        headline=run_words.headline(run),
        verdict=run_words.verdict(run),
        path=[{"name": stage.name, "colour": run_figures.colour(stage)} for stage in run.stages],
        ahead=run.ahead,
        remarks=run.remarks,
        width=width(run),
        events=legend(run),
        timed=run.timed,
        policy=any(stage.rising for stage in run.stages),
        intervals=any(stage.answers for stage in run.stages),
        columns=COLUMNS,
        rows=[_row(stage) for stage in run.stages],
        findings=findings(run),
        stages=[_stage(stage, panels) for stage, panels in zip(run.stages, small, strict=True)],
        ledger=_ledger(run.ledger),
        journal=_journal(run.journal),
        lines=len(run.journal),
        config=yaml.safe_dump(_json(run.config), sort_keys=False, allow_unicode=True) if run.config else "",
    )


def findings(run: Story) -> list[dict[str, Any]]:
    """What health found, each indicator once, the grave first: where it was worst, and in which stages."""
    grouped: dict[str, list[tuple[Stage, Row]]] = {}
    for stage in run.stages:
        for event in stage.of_kind("finding"):
            grouped.setdefault(str(event.get("indicator")), []).append((stage, event))
    order = list(run_figures.LEVELS)
    found = []
    for indicator, told in grouped.items():
        _, worst = max(told, key=lambda each: _excess(each[1]))
        levels = {str(event.get("level")) for _, event in told}
        found.append(
            {
                "level": next((level for level in order if level in levels), order[-1]),
                "indicator": indicator.replace("_", " "),
                "worst": f"{_number(worst.get('value'))} (limit {_number(worst.get('limit'))})",
                "where": str(worst.get("where", "")),
                "step": f"{worst['step']:,}",
                "stages": _by_stage(told),
                "means": run_words.sentence(str(worst.get("means", ""))),
                "do": run_words.sentence(str(worst.get("do", ""))),
            }
        )
    return sorted(found, key=lambda each: order.index(str(each["level"])))


def _by_stage(told: Sequence[tuple[Stage, Row]]) -> list[dict[str, str]]:
    """In which stages, how often, and at which steps of the run."""
    steps: dict[int, list[int]] = {}
    stages = {stage.index: stage for stage, _ in told}
    for stage, event in told:
        steps.setdefault(stage.index, []).append(event["step"])
    return [
        {"name": stages[i].name, "colour": run_figures.colour(stages[i]), "when": _when(own)}
        for i, own in steps.items()
    ]


def _excess(event: Row) -> float:
    value, limit = event.get("value"), event.get("limit")
    return abs(value - limit) if is_finite(value) and is_finite(limit) else -1.0


def _when(steps: Sequence[int]) -> str:
    if len(steps) == 1:
        return f"step {steps[0]:,}"
    return f"{len(steps)} times, steps {steps[0]:,} to {steps[-1]:,}"


def _number(value: Any) -> str:
    return run_words.number(value) if is_finite(value) else "?"


def _row(stage: Stage) -> dict[str, Any]:
    """A stage's line in the table."""
    name, rate = run_words.optimizer(stage)
    planned = f"of {stage.planned:,}" if stage.planned and stage.planned != stage.taken else ""
    known = len(stage.series.get("seconds")) > 0
    return {
        "colour": run_figures.colour(stage),
        "cells": [
            (stage.name, ""),
            (run_words.objective(stage), str(stage.plan.get("data", ""))),
            (name or words.NONE, ""),
            (words.rate(rate), ""),
            (f"{stage.taken:,}", planned),
            (words.count(stage.tokens), ""),
            (words.duration(stage.length) if known else words.NONE, ""),
            *_results(stage),
        ],
    }


def _results(stage: Stage) -> list[tuple[str, str]]:
    """The validation before the first step and the last one, and below them their interval or their unit."""
    found = [_result(stage, value) for value in (stage.before, stage.after)]
    return [found[0], (found[1][0], found[1][1] or (stage.unit if stage.after is not None else ""))]


def _result(stage: Stage, value: float | None) -> tuple[str, str]:
    if value is None:
        return words.NONE, ""
    return run_words.validated(value, stage.unit), run_words.between(stage, value)


def _stage(stage: Stage, panels: Sequence[run_figures.Panel]) -> dict[str, Any]:
    """A stage's section."""
    still = {run_words.title(k): run_words.number(v) for k, v in run_figures.constants(stage).items()}
    return {
        "name": stage.name,
        "colour": run_figures.colour(stage),
        "recipe": run_words.recipe(stage),
        "crossing": run_words.crossing(stage),
        "panels": panels,
        "still": ", ".join(f"{name} {value}" for name, value in still.items()),
        "reason": str(stage.record.get("reason") or ""),
    }


def _ledger(ledger: Mapping[str, Any]) -> list[dict[str, str]]:
    """What was read of every source."""
    return [
        {
            "source": str(source),
            **{key: run_words.ranges(read.get(key)) for key in ("trained", "skipped", "vetoed")},
        }
        for source, read in ledger.items()
        if isinstance(read, Mapping)
    ]


def _journal(events: Sequence[Row]) -> list[dict[str, str]]:
    """The journal's lines in words; of a long one the middle is left out."""
    half = LINES // 2
    shown = list(events) if len(events) <= LINES else [*events[:half], *events[-half:]]
    return [
        {
            "time": str(event.get("time", ""))[:19].replace("T", " "),
            "step": f"{event['step']:,}",
            "kind": str(event.get("kind", "")).replace("_", " "),
            "words": run_words.event(event),
        }
        for event in shown
    ]


def _json(value: Any) -> Any:
    """A config as plain values that YAML writes: tuples are lists."""
    if isinstance(value, Mapping):
        return {str(key): _json(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json(inner) for inner in value]
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)
