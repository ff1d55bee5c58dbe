"""A real Ray cluster on this machine: the same losses, and trials that survive their workers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mortal import FOLDER, runs
from shared import complete, narrow, numbers
from typer.testing import CliRunner

from steepest.cli.app import app
from steepest.contract import SteepestError
from steepest.lab.executors import Job, Start, executor

ray = pytest.importorskip("ray", reason="ray is not installed (pip install 'steepest[ray]')")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def control(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("control")


@pytest.fixture(scope="module")
def cluster(control: Path) -> Iterator[Start]:
    """A cluster of two CPUs, started by our own executor; those opened meanwhile join it."""
    start = executor("ray")
    assert start is not None
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(FOLDER, str(control))
        patch.delenv("RAY_ADDRESS", raising=False)
        assert not ray.is_initialized()
        with start(str, 2, control) as own:
            assert own.workers == 2 and ray.cluster_resources()["CPU"] == 2
            yield start
    assert not ray.is_initialized(), "what we started is stopped"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The study without Ray, in this process."""
    folder = tmp_path_factory.mktemp("finished")
    complete(folder)
    return folder


@pytest.fixture(scope="module", autouse=True)
def small() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        narrow(patch)
        yield


def once(*jobs: Job) -> Any:
    lots = [list(jobs)]
    return lambda: lots.pop() if lots else []


def test_losses_are_those_of_this_process_though_a_worker_is_killed_in_a_trial(
    cluster: Start, control: Path, finished: Path, tmp_path: Path
) -> None:
    before = runs(control)
    (control / "armed").touch()
    came = complete(tmp_path, cluster)
    assert list(control.glob("died-*")), "one was killed"
    assert came == len(numbers(finished))
    assert runs(control) - before == came + 1, "and its trial alone ran again"
    assert numbers(tmp_path) == numbers(finished)


def test_a_trial_that_always_kills_its_worker_is_named(cluster: Start, control: Path, tmp_path: Path) -> None:
    (control / "deadly").touch()
    try:
        with pytest.raises(SteepestError, match=r"died 3 times running tune-\S+ \(WorkerCrashedError\)"):
            complete(tmp_path, cluster, optimizers=("adamw",), workers=1)
    finally:
        (control / "deadly").unlink()
    assert not (tmp_path / "trials").exists()


def test_a_failure_in_a_worker_is_one_sentence(cluster: Start, tmp_path: Path) -> None:
    with (
        cluster(int, 1, tmp_path) as ours,
        pytest.raises(SteepestError, match=r"a trial failed with TypeError: .*; look at the model"),
    ):
        list(ours.run(once(("a", {"nonsense": 1}))))


def test_workers_default_to_what_the_cluster_has_room_for(cluster: Start, tmp_path: Path) -> None:
    start = executor("ray", "cpus=0.5")
    assert start is not None
    with start(dict, None, tmp_path) as ours:
        assert ours.workers == 4
        found = dict(ours.run(once(*((str(i), {"x": i}) for i in range(6)))))
        assert found == {str(i): {"x": i} for i in range(6)}
    assert ray.is_initialized(), "a cluster that was there before is left alone"


def test_the_command_line_runs_a_study_on_the_cluster(
    cluster: Start, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = "compare mortal:bigram synthetic:0:20000 -o adamw -b 20steps -s 1 --batch 2 --context 16 --out s"
    shown = CliRunner().invoke(app, [*words.split(), "--executor", "ray", "--executor-options", "cpus=0.5"])
    assert shown.exit_code == 0, shown.output
    assert "4 at a time" in shown.output
    found = numbers(tmp_path / "s")
    assert len(found) == 4
    assert found.items() <= numbers(finished).items()


def test_an_address_without_a_cluster_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: Any) -> None:
        raise ConnectionError("Could not find any running\nRay instance.")

    start = executor("ray", "address=nowhere:1")
    assert start is not None
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", refuse)
    with pytest.raises(
        SteepestError, match=r"no Ray cluster could be reached at nowhere:1 .*check the address"
    ):
        start(str, 1, tmp_path).__enter__()
