"""A run that is killed at any moment and continued is the run that was not, to the last bit."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from session_cases import LIFE, OBJECTIVES, Killed, Moments, assert_same, finished

RUNS: Mapping[str, Mapping[str, Any]] = {**OBJECTIVES, "stages": LIFE}


def whole(folder: Path, changes: Mapping[str, Any]) -> Moments:
    """The run that nobody stops, and every moment it passes."""
    with pytest.MonkeyPatch.context() as patch:
        moments = Moments(patch)
        finished(folder, changes)
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
    """What a process leaves when it is killed is its folder as it is at that moment: the folder is copied at
    every moment that finds another one, and every copy is continued."""
    changes, folder = RUNS[name], tmp_path / "whole"
    copies: dict[Any, Path] = {}

    def look() -> None:
        files = (path for path in folder.rglob("*") if path.is_file())
        state = frozenset((str(path.relative_to(folder)), path.stat().st_size) for path in files)
        if state not in copies:
            copies[state] = tmp_path / f"killed{len(copies)}"
            shutil.copytree(folder, copies[state])

    folder.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        usual = Moments(patch)
        usual.look = look
        finished(folder, changes)
    assert len(usual.log) > 30 and len(copies) > 7
    for left in copies.values():
        with pytest.MonkeyPatch.context() as patch:
            after = Moments(patch)
            finished(left, changes)
        assert after.fed.items() <= usual.fed.items(), "the same data, in the same order"
        assert_same(folder, left)
