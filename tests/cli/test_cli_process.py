"""The installed script in processes of its own: signals, exit codes, and what is left behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

SCRIPT = Path(sys.executable).with_name("steepest")
TOYS = Path(__file__).parents[1] / "lab"
PATIENCE = 240
"""Seconds a process may take on a busy machine before a test gives up on it."""
STUDY = ["compare", "toys:bigram", "synthetic:0:20000", "-o", "lion", "--seeds", "2", "--batch", "2"]
STUDY += ["--context", "16", "--budget", "400steps", "--workers", "2", "--out", "s"]

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """`steepest ARGUMENTS` in a process group of its own, in an empty folder."""
    started: list[subprocess.Popen[str]] = []

    def steepest(*arguments: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [str(SCRIPT), *arguments],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(TOYS), "COLUMNS": "200"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
            # A test run started in the background of a shell ignores SIGINT, and its children would too.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        started.append(process)
        return process

    yield steepest
    for process in started:
        if group(process):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def group(process: subprocess.Popen[str]) -> list[int]:
    """Processes of the group that still run; those that only wait to be noticed do not."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, own = stat.read_text().rpartition(")")[2].split()[:3]
        except OSError:  # it has just ended
            continue
        if int(own) == process.pid and state != "Z":
            found.append(int(stat.parent.name))
    return found


def until(true: Callable[[], object]) -> None:
    end = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


def end(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=PATIENCE)
    assert "Traceback" not in out + err
    return process.returncode, out, err


def trials(folder: Path) -> list[Path]:
    return list((folder / "s" / "trials").glob("*.json"))


needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads processes from /proc")


@needs_proc
@pytest.mark.slow
def test_ctrl_c_keeps_the_records_leaves_no_process_and_the_study_goes_on(
    start: Start, tmp_path: Path
) -> None:
    study = start(*STUDY)
    until(lambda: len(trials(tmp_path)) >= 2 or study.poll() is not None)

    code, _, err = end(start(*STUDY))
    assert code == 1
    assert err == f"error: s is in use by process {study.pid}; wait for it, or choose another --out.\n"

    os.killpg(study.pid, signal.SIGINT)
    code, out, err = end(study)
    assert (code, err) == (130, "")
    assert "stopped; finished trials are kept, run the same command again to go on" in out
    until(lambda: not group(study))
    kept = {path.name: path.read_bytes() for path in trials(tmp_path)}
    assert len(kept) >= 2

    code, out, err = end(start(*STUDY))
    assert (code, err) == (0, "")
    assert f"{len(kept)} trials are already in s and are used again" in out
    assert all((tmp_path / "s" / "trials" / name).read_bytes() == data for name, data in kept.items())
    assert (tmp_path / "s" / "report.html").exists() and (tmp_path / "s" / "recommended.yaml").exists()


@needs_proc
@pytest.mark.parametrize("delay", [0.0, 1.0])
def test_ctrl_c_while_the_workers_start_is_as_quiet(start: Start, tmp_path: Path, delay: float) -> None:
    study = start(*STUDY)
    until(lambda: len(group(study)) >= 4)  # itself, two workers, and the tracker of their resources
    time.sleep(delay)
    os.killpg(study.pid, signal.SIGINT)
    code, out, err = end(study)
    assert (code, err) == (130, "")
    assert "stopped" in out
    until(lambda: not group(study))


@needs_proc
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_no_worker_outlives_a_study_that_was_killed(start: Start, tmp_path: Path, how: int) -> None:
    study = start(*STUDY)
    until(lambda: len(group(study)) >= 4)
    os.kill(study.pid, how)
    study.wait(timeout=PATIENCE)
    until(lambda: not group(study))


@needs_proc
@pytest.mark.slow
def test_a_worker_that_is_killed_costs_nothing_but_time(start: Start, tmp_path: Path) -> None:
    study = start(*STUDY)
    until(lambda: len(trials(tmp_path)) >= 1 or study.poll() is not None)
    workers = [
        pid
        for pid in group(study)
        if pid != study.pid and b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]
    assert workers
    os.kill(workers[0], signal.SIGKILL)
    code, out, err = end(study)
    assert (code, err) == (0, "")
    assert "report  s/report.html" in out


def test_a_model_that_raises_is_named_in_one_line(start: Start) -> None:
    code, _, err = end(start("compare", "toys:crashing", "synthetic:0:20000", "--workers", "1"))
    assert code == 1
    assert err == "error: a trial failed with RuntimeError: the cat is on the keyboard; look at the model.\n"


def test_a_wrong_option_has_exit_code_two_and_the_nearest_name(start: Start) -> None:
    code, _, err = end(start("compare", "--budgt", "5m"))
    assert code == 2 and "--budget" in err


def test_a_mistake_has_exit_code_one_and_one_line_on_stderr(start: Start) -> None:
    code, out, err = end(start("compare", "--optimizers", "lyon"))
    assert (code, out, err) == (1, "", "error: unknown optimizer 'lyon'; did you mean 'lion'?\n")


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    piped = f"'{SCRIPT}' optimizers | head -n 1"
    shown = subprocess.run(["bash", "-c", piped], capture_output=True, text=True, timeout=PATIENCE)
    assert re.match(r"name +state", shown.stdout) and shown.stderr == ""


@pytest.mark.slow
def test_ctrl_c_in_training_saves_and_stops(start: Start, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(
        "optimizer: {name: adamw, lr: 1e-3}\nmodel: toys:bigram\ndata: synthetic\nsteps: 10000000\n"
    )
    training = start("train", "run.yaml")
    until(lambda: (tmp_path / "runs" / "run" / ".lock").exists())
    time.sleep(2)
    os.killpg(training.pid, signal.SIGINT)
    code, out, err = end(training)
    assert (code, err) == (130, "") and "SIGINT: saving, then stopping" in out
    assert (tmp_path / "runs" / "run" / "checkpoints" / "CURRENT").exists()
