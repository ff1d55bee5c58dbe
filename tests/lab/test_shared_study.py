"""Several studies of one question in one folder, and studies that are killed: no trial counts twice."""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mortal import FOLDER, runs
from shared import Here, ask, complete, here, no_lock, numbers

from steepest.contract import SteepestError
from steepest.lab import Pool, Study
from steepest.lab import study as module
from steepest.lab.executors import Job
from steepest.lab.records import read_records
from steepest.training.claims import Claims


def coordinate(*, folder: str, control: str, locked: bool) -> int:
    """A whole study in a process of its own; how many records it saw come."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(FOLDER, control)
        patch.setattr(module, "Claims", functools.partial(Claims, beat=0.05))
        if not locked:
            patch.setattr(module, "lock", no_lock)
        return complete(Path(folder))


@pytest.fixture(scope="module")
def processes() -> Iterator[Pool]:
    """Two processes for studies. One that dies is started again with the same study: a restart."""
    with Pool(coordinate, 2) as pool:
        yield pool


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    assert complete(folder) == len(numbers(folder)) > 0
    return folder


def run(processes: Pool, *studies: dict[str, Any]) -> dict[str, int]:
    lots: list[list[Job]] = [[(str(i), study) for i, study in enumerate(studies)]]
    return dict(processes.run(lambda: lots.pop() if lots else []))


def test_two_studies_at_once_divide_the_trials_and_both_end_with_all(
    processes: Pool, finished: Path, tmp_path: Path
) -> None:
    control = tmp_path / "control"
    control.mkdir()
    study = {"folder": str(tmp_path / "study"), "control": str(control), "locked": False}
    seen = run(processes, study, study)
    assert runs(control) == len(numbers(finished)), "each trial ran once, in one of them"
    assert numbers(tmp_path / "study") == numbers(finished)
    assert len(seen) == 2
    assert list((tmp_path / "study" / "claims").iterdir()) == []


def test_a_study_that_is_killed_in_a_trial_runs_that_one_again_and_no_other(
    processes: Pool, finished: Path, tmp_path: Path
) -> None:
    control = tmp_path / "control"
    control.mkdir()
    (control / "armed").touch()
    study = {"folder": str(tmp_path / "study"), "control": str(control), "locked": True}
    run(processes, study)
    assert list(control.glob("died-*"))
    assert runs(control) == len(numbers(finished)) + 1
    assert numbers(tmp_path / "study") == numbers(finished)


def test_of_two_studies_one_that_dies_leaves_its_trial_to_the_other(
    processes: Pool, finished: Path, tmp_path: Path
) -> None:
    control = tmp_path / "control"
    control.mkdir()
    (control / "armed").touch()
    study = {"folder": str(tmp_path / "study"), "control": str(control), "locked": False}
    run(processes, study, study)
    assert runs(control) == len(numbers(finished)) + 1
    assert numbers(tmp_path / "study") == numbers(finished)


class Twice(Here):
    """Every trial's result comes a second time, from a worker that had seemed dead: with other times."""

    def run(self, next_jobs: Any) -> Iterator[tuple[str, Any]]:
        for key, result in super().run(next_jobs):
            yield key, result
            if "final" in result:
                yield key, {**result, "state_bytes": -1}


def test_a_result_that_comes_twice_counts_once(finished: Path, tmp_path: Path) -> None:
    complete(tmp_path, lambda task, workers, folder: Twice(task, 1))
    assert numbers(tmp_path) == numbers(finished)
    assert all(record["state_bytes"] >= 0 for record in read_records(tmp_path / "trials")[0]), "the first"


class Foreign(Here):
    """A worker with another torch."""

    def _answer(self, handle: str) -> Any:
        found = super()._answer(handle)
        if "id" in found:
            found = {**found, "id": "tune-x", "versions": {**found["versions"], "torch": "1.0"}}
        return found


def test_a_worker_with_other_versions_is_named_and_nothing_of_it_is_kept(tmp_path: Path) -> None:
    with pytest.raises(SteepestError, match=r"came back as tune-x: its worker has torch 1\.0 for "):
        complete(tmp_path, lambda task, workers, folder: Foreign(task, 1))
    assert not (tmp_path / "trials").exists()


def test_a_record_that_came_between_look_and_claim_is_not_run_again(finished: Path, tmp_path: Path) -> None:
    """Another study has finished a trial and dropped its claim just before this one claims it."""
    record = json.loads(sorted((finished / "trials").glob("tune-sgd-*.json"))[0].read_text())
    text = (finished / "trials" / f"{record['id']}.json").read_text()

    class Late(Claims):
        def take(self, key: str) -> bool:
            mine = super().take(key)
            if key == record["id"]:
                (tmp_path / "trials").mkdir(exist_ok=True)
                (tmp_path / "trials" / f"{key}.json").write_text(text)
            return mine

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "Claims", functools.partial(Late, beat=0.01))
        seen = complete(tmp_path)
    assert seen == len(numbers(finished))
    assert (tmp_path / "trials" / f"{record['id']}.json").read_text() == text
    assert numbers(tmp_path) == numbers(finished)


def test_an_executor_that_does_not_start_leaves_the_folder_free(tmp_path: Path) -> None:
    class Broken(Here):
        def __enter__(self) -> Any:
            raise SteepestError("no cluster")

    for _ in range(2):
        with (
            pytest.raises(SteepestError, match="no cluster"),
            Study(ask(), tmp_path, lambda *_: Broken(str, 1)),
        ):
            pass
    with contextlib.nullcontext(), Study(ask(), tmp_path, here):
        pass
