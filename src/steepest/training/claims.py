"""Who works on what, in a folder that several processes and machines may share.

    <key>.<n>       the n-th claim of a key, with the name of its owner; the highest n counts
    owner-<name>    an owner's sign of life: its modification time moves as long as the owner runs

A claim is made by creating its file, which succeeds for one process only, on network file systems too. No
file lock is needed and no two clocks are compared: an owner is dead when its process on this machine has
gone, when its sign is missing, or when the sign has not moved for a lease of the watcher's own time. What a
dead owner had claimed may be claimed again, under the next number.

Whoever claims a key looks for its result once more afterwards: a claim is dropped when the result is there.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

from steepest.contract import SteepestError
from steepest.training.files import write_atomic

BEAT, LEASE = 10.0, 120.0
"""Seconds between two signs of life, and without one until an owner counts as dead. Network file systems may
show an old modification time for a minute."""
SIGN = "owner-"


class Claims:
    """One owner's view of the claims in a folder; open it with `with`. Not for use by several threads."""

    def __init__(self, folder: Path, beat: float = BEAT, lease: float = LEASE) -> None:
        self.folder, self._beat, self._lease = Path(folder), beat, lease
        self.owner = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self._sign = self.folder / f"{SIGN}{self.owner}"
        self._seen: dict[Path, tuple[int, float]] = {}
        self._closing = threading.Event()

    def __enter__(self) -> Self:
        write_atomic(self._sign, json.dumps(_process(os.getpid())))
        self._beating = threading.Thread(target=self._keep_alive, daemon=True)
        self._beating.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._closing.set()
        self._beating.join()
        self._sign.unlink(missing_ok=True)

    def take(self, key: str) -> bool:
        """Claim a key; False if another owner that is alive has it. True again for a key of one's own."""
        last = max((number for number, _ in self._claims(key)), default=0)
        if last:
            owner = self._owner_of(key, last)
            if owner == self.owner:
                return True
            if self._alive(self.folder / (f"{SIGN}{owner}" if owner else f"{key}.{last}")):
                return False
        try:
            with open(self.folder / f"{key}.{last + 1}", "x") as file:
                file.write(self.owner)
        except FileExistsError:
            return False
        except OSError as error:
            raise SteepestError(
                f"cannot write {self.folder} ({error.strerror}); free some space or choose another --out."
            ) from error
        return True

    def drop(self, key: str) -> None:
        """Forget all claims of a key, because its result is there."""
        for _, path in list(self._claims(key)):
            path.unlink(missing_ok=True)

    def wait(self) -> None:
        """Sleep for one beat: in that time others may finish, or die."""
        time.sleep(self._beat)

    def _claims(self, key: str) -> Iterator[tuple[int, Path]]:
        for path in self.folder.iterdir():
            name, _, number = path.name.rpartition(".")
            if name == key and number.isdecimal():
                yield int(number), path

    def _owner_of(self, key: str, number: int) -> str:
        """Empty for a claim that is just being written, or whose owner died at that."""
        try:
            return (self.folder / f"{key}.{number}").read_text()
        except FileNotFoundError:
            return ""

    def _alive(self, sign: Path) -> bool:
        try:
            moved = sign.stat().st_mtime_ns
            process = json.loads(sign.read_text() or "{}") if sign.name.startswith(SIGN) else {}
        except FileNotFoundError:
            return False
        here = _place()
        if here and process.get("place") == here and process != _process(process["pid"]):
            return False
        now = time.monotonic()
        if self._seen.get(sign, (0, 0.0))[0] != moved:
            self._seen[sign] = moved, now
        return now - self._seen[sign][1] < self._lease

    def _keep_alive(self) -> None:
        while not self._closing.wait(self._beat):
            with contextlib.suppress(OSError):  # a full or slow disk: others may take over, nothing is lost
                os.utime(self._sign)


def _place() -> str | None:
    """What tells this machine, since it was started, and this container from all others; None: not known."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None


def _process(pid: int) -> dict[str, Any]:
    """A process as others can recognize it: numbers are used again, numbers with a start time are not."""
    try:
        started = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        started = None
    return {"place": _place(), "pid": pid, "started": started}
