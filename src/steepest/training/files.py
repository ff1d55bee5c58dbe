"""Writing files so that a power cut leaves the old one or the new one, never half of either."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from steepest.contract import SteepestError


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write `data` to `path`: a synced temporary file beside it, then an atomic rename.

    A full disk or a read-only folder becomes a sentence; the file that was there stays as it was.
    """
    path = Path(path)
    payload = data.encode() if isinstance(data, str) else data
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        if isinstance(error, OSError):
            raise SteepestError(_sentence(path, error)) from error
        raise


def _sync_folder(folder: Path) -> None:
    """Make the rename itself durable; a file system that cannot is left as it is."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _sentence(path: Path, error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk is full: {path} was not written; free some space and run the same command again."
    return f"cannot write {path} ({error.strerror}); choose a folder that can be written with --out."


@contextlib.contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Hold a folder for this process; a second process gets a sentence. Freed by the system at exit."""
    import fcntl

    with contextlib.ExitStack() as held:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            file = held.enter_context(open(folder / ".lock", "a+b", buffering=0))
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            file.truncate(0)
            file.write(str(os.getpid()).encode())
        except BlockingIOError:
            file.seek(0)
            raise SteepestError(
                f"{folder} is in use by process {file.read().decode().strip() or '?'}; wait for it, or "
                "choose another --out."
            ) from None
        except OSError as error:
            raise SteepestError(_sentence(folder, error)) from error
        yield
