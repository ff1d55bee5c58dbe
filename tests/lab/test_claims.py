"""Claims: of all that want a key one has it, as long as it lives, on this machine or another."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from steepest.contract import SteepestError
from steepest.training import claims as module
from steepest.training.claims import SIGN, Claims

KEY = "tune-adamw-lr0.001-seed0-0123456789"
PATIENCE = 60


def test_one_of_two_has_a_key_and_the_other_others(tmp_path: Path) -> None:
    with Claims(tmp_path) as one, Claims(tmp_path) as two:
        assert one.take(KEY) and not two.take(KEY)
        assert one.take(KEY), "one's own is one's own"
        assert two.take("another") and not one.take("another")
        assert two.take(KEY[:-1]) and two.take(f"{KEY}.1"), "a key is the whole name"


def test_what_an_owner_that_left_had_claimed_is_free(tmp_path: Path) -> None:
    with Claims(tmp_path) as two:
        with Claims(tmp_path) as one:
            assert one.take(KEY)
        assert two.take(KEY)
        two.drop(KEY)
        assert [path.name for path in tmp_path.iterdir()] == [f"{SIGN}{two.owner}"]
    assert list(tmp_path.iterdir()) == []


def test_a_key_whose_owner_was_killed_is_free_at_once_for_one(tmp_path: Path) -> None:
    program = (
        "import os, signal, sys; from pathlib import Path; from steepest.training.claims import Claims\n"
        f"with Claims(Path(sys.argv[1])) as claims:\n"
        f"    assert claims.take({KEY!r})\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], timeout=PATIENCE)
    assert done.returncode == -9 and len(list(tmp_path.iterdir())) == 2

    all_claims = [Claims(tmp_path) for _ in range(8)]
    start, taken = threading.Barrier(len(all_claims)), []

    def take(claims: Claims) -> None:
        with claims:
            start.wait(PATIENCE)
            taken.append(claims.take(KEY))
            start.wait(PATIENCE)

    threads = [threading.Thread(target=take, args=(claims,)) for claims in all_claims]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert sorted(taken) == [False] * 7 + [True]


def elsewhere(folder: Path, key: str = KEY) -> Path:
    """A claim of an owner on another machine; returns its sign of life."""
    (folder / f"{key}.1").write_text("far-1-abc")
    sign = folder / f"{SIGN}far-1-abc"
    sign.write_text(json.dumps({"place": "another machine", "pid": 1, "started": "5"}))
    return sign


class Clock:
    """The watcher's time, moved by hand."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(module.time, "monotonic", lambda: self.now)


def test_an_owner_on_another_machine_is_dead_when_its_sign_has_not_moved_for_a_lease(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sign, clock = elsewhere(tmp_path), Clock(monkeypatch)
    os.utime(sign, ns=(5, 5))  # its clock may be years behind: only movement counts
    with Claims(tmp_path, lease=100) as claims:
        for passed in (0, 99):
            clock.now = 1000.0 + passed
            assert not claims.take(KEY)
        os.utime(sign, ns=(6, 6))
        for passed in (99, 198):
            clock.now = 1000.0 + passed
            assert not claims.take(KEY)
        clock.now = 1200.0
        assert claims.take(KEY)
        assert not Claims(tmp_path).take(KEY), "it lives"


def test_a_claim_that_its_owner_did_not_live_to_sign_is_free_after_a_lease(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / f"{KEY}.3").touch()
    clock = Clock(monkeypatch)
    with Claims(tmp_path, lease=100) as claims:
        assert not claims.take(KEY)
        clock.now += 101
        assert claims.take(KEY)
        assert (tmp_path / f"{KEY}.4").read_text() == claims.owner


def test_an_old_claim_whose_sign_is_gone_is_free(tmp_path: Path) -> None:
    elsewhere(tmp_path).unlink()
    with Claims(tmp_path) as claims:
        assert claims.take(KEY)


def test_without_proc_only_the_lease_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_place", lambda: None)
    clock = Clock(monkeypatch)
    with Claims(tmp_path) as one, Claims(tmp_path, lease=100) as two:
        assert one.take(KEY) and not two.take(KEY)
        clock.now += 101
        assert two.take(KEY)


def test_an_owner_gives_signs_of_life(tmp_path: Path) -> None:
    with Claims(tmp_path, beat=0.01) as claims:
        sign = tmp_path / f"{SIGN}{claims.owner}"
        os.utime(sign, ns=(5, 5))
        end = time.monotonic() + PATIENCE
        while sign.stat().st_mtime_ns == 5 and time.monotonic() < end:
            time.sleep(0.01)
        assert sign.stat().st_mtime_ns > 5


def test_a_full_disk_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> Any:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with Claims(tmp_path) as claims:
        monkeypatch.setattr("builtins.open", full)
        with pytest.raises(SteepestError, match=r"No space left on device.*choose another --out"):
            claims.take(KEY)
