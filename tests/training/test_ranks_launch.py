"""Ranks started by the command itself and by torchrun; restarts; another number of ranks than before."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from rank_cases import start
from session_cases import BASE, OBJECTIVES, finished, session

from steepest.contract import SteepestError
from steepest.training import Stop, Stopped
from steepest.training.checkpoint import Store
from steepest.training.journal import read_journal, read_metrics
from steepest.training.launch import _ended

HERE = Path(__file__).parent
KEPT = {"every": 1, "keep": 100, "minutes": None, "background": False}
RUN: Mapping[str, Any] = {
    **BASE,
    **OBJECTIVES["next_token"],
    "accumulate": 1,
    "placement": "ddp",
    "steps": 6,
    "checkpoint": KEPT,
}


def command(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join([str(HERE), str(HERE.parent / "lab")])
    environment = {**os.environ, "PYTHONPATH": paths, "MARK": str(folder / "mark"), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *words], env=environment, capture_output=True, text=True, timeout=300, cwd=folder
    )


def test_a_killed_rank_is_started_again_and_the_run_is_the_one_that_was_not_killed(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(yaml.safe_dump({**RUN, "model": "rank_cases:dying"}))
    train = ("-m", "steepest", "train", "run.yaml", "--out")
    done = command(tmp_path, *train, "killed", "--nproc", "2", "--restarts", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "mark").exists(), "rank 1 was killed"
    kinds = [line["kind"] for line in read_journal(tmp_path / "killed")]
    assert kinds.count("start") == kinds.count("resume") == 1
    assert done.stdout.count("validation loss") == 1, "only rank 0 speaks"
    assert "continued from gen-00000" in done.stdout
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    again = command(tmp_path, *torchrun, *train, "whole")
    assert again.returncode == 0, again.stdout + again.stderr
    ours, theirs = (Store(tmp_path / name / "checkpoints").load() for name in ("killed", "whole"))
    assert ours.step == theirs.step == 6
    for group in ("policy", "optimizer"):
        for name, tensor in theirs.tensors[group].items():
            assert torch.equal(ours.tensors[group][name], tensor), f"{group}/{name}"
    assert (tmp_path / "whole" / "model").is_dir() and (tmp_path / "killed" / "run.json").exists()


def test_a_mistake_in_the_config_is_told_once_before_anything_is_started(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(yaml.safe_dump({**RUN, "model": "tiny", "batch": 1}))
    done = command(tmp_path, "-m", "steepest", "train", "run.yaml", "--nproc", "2")
    assert done.returncode == 1
    assert done.stderr.count("a batch of 1 has no row for each of 2 ranks") == 1


def failed(code: int, timestamp: int = 0) -> Any:
    return SimpleNamespace(exitcode=code, timestamp=timestamp)


def test_the_first_rank_that_failed_is_named() -> None:
    error = _ended({0: failed(1, 5), 2: failed(-signal.SIGKILL, 3)}, restarts=2)
    assert isinstance(error, SteepestError)
    assert str(error).startswith("rank 2 was killed by SIGKILL, after 2 restarts; the same command goes on")
    assert "rank 1 ended with status 3" in str(_ended({1: failed(3)}, restarts=0))
    stopped = _ended({0: failed(128 + signal.SIGTERM)}, restarts=0)
    assert isinstance(stopped, Stopped) and stopped.code == 143


# ---------------------------------------------------------------------- another number of ranks

KINDS = ("ddp", "zero1", "fsdp")
PLAIN: Mapping[str, Any] = {
    **OBJECTIVES["next_token"],
    "model": "session_cases:still",
    "optimizer": {"name": "adamw", "lr": 0.01, "eps": 1e-3},
    "steps": 6,
    "checkpoint": {"every": None, "minutes": None, "background": False},
}


class After(Stop):
    """A signal that comes while this step is being taken."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.step = step

    def log(self, step: int, values: Any) -> None:
        if step == self.step:
            self.asked = signal.SIGTERM


def test_a_run_of_two_ranks_is_continued_by_one_and_then_by_three(tmp_path: Path) -> None:
    finished(tmp_path / "whole", PLAIN)
    cases = {kind: {"changes": {**PLAIN, "placement": kind}} for kind in KINDS}
    stopping = {kind: {**case, "fault": "sigterm", "step": 1} for kind, case in cases.items()}
    assert all(own["stopped"] == signal.SIGTERM for own in start(2, tmp_path, stopping)[0].values())
    for kind in KINDS:
        stop = After(4)
        with pytest.raises(Stopped):
            session(tmp_path / kind, cases[kind]["changes"], stop=stop, log=stop.log).run()
    start(3, tmp_path, cases)
    whole = Store(tmp_path / "whole" / "checkpoints").load()
    for kind in KINDS:
        lines = [line for line in read_journal(tmp_path / kind) if line["kind"] in ("start", "resume")]
        assert [line["ranks"] for line in lines] == [2, 1, 3]
        assert [line["step"] for line in lines] == [0, 2, 4]
        ours = Store(tmp_path / kind / "checkpoints").load()
        assert ours.tensors.keys() == whole.tensors.keys() and ours.step == whole.step == 6
        for group in ("policy", "optimizer"):
            assert ours.tensors[group].keys() == whole.tensors[group].keys()
            for name, tensor in whole.tensors[group].items():
                torch.testing.assert_close(ours.tensors[group][name], tensor, rtol=1e-3, atol=2e-5)
        losses = [[line["loss"] for line in read_metrics(tmp_path / name)] for name in (kind, "whole")]
        assert losses[0] == pytest.approx(losses[1], abs=1e-5)
