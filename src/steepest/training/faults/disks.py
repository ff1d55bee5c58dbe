"""Faults of the disk, and of the thread that writes: at a stated operation of a stated save."""

from __future__ import annotations

import errno as numbers
import os
import signal
import time
from collections.abc import Callable
from functools import partial
from itertools import count
from typing import Any

from steepest.training.checkpoint import store
from steepest.training.checkpoint.disk import Disk
from steepest.training.faults.scene import Scene


def at_disk(scene: Scene, operation: str, save: int, act: Callable[[], None], nth: int = 1) -> None:
    """Act before the nth operation of this name in the save of a step. operation: a method of `Disk`."""
    usual, seen = getattr(Disk, operation), count(1)

    def around(disk: Disk, *given: Any) -> Any:
        if scene.saving == save and next(seen) == nth:
            scene.notes.setdefault("hit", []).append(f"{operation} of save {save}")
            act()
        return usual(disk, *given)

    setattr(Disk, operation, around)


def refuse(scene: Scene, operation: str, save: int, errno: int, nth: int = 1) -> None:
    """The system refuses an operation."""
    at_disk(scene, operation, save, partial(_raise, OSError(errno, os.strerror(errno))), nth)


def kill(scene: Scene, operation: str, save: int, nth: int = 1) -> None:
    """The process is killed before an operation."""
    at_disk(scene, operation, save, partial(os.kill, os.getpid(), signal.SIGKILL), nth)


def hang(scene: Scene, operation: str, save: int, seconds: float) -> None:
    """An operation takes long."""
    at_disk(scene, operation, save, partial(time.sleep, seconds))


def fail_in_thread(scene: Scene, save: int) -> None:
    """What writes a save breaks with an error that nobody has foreseen."""
    at_disk(scene, "create", save, partial(_raise, RuntimeError("the writer has a bug")))


def no_memory(scene: Scene, save: int) -> None:
    """There is no memory for the copy of a save."""
    usual = vars(store)["stage"]

    def stage(payload: Any) -> Any:
        if scene.saving == save:
            raise MemoryError("cannot allocate memory")
        return usual(payload)

    vars(store)["stage"] = stage


def no_room(scene: Scene, save: int) -> None:
    """The file system says that it is full, before anything is written."""
    usual = Disk.free

    def free(disk: Disk, path: Any) -> int:
        return 0 if scene.saving == save else usual(disk, path)

    disk: Any = Disk
    disk.free = free


def _raise(error: Exception) -> None:
    raise error


FULL, BROKEN, READ_ONLY = numbers.ENOSPC, numbers.EIO, numbers.EROFS
