"""A storage that hangs: training goes on beside it, and what ends a run waits for it."""

from __future__ import annotations

import time
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from session_cases import OBJECTIVES, finished

from steepest.training.checkpoint import Store
from steepest.training.checkpoint.disk import Disk
from steepest.training.journal import read_journal

BESIDE = {
    **OBJECTIVES["next_token"],
    "steps": 6,
    "timeout": 0.1,
    "checkpoint": {"every": 1, "keep": 100, "minutes": None},
}


def hang_in_third_write(monkeypatch: pytest.MonkeyPatch, hang: Any) -> None:
    usual, calls = Disk.sync, []

    def sync(disk: Disk, *given: Any) -> Any:
        calls.append(given)
        if len(calls) == 3:
            hang()
        return usual(disk, *given)

    monkeypatch.setattr(Disk, "sync", sync)


def failed(folder: Path) -> list[str]:
    return [event["reason"] for event in read_journal(folder) if event["kind"] == "checkpoint_failed"]


def test_the_last_save_waits_for_a_storage_that_comes_back(tmp_path, monkeypatch):
    hang_in_third_write(monkeypatch, lambda: time.sleep(0.6))
    run = finished(tmp_path, BESIDE)
    assert any("hangs" in reason for reason in failed(tmp_path))
    loaded = Store(tmp_path / "checkpoints").load()
    assert loaded.step == 6 and len(run.results[0].curves[0].loss) == 6


def test_a_storage_that_never_comes_back_does_not_keep_the_run(tmp_path, monkeypatch):
    back = Event()
    hang_in_third_write(monkeypatch, back.wait)
    try:
        run = finished(tmp_path, BESIDE)
    finally:
        back.set()
    assert len(run.results[0].curves[0].loss) == 6
    assert "the storage hangs" in failed(tmp_path)[-1]
