"""The report: one self-contained HTML page, and `recommended.yaml` beside it, from records alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steepest.lab.analysis import Result, Summary, analyse
from steepest.lab.records import Problem, Record, read_records, read_study
from steepest.lab.report import figures, words
from steepest.lab.report.html import fill
from steepest.lab.report.recommend import choose, recommended_yaml, snippet
from steepest.lab.report.rules import RULES
from steepest.lab.statistics import TOLERANCE
from steepest.training.files import write_atomic


@dataclass(frozen=True, slots=True)
class Cell:
    """A table cell: what it shows, a second line, what it sorts by (empty: always last), its class."""

    text: str
    sort: str = ""
    small: str = ""
    style: str = ""


def write_report(study_dir: Path, out: Path | None = None) -> Path:
    """Write the study's page (default `<study>/report.html`) and `recommended.yaml` in the same folder.

    Damaged records are set aside and named on the page. There is no recommendation, and none is
    written, until something can be judged. Returns the page's path; raises SteepestError if there is
    no study or the page cannot be written.
    """
    study_dir = Path(study_dir)
    study = read_study(study_dir)
    records, problems = read_records(study_dir / "trials")
    summary = analyse(study, records)
    path = Path(out) if out else study_dir / "report.html"
    write_atomic(path, render(study, summary, records, problems))
    recommended = recommended_yaml(summary, study)
    if recommended:
        write_atomic(path.with_name("recommended.yaml"), recommended)
    return path


def render(
    study: Mapping[str, Any], summary: Summary, records: Sequence[Record], problems: Sequence[Problem] = ()
) -> str:
    """The page as text. Pure: the same study gives the same bytes."""
    drawn = {name: figure for name, figure in figures.figures(summary).items() if figure["data"]}
    choice = choose(summary)
    hidden = [f"{r.title} ends at {r.loss.mean:.2f}, above it" for r in figures.hidden(summary) if r.loss]
    return fill(
        "template.html.j2",
        drawn,
        study=study,
        headline=words.headline(summary),
        verdict=words.verdict(summary, study),
        warnings=_warnings(summary, problems),
        choice=choice,
        chosen=summary[choice.name].title if choice else "",
        snippet=snippet(summary, study["clip"]),
        schedule=words.plain(study["schedule"]),
        base=summary[summary.baseline].title,
        seeds=summary.seeds,
        far=any(d["marker"]["symbol"] != "circle" for d in drawn.get("difference", {"data": []})["data"]),
        hidden="; ".join(hidden),
        panels=_panels(summary),
        tolerance=TOLERANCE,
        columns=_columns(summary),
        rows=_rows(summary),
        setting=_setting(study),
        rules=RULES,
        tuning=[_tuning(result) for result in summary.results],
        trials=[_trial(record) for record in records],
    )


def _warnings(summary: Summary, problems: Sequence[Problem]) -> list[str]:
    """What the reader must know before believing the page."""
    found = []
    if problems:
        named = words.listing([f"{problem.name} ({problem.reason})" for problem in problems])
        found.append(
            f"Damaged records were set aside and are not used: {named}. The same command redoes them."
        )
    if summary.foreign:
        found.append(f"{summary.foreign} records belong to another plan and are not used.")
    return found


def _panels(summary: Summary) -> list[dict[str, str]]:
    """The heading of each sensitivity panel, in the order of `figures.sensitivity`."""
    tone = figures.colours(summary)
    return [
        {
            "title": r.title,
            "colour": tone[r.name],
            "lr": words.rate(r.lr) + (" (grid's end)" if r.sweep.edge else ""),
            "width": words.factor(r.sweep.basin),
        }
        for r in summary.results
        if r.sweep.points
    ]


def _columns(summary: Summary) -> list[str]:
    base = summary[summary.baseline].title
    return [
        "optimizer",
        "verdict",
        "final loss\nnats/token",
        f"minus {base}\n95% interval",
        "Holm\np",
        "bits\nper byte",
        "lr",
        "basin",
        "ms/step\noptimizer",
        "state\nB/param",
        f"to {base}'s\nfinal loss",
        "diverged",
    ]


def _rows(summary: Summary) -> list[dict[str, Any]]:
    tone = figures.colours(summary)
    return [
        {"cells": _cells(r), "colour": tone[r.name], "lead": r.name in summary.leaders}
        for r in summary.results
    ]


def _cells(r: Result) -> list[Cell]:
    mean = r.difference.mean if r.difference else None
    half = r.difference.half_width if r.difference else None
    word = f"{r.bytes_per_parameter:.2g}" if r.bytes_per_parameter is not None else ""
    end = "grid's end" if r.sweep.edge else ""
    short = "not reached" if r.loss else words.NONE
    return [
        Cell(r.title, r.title.lower()),
        Cell(r.verdict, r.verdict, style=r.verdict),
        Cell(words.estimate(r.loss), _key(r.loss.mean if r.loss else None)),
        Cell(
            words.NONE if mean is None else words.signed(mean, words.digits_for(half)),
            _key(mean),
            words.interval(r.difference) if r.difference else "",
        ),
        Cell(words.probability(r.holm_p), _key(r.holm_p)),
        Cell(f"{r.bits_per_byte:.3f}" if r.bits_per_byte is not None else words.NONE, _key(r.bits_per_byte)),
        Cell(words.rate(r.lr), _key(r.lr), end),
        Cell(words.factor(r.sweep.basin), _key(r.sweep.basin.factor if r.sweep.basin else None)),
        Cell(words.milliseconds(r.step_ms), _key(r.step_ms), words.milliseconds(r.optimizer_ms)),
        Cell(words.size(r.state_bytes), _key(r.state_bytes), word),
        Cell(
            short if r.tokens_to_target is None else words.count(r.tokens_to_target),
            _key(r.tokens_to_target),
            "" if r.seconds_to_target is None else words.duration(r.seconds_to_target),
        ),
        Cell(f"{r.diverged} of {r.trials}", _key(r.diverged)),
    ]


def _key(value: float | None) -> str:
    return "" if value is None or not math.isfinite(value) else repr(value)


def _setting(study: Mapping[str, Any]) -> list[tuple[str, str]]:
    data = study["data"]
    train, validation = words.size(data.get("train_bytes")), words.size(data.get("validation_bytes"))
    per_parameter = study["tokens_per_trial"] / study["parameters"]
    return [
        ("model", f"{study['model']}, {study['parameters']:,} parameters"),
        ("data", f"{data['name']}, SHA-256 {data['digest']}"),
        ("splits", f"{train} to train on, {validation} to validate on"),
        ("facts", words.plain(data.get("facts", {}))),
        ("tokenizer", str(study["tokenizer"])),
        (
            "each trial",
            f"{study['steps']} steps of {study['batch']} × {study['context']} tokens: "
            f"{study['tokens_per_trial']:,} tokens, {per_parameter:.2g} per parameter",
        ),
        ("schedule", words.plain(study["schedule"])),
        ("clipping", f"global norm {study['clip']}"),
        ("seeds", f"tuning {study['tuning_seed']}; evaluation {', '.join(map(str, study['seeds']))}"),
        ("machine", words.plain(study["environment"])),
        ("versions", words.plain(study["versions"])),
        ("command", str(study["command"])),
    ]


def _tuning(r: Result) -> tuple[str, ...]:
    rest = {key: value for key, value in r.hyper.items() if key != "lr" and value is not None}
    return (
        r.title,
        words.count(r.tuning_tokens),
        words.duration(r.tuning_seconds),
        words.rate(r.sweep.vertex),
        words.plain(rest) or words.NONE,
    )


def _trial(record: Record) -> dict[str, Any]:
    loss = record["final"]["loss"]
    end = f"{loss:.4f}" if loss is not None else record["reason"] or "diverged"
    cells = (record["phase"], record["title"], words.rate(record["hyper"]["lr"]), str(record["seed"]), end)
    return {"id": record["id"], "cells": cells}
