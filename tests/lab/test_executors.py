"""The rule of all executors (each job is answered once, whatever dies), and the words that choose one."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steepest.contract import SteepestError
from steepest.lab.executors import EXECUTORS, Executor, Job, Lost, attempt, executor
from steepest.lab.executors.choice import RayOptions, SlurmOptions


class Scripted(Executor[int]):
    """Workers that die as often as a script says, by job, and end in the order of its choices."""

    advice = "mend the script"

    def __init__(self, workers: int, deaths: dict[str, int], choose: Callable[[list[int]], int]) -> None:
        super().__init__(str, workers)
        self.deaths, self.choose = dict(deaths), choose
        self.handed: list[str] = []
        self.stopped: list[int] = []
        self.most = 0

    def _submit(self, job: Job) -> int:
        self.handed.append(job[0])
        self.most = max(self.most, len(self._running) + 1)
        return len(self.handed)

    def _ended(self, handles: list[int]) -> list[int]:
        return [self.choose(handles)]

    def _answer(self, handle: int) -> Any:
        key, arguments = self._running[handle]
        if self.deaths.get(key, 0):
            self.deaths[key] -= 1
            raise Lost("no current")
        return attempt(lambda x: x if x >= 0 else 1 / 0, arguments)

    def _stop(self, handle: int) -> None:
        self.stopped.append(handle)


def once(jobs: list[Job]) -> Callable[[], list[Job]]:
    lots = [jobs]
    return lambda: lots.pop() if lots else []


def jobs(count: int) -> list[Job]:
    return [(str(x), {"x": x}) for x in range(count)]


@given(data=st.data(), count=st.integers(0, 12), workers=st.integers(1, 5))
def test_every_job_is_answered_once_whoever_dies(data: st.DataObject, count: int, workers: int) -> None:
    deaths = {str(x): data.draw(st.integers(0, Executor.lives - 1)) for x in range(count)}
    scripted = Scripted(workers, deaths, lambda handles: data.draw(st.sampled_from(handles)))
    found = list(scripted.run(once(jobs(count))))
    assert sorted(found) == sorted((str(x), x) for x in range(count))
    assert len(scripted.handed) == count + sum(deaths.values())
    assert scripted.most <= workers and not scripted.stopped


def test_a_job_that_always_kills_is_named_and_the_rest_is_stopped() -> None:
    scripted = Scripted(
        3, {"1": 99}, lambda handles: next(h for h in handles if scripted._running[h][0] == "1")
    )
    with pytest.raises(SteepestError, match=r"died 3 times running 1 \(no current\); mend the script\."):
        list(scripted.run(once(jobs(3))))
    assert scripted.handed.count("1") == 3
    assert len(scripted.stopped) == 2
    scripted.deaths, scripted.choose = {}, min
    assert len(list(scripted.run(once(jobs(3))))) == 3, "it can be used again"


def test_a_failure_is_a_sentence_and_the_rest_is_stopped() -> None:
    scripted = Scripted(2, {}, lambda handles: handles[0])
    with pytest.raises(SteepestError, match="a trial failed with ZeroDivisionError: division by zero"):
        list(scripted.run(once([("bad", {"x": -1}), ("good", {"x": 1})])))
    assert scripted.stopped == [2]


def test_a_run_left_early_stops_what_is_under_way() -> None:
    scripted = Scripted(4, {}, lambda handles: handles[0])
    for _ in scripted.run(once(jobs(4))):
        break
    assert sorted(scripted.stopped) == [2, 3, 4]


# ---------------------------------------------------------------------- the words


def test_local_is_the_machine_itself() -> None:
    assert executor("local") is None
    assert set(EXECUTORS) == {"local", "ray", "slurm"}


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("slrum", "", "unknown executor 'slrum'; did you mean 'slurm'?"),
        ("slurm", "partion=gpu", "did you mean 'partition'?"),
        ("ray", "adress=auto", "did you mean 'address'?"),
        ("ray", "partition=gpu", "unknown key in --executor-options of ray 'partition'"),
        ("slurm", "time=soon", "--executor-options of slurm: time: input should be a valid integer"),
        ("slurm", "time=0", "time: input should be greater than or equal to 1"),
        ("slurm", "cluster=cloud", "cluster: string should match pattern"),
        ("ray", "cpus=0", "cpus: input should be greater than 0"),
        ("ray", "cpus=nan", "cpus: "),
        ("ray", "cpus", "'cpus' is not key=value; write it as in cpus=2"),
        ("ray", "=2", "'=2' is not key=value"),
        ("ray", "cpus=1,cpus=2", "cpus is given twice"),
        ("local", "cpus=2", "--executor local takes no options"),
    ],
)
def test_a_wrong_word_is_one_sentence(name: str, options: str, words: str) -> None:
    with pytest.raises(SteepestError) as caught:
        executor(name, options)
    assert words in str(caught.value) and "\n" not in str(caught.value)


class Library:
    """Stands for ray or submitit: nothing of it is used before the executor is opened."""

    SlurmJob = LocalJob = object


def given_to(name: str, options: str, device: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    real = importlib.import_module
    fake = {"ray": Library, "submitit": Library}
    monkeypatch.setattr(importlib, "import_module", lambda n: fake[n] if n in fake else real(n))
    start = executor(name, options, device)
    assert start is not None
    return start(str, None, Path("study"))


@pytest.mark.parametrize(
    ("name", "options", "device", "parsed"),
    [
        ("ray", "", "cpu", RayOptions()),
        ("ray", " address=head:6379, cpus = 0.5 ,", "cpu", RayOptions(address="head:6379", cpus=0.5)),
        ("ray", "", "cuda", RayOptions(gpus=1)),
        ("ray", "gpus=0.25", "cuda", RayOptions(gpus=0.25)),
        ("slurm", "partition=short,time=90", "cpu", SlurmOptions(partition="short", time=90)),
        ("slurm", "constraint=a=b", "cuda", SlurmOptions(constraint="a=b", gpus=1)),
    ],
)
def test_options_are_read(
    name: str, options: str, device: str, parsed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert given_to(name, options, device, monkeypatch)._options == parsed


@pytest.mark.parametrize(("name", "module"), [("ray", "ray"), ("slurm", "submitit")])
def test_an_absent_library_is_a_sentence_that_installs_it(
    name: str, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.import_module

    def absent(wanted: str) -> Any:
        if wanted == module:
            raise ImportError(f"No module named {wanted!r}")
        return real(wanted)

    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(SteepestError, match=rf"needs {module}, .*pip install 'steepest\[{name}\]'"):
        executor(name)
