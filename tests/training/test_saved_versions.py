"""Saves of every version of a session's facts are read by this one; those of later versions are refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from saved_fixture import CONFIG, LAST, losses

from steepest.contract import SteepestError
from steepest.training import Session, parse_config
from steepest.training.checkpoint import Payload, Store
from steepest.training.saved_run import VERSION, curve_tensors, curves_of

FIXTURES = sorted((Path(__file__).parent / "fixtures").glob("session-*"))


def copied(fixture: Path, folder: Path) -> Path:
    return Path(shutil.copytree(fixture, folder / "run"))


def resumed(folder: Path) -> Session:
    session = Session(parse_config(CONFIG, "a test"), folder)
    session.run()
    return session


def test_there_is_a_save_of_every_version() -> None:
    assert [path.name for path in FIXTURES] == [f"session-{i + 1}" for i in range(VERSION)]
    sizes = [sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) for path in FIXTURES]
    assert all(size < 100_000 for size in sizes)


@pytest.mark.parametrize("fixture", FIXTURES, ids=lambda path: path.name)
def test_a_save_of_this_version_goes_on(fixture: Path, tmp_path: Path) -> None:
    """As the run that was never stopped went on, under the code of that time; other processors round a
    little differently."""
    folder, expected = copied(fixture, tmp_path), json.loads((fixture / "losses.json").read_text())
    assert len(losses(folder)) > LAST, "it was stopped after this step had been measured"
    session = resumed(folder)
    assert losses(folder) == pytest.approx(expected, rel=1e-4) and len(expected) > LAST + 1
    curves = [result.curves[0] for result in session.results]
    assert [curve.step for curve in curves] == [[1, 2, 3], [1, 2, 3, 4]]
    assert curves[0].loss + curves[1].loss == losses(folder)
    assert [result.curves[1].step[0] for result in session.results] == [0, 0]
    assert [result.unit for result in session.results] == ["nats a token"] * 2


def test_what_a_newer_version_has_saved_is_refused(tmp_path: Path) -> None:
    folder = copied(FIXTURES[-1], tmp_path)
    store = Store(folder / "checkpoints")
    found = store.load()
    facts = {"version": VERSION + 1, "config": found.facts["config"]}
    store.save(Payload(tensors=found.tensors, facts=facts), step=found.step, wait=True)
    with pytest.raises(SteepestError, match=rf"newer steepest \(version {VERSION + 1} .*; update steepest"):
        resumed(folder)


def test_curves_are_tensors_in_every_generation(tmp_path: Path) -> None:
    """The numbers come back as they were, whole ones whole."""
    folder = copied(FIXTURES[0], tmp_path)
    results = resumed(folder).results
    found = Store(folder / "checkpoints").load()
    assert found.facts["version"] == VERSION
    assert "curve" not in json.dumps({**found.facts, "config": None})
    assert {x.dtype for x in found.tensors["curves"].values()} == {torch.int64, torch.float64}
    assert curves_of(found.tensors["curves"]) == [result.curves for result in results]
    assert {type(n) for curve, _ in curves_of(found.tensors["curves"]) for n in curve.tokens} == {int}
    assert curve_tensors([]) == {} and curves_of({}) == []
