"""Signals save once and stop; a killed process leaves what another one continues; a folder has one owner."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from session_cases import BASE, LIFE, OBJECTIVES, assert_same, finished, session

from steepest.contract import SteepestError
from steepest.training import Stop, Stopped, catching, lock
from steepest.training.checkpoint import Store
from steepest.training.journal import read_journal

TEXT: Mapping[str, Any] = {"data": "synthetic:0:4000", "steps": 5, "checkpoint": {"every": None}}
PROCESS = """
import json, os, signal, sys
import torch
from pathlib import Path
from session_cases import Moments, finished
from steepest.training import Stopped, catching, lock
import pytest

folder, changes, when = Path(sys.argv[1]), json.loads(sys.argv[2]), json.loads(sys.argv[3])
moments = Moments(pytest.MonkeyPatch())

def reach(moment):
    moments.log.append(moment)
    for number in when.get(str(len(moments.log) - 1), ()):
        os.kill(os.getpid(), number)

moments.reach = reach
with lock(folder), catching(lambda words: print(words, flush=True)) as stop:
    finished(folder, changes, stop=stop)
"""


def process(folder: Path, changes: Mapping[str, Any], when: Mapping[int, list[int]]) -> Any:
    """A run in a process of its own, which gets these signals at its own moments."""
    here = str(Path(__file__).parent)
    given = [str(folder), json.dumps(dict(changes)), json.dumps(when)]
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PROCESS), *given],
        env={**os.environ, "PYTHONPATH": here, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )


class After(Stop):
    """A signal that comes while this step is being taken."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.step = step

    def log(self, step: int, values: Any) -> None:
        if step == self.step:
            self.asked = signal.SIGTERM


@pytest.mark.parametrize("name", ["next_token", "sft", "grpo"])
def test_a_signal_saves_once_and_the_run_goes_on_from_there(name: str, tmp_path: Path) -> None:
    changes = {**OBJECTIVES[name], "checkpoint": {**BASE["checkpoint"], "every": None}, "steps": 4}
    finished(tmp_path / "whole", changes)
    stop, told = After(2), list[str]()
    with pytest.raises(Stopped) as stopped:
        finished(tmp_path / "cut", changes, stop=stop, log=stop.log, tell=told.append)
    assert stopped.value.code == 128 + signal.SIGTERM
    saved = [line for line in read_journal(tmp_path / "cut") if line["kind"] == "checkpoint"]
    assert [line["why"] for line in saved] == ["border", "signal"] and saved[-1]["step"] == 2
    assert told[-1] == "saved at step 2; the same command goes on from here"
    finished(tmp_path / "cut", changes)
    whole, cut = (Store(tmp_path / part / "checkpoints").load() for part in ("whole", "cut"))
    assert all(
        (own == cut.tensors[group][n]).all()
        for group, of in whole.tensors.items()
        for n, own in of.items()
        if not n.endswith("/seconds")
    )


def test_a_signal_in_a_stages_last_step_stops_at_the_border(tmp_path: Path) -> None:
    finished(tmp_path / "whole", LIFE)
    stop = After(2)
    with pytest.raises(Stopped):
        finished(tmp_path / "cut", LIFE, stop=stop, log=stop.log)
    assert Store(tmp_path / "cut" / "checkpoints").load().facts["index"] == 1
    finished(tmp_path / "cut", LIFE)
    assert_same(tmp_path / "whole", tmp_path / "cut")


def test_a_signal_in_the_last_step_of_all_changes_nothing(tmp_path: Path) -> None:
    stop = After(5)
    made = finished(tmp_path, TEXT, stop=stop, log=stop.log)
    assert made.results[-1].trained is not None


def test_a_disk_that_is_full_when_the_signal_comes_is_told(tmp_path: Path) -> None:
    stop, told = After(2), list[str]()
    made = session(tmp_path, TEXT, stop=stop, log=stop.log, tell=told.append)
    made.archive.store.disk.free = lambda path: 0  # type: ignore[method-assign]
    with pytest.raises(Stopped):
        made.run()
    assert not any(words.startswith("saved") for words in told)
    assert "no generation was written" in told[-1]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_handlers_are_there_while_a_run_lasts(number: int) -> None:
    before, told = signal.getsignal(number), list[str]()
    with catching(told.append) as stop:
        assert stop.asked is None
        signal.raise_signal(number)
        assert stop.asked == number and "saving, then stopping" in told[0]
        with pytest.raises(Stopped, match=signal.Signals(number).name):
            stop.check()
    assert signal.getsignal(number) is before


def test_another_thread_catches_nothing() -> None:
    found: list[Any] = []

    def run() -> None:
        before = signal.getsignal(signal.SIGTERM)
        with catching(found.append) as stop:
            found.append(signal.getsignal(signal.SIGTERM) is before and stop.asked is None)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [True]


@pytest.mark.slow
def test_processes_are_stopped_and_killed_and_the_run_is_the_same(tmp_path: Path) -> None:
    """SIGTERM, then a second signal while it saves, then SIGKILL in a step and in a save, then to the end."""
    changes = {**TEXT, "checkpoint": BASE["checkpoint"]}
    finished(tmp_path / "whole", changes)
    cut = tmp_path / "cut"
    stopped = process(cut, changes, {12: [signal.SIGTERM]})
    assert stopped.returncode == 128 + signal.SIGTERM, stopped.stderr
    assert "SIGTERM: saving, then stopping" in stopped.stdout
    at = Store(cut / "checkpoints").load().step
    twice = process(cut, changes, {5: [signal.SIGINT], 8: [signal.SIGINT]})
    assert twice.returncode == 128 + signal.SIGINT, twice.stderr
    assert Store(cut / "checkpoints").load().step >= at, "the last generation is whole"
    for moment in (3, 6, 9):
        assert process(cut, changes, {moment: [signal.SIGKILL]}).returncode == -signal.SIGKILL
    ended = process(cut, changes, {})
    assert ended.returncode == 0, ended.stderr
    assert_same(tmp_path / "whole", cut)


@pytest.mark.slow
def test_a_folder_has_one_owner_and_a_dead_owner_is_none(tmp_path: Path) -> None:
    """The system frees the lock with its process: what is written in the file decides nothing."""
    (tmp_path / ".lock").write_text("1")  # a process that lives, and does not hold it
    with lock(tmp_path):
        assert (tmp_path / ".lock").read_text() == str(os.getpid())
        other = process(tmp_path, TEXT, {})
        assert other.returncode == 1 and f"in use by process {os.getpid()}" in other.stderr
    killed = process(tmp_path, TEXT, {6: [signal.SIGKILL]})
    assert killed.returncode == -signal.SIGKILL
    assert int((tmp_path / ".lock").read_text()) != os.getpid()
    with lock(tmp_path):
        pass


def test_a_folder_is_locked_within_a_process_too(tmp_path: Path) -> None:
    with lock(tmp_path), pytest.raises(SteepestError, match="in use by process"), lock(tmp_path):
        raise AssertionError("two owners")
