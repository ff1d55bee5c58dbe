"""What the journal of a session tells of its stages."""

from __future__ import annotations

from pathlib import Path

from session_cases import LIFE, finished

from steepest.training.journal import read_journal


def test_every_stage_tells_its_unit_and_its_first_validation(tmp_path: Path) -> None:
    run = finished(tmp_path, LIFE)
    events = read_journal(tmp_path)
    begun = [event for event in events if event["kind"] == "stage"]
    assert [event["unit"] for event in begun] == [result.unit for result in run.results]
    assert len({event["unit"] for event in begun}) > 1
    first = [(event["step"], event["validation"]) for event in events if event["kind"] == "baseline"]
    starts = [event["step"] + 1 for event in begun]
    assert first == [
        (step, result.curves[1].loss[0]) for step, result in zip(starts, run.results, strict=True)
    ]
