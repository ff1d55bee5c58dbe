"""Workers: every job is answered once, a death is survived once, and nothing outlives the pool."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from steepest.contract import SteepestError
from steepest.lab import Pool
from steepest.lab.pool import THREADS, Job


def work(*, act: str, **given: Any) -> Any:
    """What the workers of these tests run."""
    return ACTS[act](**given)


def square(x: int) -> int:
    return x * x


def refuse(why: str) -> None:
    raise SteepestError(why)


def stumble() -> None:
    raise KeyError("a bug\nof two lines")


def perish(marker: str, times: int) -> str:
    """Killed, as by the system, in its first `times` runs."""
    before = Path(marker).read_text() if Path(marker).exists() else ""
    Path(marker).write_text(before + "x")
    if len(before) < times:
        os.kill(os.getpid(), signal.SIGKILL)
    return "alive"


def describe() -> dict[str, Any]:
    import torch

    return {
        "pid": os.getpid(),
        "threads": torch.get_num_threads(),
        "environment": {name: os.environ.get(name) for name in THREADS},
        "deaf": signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, []),
    }


def sleep(seconds: float) -> None:
    time.sleep(seconds)


ACTS: dict[str, Callable[..., Any]] = {
    "square": square,
    "refuse": refuse,
    "stumble": stumble,
    "perish": perish,
    "describe": describe,
    "sleep": sleep,
}


def once(*jobs: Job) -> Callable[[], list[Job]]:
    """All jobs at the first call, none after."""
    lots = [list(jobs)]
    return lambda: lots.pop() if lots else []


def job(key: str, act: str, **given: Any) -> Job:
    return key, {"act": act, **given}


def alive(pid: int) -> bool:
    """Whether a process runs. One that ended and waits for its parent to notice does not."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except ProcessLookupError:
        return False
    except FileNotFoundError:  # it has just gone, or this system has no /proc
        return not Path("/proc").exists()


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    with Pool(work, 2) as pool:
        yield pool


def test_every_job_is_answered_once_under_its_own_key(pool: Pool) -> None:
    jobs = [job(str(x), "square", x=x) for x in range(40)]
    results = list(pool.run(once(*jobs)))
    assert len(results) == 40
    assert dict(results) == {str(x): x * x for x in range(40)}


def test_jobs_may_follow_from_results(pool: Pool) -> None:
    found: dict[str, int] = {}
    asked: set[int] = set()

    def next_jobs() -> list[Job]:
        ready = {2} | {value for value in found.values() if value < 1000}
        fresh = ready - asked
        asked.update(fresh)
        return [job(f"{x}^2", "square", x=x) for x in sorted(fresh)]

    for key, value in pool.run(next_jobs):
        found[key] = value
    assert found == {"2^2": 4, "4^2": 16, "16^2": 256, "256^2": 65536}


def test_no_jobs_no_results(pool: Pool) -> None:
    assert list(pool.run(list)) == []


def test_a_sentence_raised_in_a_worker_is_raised_here_and_the_pool_goes_on(pool: Pool) -> None:
    with pytest.raises(SteepestError, match=r"^no such thing; try another$"):
        list(pool.run(once(job("a", "refuse", why="no such thing; try another"))))
    assert list(pool.run(once(job("b", "square", x=3)))) == [("b", 9)]


def test_any_other_failure_is_named_in_one_line(pool: Pool) -> None:
    with pytest.raises(SteepestError, match=r"a trial failed with KeyError: .*a bug") as caught:
        list(pool.run(once(job("a", "stumble"))))
    assert "\n" not in str(caught.value)


def test_a_worker_killed_once_is_replaced_and_its_job_run_again(pool: Pool, tmp_path: Path) -> None:
    marker = str(tmp_path / "deaths")
    jobs = [job("dies", "perish", marker=marker, times=1), job("lives", "square", x=2)]
    assert dict(pool.run(once(*jobs))) == {"dies": "alive", "lives": 4}


def test_a_job_that_kills_twice_is_named(pool: Pool, tmp_path: Path) -> None:
    marker = str(tmp_path / "deaths")
    with pytest.raises(SteepestError, match=r"died twice running deadly \(exit code -9\).*--workers 1"):
        list(pool.run(once(job("deadly", "perish", marker=marker, times=9))))
    assert len(Path(marker).read_text()) == 2
    assert list(pool.run(once(job("b", "square", x=3)))) == [("b", 9)]


def test_workers_killed_while_idle_are_replaced(pool: Pool) -> None:
    pids = {result["pid"] for _, result in pool.run(once(*(job(str(i), "describe") for i in range(8))))}
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    results = dict(pool.run(once(*(job(str(x), "square", x=x) for x in range(4)))))
    assert results == {"0": 0, "1": 1, "2": 4, "3": 9}


def test_a_run_left_early_leaves_nothing_for_the_next(pool: Pool) -> None:
    for key, _ in pool.run(once(job("quick", "square", x=1), job("slow", "sleep", seconds=600))):
        assert key == "quick"
        break
    assert dict(pool.run(once(job("a", "square", x=5), job("b", "square", x=6)))) == {"a": 25, "b": 36}


def test_a_worker_computes_on_one_thread_and_does_not_hear_ctrl_c(pool: Pool) -> None:
    before = {name: os.environ.get(name) for name in THREADS}
    ((_, worker),) = pool.run(once(job("a", "describe")))
    assert worker["threads"] == 1 and worker["environment"] == THREADS
    assert worker["deaf"]
    assert {name: os.environ.get(name) for name in THREADS} == before
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_nothing_is_left_when_the_pool_closes(pool: Pool) -> None:
    others = set(multiprocessing.active_children())
    with Pool(work, 1) as small:
        (worker,) = set(multiprocessing.active_children()) - others
        assert list(small.run(once(job("a", "square", x=1)))) == [("a", 1)]
    assert worker.exitcode is not None, "it was waited for: no zombie"
    assert set(multiprocessing.active_children()) == others


def test_workers_end_with_a_parent_that_was_killed(tmp_path: Path) -> None:
    script = tmp_path / "study.py"
    script.write_text(
        "from test_pool import Pool, job, once, work\n"
        "if __name__ == '__main__':\n"
        "    with Pool(work, 1) as pool:\n"
        "        jobs = once(job('a', 'describe'), job('b', 'sleep', seconds=600))\n"
        "        for _, found in pool.run(jobs):\n"
        "            print(found['pid'], flush=True)\n"
    )
    path = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
    environment = {**os.environ, "PYTHONPATH": path}
    with subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, text=True, env=environment
    ) as study:
        assert study.stdout is not None
        worker = int(study.stdout.readline())
        assert alive(worker)
        study.kill()
    end = time.monotonic() + 60
    while alive(worker) and time.monotonic() < end:
        time.sleep(0.05)
    assert not alive(worker)
