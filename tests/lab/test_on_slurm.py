"""Slurm by way of submitit: jobs of its local executor, and of a Slurm that is four shell commands long."""

from __future__ import annotations

import os
import signal
import stat
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from mortal import FOLDER, runs
from shared import complete, narrow, numbers

from steepest.contract import SteepestError
from steepest.lab.executors import Executor, Job, executor

submitit = pytest.importorskip("submitit", reason="submitit is not installed (pip install 'steepest[slurm]')")

HERE = Path(__file__).parent
PATIENCE = 120


def work(*, act: str, x: int = 0, marker: str = "") -> Any:
    """What the jobs of these tests run."""
    if act == "refuse":
        raise SteepestError("no such thing; try another")
    if act == "die":
        with open(marker, "a") as file:
            file.write("x")
        if len(Path(marker).read_text()) < x:
            os.kill(os.getpid(), signal.SIGKILL)
    if act == "wait":
        Path(marker).touch()
        while Path(marker).exists():
            time.sleep(0.05)
    return {"x": x, "third": 1 / 3, "nothing": None}


def result(x: int) -> dict[str, Any]:
    return {"x": x, "third": 1 / 3, "nothing": None}


def once(*jobs: Job) -> Callable[[], list[Job]]:
    lots = [list(jobs)]
    return lambda: lots.pop() if lots else []


def until(true: Callable[[], object]) -> None:
    end = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs are processes that share nothing with this one but their environment."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(HERE), *filter(None, sys.path)]))
    monkeypatch.setattr("steepest.lab.executors.on_slurm.PAUSE", 0.1)


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The state of a Slurm whose commands are found first."""
    commands, state = tmp_path / "bin", tmp_path / "slurm"
    for folder in (commands, state / "pids", state / "ends"):
        folder.mkdir(parents=True)
    for name in ("sbatch", "srun", "sacct", "scancel"):
        script = commands / name
        script.write_bytes((HERE / "fake_slurm.sh").read_bytes())
        script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{commands}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_SLURM", str(state))
    submitit.SlurmJob.watcher.clear()  # it knows jobs by number, and numbers begin anew
    yield state
    for path in (state / "pids").iterdir():
        if not (state / "ends" / path.name).exists():
            os.killpg(int(path.read_text()), signal.SIGKILL)


def open_(folder: Path, options: str = "", workers: int | None = 2) -> Executor[Any]:
    start = executor("slurm", options)
    assert start is not None
    return start(work, workers, folder)


def submitted(state: Path) -> int:
    path = state / "submitted"
    return len(path.read_text().splitlines()) if path.exists() else 0


def test_a_job_answers_through_slurm_with_the_options_that_were_given(slurm: Path, tmp_path: Path) -> None:
    with open_(tmp_path, "partition=short,time=7,cpus=3,account=us,qos=low,constraint=avx", None) as ours:
        assert ours.workers == 16
        assert list(ours.run(once(("a", {"act": "add", "x": 5})))) == [("a", result(5))]
    (script,) = (tmp_path / "jobs" / "a").glob("*_submission.sh")
    asked = script.read_text()
    for words in (
        "--partition=short",
        "--time=7",
        "--cpus-per-task=3",
        "--account=us",
        "--qos=low",
        "--constraint=avx",
        "--job-name=steepest",
    ):
        assert f"#SBATCH {words}\n" in asked


def test_answers_and_failures_of_jobs(slurm: Path, tmp_path: Path) -> None:
    """A job that is killed is submitted again; one that fails is a sentence, and is tried anew next time."""
    marker = str(tmp_path / "deaths")
    with open_(tmp_path) as ours:
        dies = ("dies", {"act": "die", "x": 2, "marker": marker})
        assert list(ours.run(once(dies))) == [("dies", result(2))]
        assert Path(marker).read_text() == "xx" and submitted(slurm) == 2
        with pytest.raises(SteepestError, match=r"^no such thing; try another$"):
            list(ours.run(once(("b", {"act": "refuse"}))))
        assert list(ours.run(once(("b", {"act": "add", "x": 1})))) == [("b", result(1))]
        assert submitted(slurm) == 4


def test_jobs_of_a_study_that_was_killed_are_found_again(slurm: Path, tmp_path: Path) -> None:
    """It left one answer and one job that runs; neither is submitted a second time."""
    marker = tmp_path / "waiting"
    jobs = [("ready", {"act": "add", "x": 1}), ("runs", {"act": "wait", "x": 2, "marker": str(marker)})]
    killed = open_(tmp_path)
    for job in jobs:
        killed._submit(job)
    until(lambda: marker.exists() and (tmp_path / "jobs" / "ready" / "1.json").exists())

    with open_(tmp_path) as ours:
        found = []
        for key, answer in ours.run(once(*jobs)):
            found.append((key, answer))
            marker.unlink(missing_ok=True)
    assert found == [("ready", result(1)), ("runs", result(2))]
    assert submitted(slurm) == 2


def test_jobs_under_way_are_cancelled_when_a_run_ends_early(slurm: Path, tmp_path: Path) -> None:
    marker = tmp_path / "waiting"
    jobs = [("ready", {"act": "add"}), ("runs", {"act": "wait", "marker": str(marker)})]
    with open_(tmp_path) as ours:
        for key, _ in ours.run(once(*jobs)):
            assert key == "ready"
            break
    assert (slurm / "ends" / "2").read_text() == "CANCELLED\n"


@pytest.mark.slow
def test_a_study_by_submitit_on_this_machine_has_the_losses_of_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    control = tmp_path / "control"
    control.mkdir()
    (control / "armed").touch()
    narrow(monkeypatch)
    complete(tmp_path / "here", optimizers=("adamw",))
    monkeypatch.setenv(FOLDER, str(control))
    came = complete(tmp_path / "there", executor("slurm", "cluster=local"), optimizers=("adamw",), workers=2)
    assert list(control.glob("died-*")) and runs(control) == came + 1
    assert numbers(tmp_path / "there") == numbers(tmp_path / "here")
    assert len(numbers(tmp_path / "here")) == came == 4


def test_a_submission_that_slurm_refuses_is_a_sentence_with_its_reason(slurm: Path, tmp_path: Path) -> None:
    (slurm / "refuse").write_text("sbatch: error: invalid partition specified: shrt\n")
    with (
        open_(tmp_path, "partition=shrt") as ours,
        pytest.raises(
            SteepestError,
            match=r"Slurm took no job \(.*invalid partition specified: shrt.*--executor-options",
        ),
    ):
        list(ours.run(once(("a", {"act": "add"}))))


def test_without_slurm_there_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SteepestError, match=r"there is no Slurm here \(no srun\).*cluster=local"):
        open_(tmp_path).__enter__()


def test_an_answer_that_is_damaged_does_not_count(slurm: Path, tmp_path: Path) -> None:
    folder = tmp_path / "jobs" / "a"
    folder.mkdir(parents=True)
    for number, answer in enumerate((b"", b"[]", b'{"neither": 1}', b"\xff"), start=50):
        (folder / f"{number}_submitted.pkl").touch()
        (folder / f"{number}.json").write_bytes(answer)
        (slurm / "ends" / str(number)).write_text("FAILED\n")
    with open_(tmp_path) as ours:
        assert list(ours.run(once(("a", {"act": "add", "x": 3})))) == [("a", result(3))]
    assert submitted(slurm) == 1
