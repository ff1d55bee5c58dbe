"""What a save does to the file system: one method an operation, so that a test can stop at each of them."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from steepest.contract import SteepestError

CHUNK = 1 << 26
"""Bytes of one call to write; it returns to the interpreter in between."""
TEMPORARY = re.compile(r"(gen-\d{6,}(-\d+)?|CURRENT)\.tmp\.[0-9a-z]+")
"""What a save that did not end leaves behind; never read, and removed by the next save."""

Buffer = bytes | memoryview


class Disk:
    """The real one."""

    def make_folder(self, path: Path) -> None:
        path.mkdir()

    def create(self, path: Path) -> int:
        """A new file's descriptor; what is already there is never opened."""
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)

    def write(self, file: int, data: Buffer) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(file, view[:CHUNK]) :]

    def sync(self, file: int) -> None:
        os.fsync(file)

    def close(self, file: int) -> None:
        os.close(file)

    def sync_folder(self, path: Path) -> None:
        """Make the names in a folder durable; a file system that has no such thing is left as it is."""
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTSUP):
                raise
        finally:
            os.close(descriptor)

    def rename(self, old: Path, new: Path) -> None:
        os.rename(old, new)

    def replace(self, old: Path, new: Path) -> None:
        os.replace(old, new)

    def unlink(self, path: Path) -> None:
        os.unlink(path)

    def remove_folder(self, path: Path) -> None:
        os.rmdir(path)

    def free(self, path: Path) -> int:
        """Bytes that may still be written here."""
        found = os.statvfs(path)
        return found.f_bavail * found.f_frsize


def put(disk: Disk, path: Path, parts: Iterable[Buffer]) -> None:
    """Write a new file and wait until it is on the disk."""
    file = disk.create(path)
    try:
        for part in parts:
            disk.write(file, part)
        disk.sync(file)
    finally:
        disk.close(file)


def remove(disk: Disk, path: Path, first: str = "") -> None:
    """Remove a file, or a folder of files; the one called `first` goes first."""
    if path.is_symlink() or not path.is_dir():
        return disk.unlink(path)
    for child in sorted(path.iterdir(), key=lambda child: (child.name != first, child.name)):
        disk.unlink(child)
        if child.name == first:
            disk.sync_folder(path)
    disk.remove_folder(path)


def leftovers(folder: Path) -> list[str]:
    """What saves that did not end have left in a folder of checkpoints."""
    with suppress(FileNotFoundError):
        return sorted(name for name in os.listdir(folder) if TEMPORARY.fullmatch(name))
    return []


def reason(error: OSError) -> str:
    """Why an operation failed and what to do, for the end of a sentence."""
    why = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk is full ({why}): free some space, or keep fewer checkpoints"
    if error.errno == errno.EIO:
        return f"the disk reports an error ({why}): look at it before anything else"
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return f"{error.filename or 'the folder'} cannot be written ({why}): choose a folder that can be"
    return f"{why}{f': {error.filename}' if error.filename else ''}"


def words(error: Exception) -> str:
    """Whatever went wrong, for the end of a sentence."""
    if isinstance(error, OSError):
        return reason(error)
    return str(error) if isinstance(error, SteepestError) else f"{type(error).__name__}: {error}"
