"""Files: the old one or the new one, whatever happens, and one process a folder."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from steepest.contract import SteepestError
from steepest.training import lock, write_atomic


def failing(error: BaseException) -> Callable[..., Any]:
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    return fail


def full() -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("data", [b"\x00\xff", "text, also ü"])
def test_what_is_written_is_read_and_folders_are_made(tmp_path: Path, data: bytes | str) -> None:
    path = tmp_path / "a" / "b" / "file.json"
    write_atomic(path, "old, and longer than what follows")
    write_atomic(path, data)
    assert path.read_bytes() == (data if isinstance(data, bytes) else data.encode())
    assert os.listdir(path.parent) == ["file.json"]


def test_others_may_read_what_is_written_as_the_system_is_set(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    write_atomic(tmp_path / "atomic", "")
    assert (tmp_path / "atomic").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize("old", [None, "old"])
def test_a_full_disk_is_a_sentence_and_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, old: str | None
) -> None:
    path = tmp_path / "file.json"
    if old is not None:
        path.write_text(old)
    monkeypatch.setattr(os, step, failing(full()))
    with pytest.raises(SteepestError, match=r"disk is full: .*file\.json was not written; free some space"):
        write_atomic(path, "new")
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == ({} if old is None else {"file.json": old})


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_an_interrupt_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    path = tmp_path / "file.json"
    path.write_text("old")
    monkeypatch.setattr(os, step, failing(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        write_atomic(path, "new")
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"file.json": "old"}


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_power_cut_leaves_the_old_file_and_no_half_of_a_record(tmp_path: Path, step: str) -> None:
    path = tmp_path / "file.json"
    path.write_text("old")
    script = (
        "import os, sys; from steepest.training.files import write_atomic\n"
        f"os.{step} = lambda *_: os._exit(9)\n"
        "write_atomic(sys.argv[1], 'new')\n"
    )
    assert subprocess.run([sys.executable, "-c", script, str(path)], timeout=120).returncode == 9
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.glob("*.json")] == ["file.json"]
    write_atomic(path, "new")
    assert path.read_text() == "new"


def test_a_folder_that_cannot_be_synced_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open

    def refuse(path: Any, flags: int, *rest: Any, **more: Any) -> int:
        if os.path.isdir(path):
            raise OSError(errno.EINVAL, "not here")
        return real(path, flags, *rest, **more)

    monkeypatch.setattr(os, "open", refuse)
    write_atomic(tmp_path / "file", "new")
    assert (tmp_path / "file").read_text() == "new"


def test_a_place_that_cannot_be_written_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SteepestError, match=r"cannot write .*; choose a folder that can be written"):
        write_atomic(tmp_path / "file" / "below", "new")
    with pytest.raises(SteepestError, match=r"cannot write .*; choose a folder that can be written"):
        write_atomic(tmp_path, "new")


def test_a_locked_folder_names_its_holder_and_is_free_afterwards(tmp_path: Path) -> None:
    with lock(tmp_path / "run"):
        with pytest.raises(SteepestError, match=rf"in use by process {os.getpid()}; wait for it"):
            lock(tmp_path / "run").__enter__()
        with lock(tmp_path / "another"):
            pass
    with lock(tmp_path / "run"):
        pass


def test_the_lock_of_a_process_that_died_is_free(tmp_path: Path) -> None:
    script = (
        "import os, sys; from pathlib import Path; from steepest.training import lock\n"
        "lock(Path(sys.argv[1])).__enter__(); os._exit(9)\n"
    )
    assert subprocess.run([sys.executable, "-c", script, str(tmp_path)], timeout=120).returncode == 9
    with lock(tmp_path):
        assert (tmp_path / ".lock").read_text() == str(os.getpid())


def test_an_error_under_the_lock_is_not_taken_for_the_locks(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), lock(tmp_path):
        (tmp_path / "nothing").read_text()
    with lock(tmp_path):
        pass


def test_a_folder_that_cannot_be_locked_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SteepestError, match=r"cannot write .*file .*--out"):
        lock(tmp_path / "file").__enter__()
    monkeypatch.setattr("fcntl.flock", failing(full()))
    with pytest.raises(SteepestError, match="disk is full"):
        lock(tmp_path / "new").__enter__()
