"""A run that is killed at any moment and continued is the run that was not, to the last bit."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from session_cases import LIFE, OBJECTIVES, Killed, Moments, assert_same, finished, session

RUNS: Mapping[str, Mapping[str, Any]] = {**OBJECTIVES, "stages": LIFE}


def whole(folder: Path, changes: Mapping[str, Any]) -> Moments:
    """The run that nobody stops, and every moment it passes."""
    with pytest.MonkeyPatch.context() as patch:
        moments = Moments(patch)
        finished(folder, changes)
    return moments


def killed(folder: Path, changes: Mapping[str, Any], at: int) -> Moments:
    with pytest.MonkeyPatch.context() as patch:
        moments = Moments(patch, at)
        with pytest.raises(Killed):
            session(folder, changes).run()
    return moments


@pytest.mark.parametrize("name", [*RUNS])
def test_killed_again_and_again(name: str, tmp_path: Path) -> None:
    """Every process gets a little further than the one before, and is killed at another kind of moment."""
    changes, folder = RUNS[name], tmp_path / "killed"
    usual = whole(tmp_path / "whole", changes)
    lengths = iter((7, 10, 14, 19, 25, 32, 40, 50, 70, 100, 200))
    kills = set()
    with pytest.MonkeyPatch.context() as patch:
        moments = Moments(patch)
        for moments.at in lengths:
            moments.log = []
            try:
                finished(folder, changes)
                break
            except Killed as killed:
                kills.add(str(killed))
    assert len(kills) > 1
    assert moments.fed == usual.fed
    assert_same(tmp_path / "whole", folder)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*RUNS])
def test_killed_at_every_moment(name: str, tmp_path: Path) -> None:
    changes = RUNS[name]
    usual = whole(tmp_path / "whole", changes)
    assert len(usual.log) > 30
    for at, moment in enumerate(usual.log):
        folder = tmp_path / "killed"
        shutil.rmtree(folder, ignore_errors=True)
        before = killed(folder, changes, at)
        assert before.log == usual.log[: at + 1], "nothing but the order of moments leads here"
        with pytest.MonkeyPatch.context() as patch:
            after = Moments(patch)
            finished(folder, changes)
        for part in (before.fed, after.fed):
            assert part.items() <= usual.fed.items(), moment
        assert_same(tmp_path / "whole", folder)
