"""The page of a run that is still going: what run.json will say in the end is read from the journal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from test_run_page import STAGES, STEPS, UNITS, made

from steepest.lab.report import read_story, render_run
from steepest.lab.report.run_words import verdict

RL = STAGES[-1]
START = (len(STAGES) - 1) * STEPS


def running(folder: Path, last: int, validation: Any = 0.3) -> Path:
    """A policy gradient stage that has begun; its journal as training writes it."""
    told = {"name": RL["name"], "objective": RL["objective"], "unit": UNITS[RL["objective"]]}
    events = [("stage", START, told), ("baseline", START + 1, {"validation": validation})]
    return made(folder, finished=False, last=last, events=events)


def test_a_stage_that_runs_has_its_unit_and_its_start(tmp_path: Path) -> None:
    story = read_story(running(tmp_path / "run", last=20))
    assert story.last.unit == "of answers right"
    assert (story.last.before, story.last.after) == (0.3, 0.38)
    assert story.last.validation.steps.tolist() == [START, START + 20]
    told = next(sentence for sentence in verdict(story) if sentence.startswith("Right answers"))
    assert "30% (20 to 42%) before reinforcement learning, 38% (27 to 50%) so far" in told
    page = render_run(story)
    assert "30%" in page and "validation before the first step: 0.3" in page


def test_before_the_first_validation_of_the_stage_only_its_start_is_known(tmp_path: Path) -> None:
    story = read_story(running(tmp_path / "run", last=15))
    assert (story.last.before, story.last.after) == (0.3, None)
    assert not any("Right answers" in sentence for sentence in verdict(story))
    assert "30%" in render_run(story)


def test_a_journal_without_them_is_read_as_before(tmp_path: Path) -> None:
    story = read_story(made(tmp_path / "run", finished=False, last=20))
    assert (story.last.unit, story.last.before, story.last.after) == ("reward", None, 0.38)


def test_a_start_that_is_no_number_is_not_there(tmp_path: Path) -> None:
    story = read_story(running(tmp_path / "run", last=20, validation=[3]))
    assert story.last.before is None
    assert "validation before the first step: –" in render_run(story)
