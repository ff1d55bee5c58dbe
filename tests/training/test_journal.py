"""The diaries of a run: every line whole or absent, and never in training's way."""

from __future__ import annotations

import errno
import json
import logging
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from steepest.contract import SteepestError
from steepest.training.journal import METRICS, Journal, finite, read_journal, read_metrics

VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "run")
    journal.event("veto", 7, why="the loss is nan", culprits=["wte"])
    journal.metrics(1, {"loss": 2.5, "layers": {"wte": {"update_ratio": 1e-3}}})
    journal.metrics(9, {"step": 2, "attempt": 9})
    (event,) = read_journal(tmp_path / "run")
    assert event.pop("time").endswith("+00:00")
    assert event == {"kind": "veto", "step": 7, "why": "the loss is nan", "culprits": ["wte"]}
    assert read_metrics(tmp_path / "run") == [
        {"step": 1, "loss": 2.5, "layers": {"wte": {"update_ratio": 1e-3}}},
        {"step": 2, "attempt": 9},
    ]


def test_a_folder_without_diaries_has_none(tmp_path: Path) -> None:
    assert read_metrics(tmp_path) == read_journal(tmp_path) == []


@given(st.dictionaries(st.text(), VALUES, max_size=4))
def test_any_values_become_json(values: dict) -> None:
    line = finite(values)
    assert json.loads(json.dumps(line, allow_nan=False)) == line
    assert set(line) - {"nonfinite"} == set(values) - {"nonfinite"}


def test_what_is_not_finite_is_null_and_named() -> None:
    line = finite(
        {"loss": math.nan, "layers": {"wte": {"rms": math.inf}}, "list": [1.0, -math.inf], "lr": 1.0}
    )
    assert line == {
        "loss": None,
        "layers": {"wte": {"rms": None}},
        "list": [1.0, None],
        "lr": 1.0,
        "nonfinite": ["loss", "layers/wte/rms", "list/1"],
    }


def test_numbers_of_torch_and_numpy_are_numbers() -> None:
    given = {
        "a": torch.tensor(2.0),
        "b": np.float32(0.5),
        "c": torch.tensor([3]),
        "d": np.bool_(True),
        "e": Path("x"),
    }
    assert finite(given) == {"a": 2.0, "b": 0.5, "c": 3, "d": True, "e": "x"}
    assert finite({"a": torch.tensor(math.nan)}) == {"a": None, "nonfinite": ["a"]}


@pytest.mark.parametrize("torn", [b'{"step": 3, "lo', b"\xff\xfe\n", b"[1, 2]\n", b"nan\n", b"[" * 100_000])
def test_a_torn_last_line_is_left_out_and_the_next_one_is_whole(tmp_path: Path, torn: bytes) -> None:
    Journal(tmp_path).metrics(1, {"loss": 1.0})
    with open(tmp_path / METRICS, "ab") as file:
        file.write(torn)
    assert [line["step"] for line in read_metrics(tmp_path)] == [1]
    Journal(tmp_path).metrics(2, {"loss": 0.5})
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2]


@given(cut=st.integers(0, 120))
def test_a_file_cut_anywhere_loses_one_line_at_most(
    tmp_path_factory: pytest.TempPathFactory, cut: int
) -> None:
    folder = tmp_path_factory.mktemp("cut")
    journal = Journal(folder)
    for step in range(5):
        journal.metrics(step, {"loss": 1.5})
    journal.close()
    data = (folder / METRICS).read_bytes()[:cut]
    (folder / METRICS).write_bytes(data)
    whole = data.count(b"\n")
    steps = [line["step"] for line in read_metrics(folder)]
    assert steps[:whole] == list(range(whole)) and len(steps) <= whole + 1
    Journal(folder).metrics(9, {})
    assert [line["step"] for line in read_metrics(folder)] == [*steps, 9]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
def test_a_full_disk_is_counted_and_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / METRICS).symlink_to("/dev/full")
    journal = Journal(tmp_path)
    with caplog.at_level(logging.WARNING, "steepest"):
        for step in range(3):
            journal.metrics(step, {"loss": 1.0})
    assert journal.lost == 3
    assert [
        record.getMessage() for record in caplog.records if os.strerror(errno.ENOSPC) in record.getMessage()
    ]
    assert len(caplog.records) == 1
    journal.event("still", 3)
    assert [event["kind"] for event in read_journal(tmp_path)] == ["still"]


def test_a_disk_that_has_room_again_is_written_again(tmp_path: Path) -> None:
    (tmp_path / METRICS).mkdir()
    journal = Journal(tmp_path)
    journal.metrics(1, {})
    (tmp_path / METRICS).rmdir()
    journal.metrics(2, {})
    assert journal.lost == 1 and read_metrics(tmp_path) == [{"step": 2}]


def test_a_line_half_written_is_lost_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(tmp_path)
    journal.metrics(1, {})
    file = journal._files[METRICS]

    class Half:
        def write(self, data: bytes) -> int:
            return file.write(data[: len(data) // 2])

        def close(self) -> None:
            file.close()

    journal._files[METRICS] = Half()  # type: ignore[assignment]
    journal.metrics(2, {})
    journal.metrics(3, {})
    assert journal.lost == 1 and [line["step"] for line in read_metrics(tmp_path)] == [1, 3]


def test_trimming_forgets_what_was_measured_after(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    for attempt in range(6):
        journal.metrics(attempt, {"step": min(attempt, 3), "attempt": attempt})
    journal.event("resume", 4)
    before = (tmp_path / METRICS).stat().st_ino
    journal.trim(9)
    assert (tmp_path / METRICS).stat().st_ino == before
    journal.trim(4)
    assert [line["attempt"] for line in read_metrics(tmp_path)] == [0, 1, 2, 3, 4]
    journal.metrics(5, {"attempt": 5})
    assert len(read_metrics(tmp_path)) == 6 and len(read_journal(tmp_path)) == 1


def test_trimming_goes_by_step_where_there_is_no_attempt_and_leaves_a_torn_line(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.trim(0)
    for step in range(4):
        journal.metrics(step, {})
    with open(tmp_path / METRICS, "ab") as file:
        file.write(b'{"step": 1')
    journal.trim(1)
    assert read_metrics(tmp_path) == [{"step": 0}, {"step": 1}]


def test_a_file_that_cannot_be_replaced_is_an_error_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(tmp_path)
    journal.metrics(5, {})

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(SteepestError, match="disk is full"):
        journal.trim(1)
    assert read_metrics(tmp_path) == [{"step": 5}]


def test_a_killed_process_has_lost_no_line(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys\n"
        "from steepest.training.journal import Journal\n"
        "from pathlib import Path\n"
        "journal = Journal(Path(sys.argv[1]))\n"
        "for step in range(100): journal.metrics(step, {'loss': 1.0})\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert done.returncode == -9
    assert [line["step"] for line in read_metrics(tmp_path)] == list(range(100))
