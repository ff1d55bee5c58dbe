"""From the text of a module to its functions, by way of a file: Triton reads the source of what it compiles.

A file is kept under the hash of its text, written whole or not at all, checked when it is found, and not
written again while it is good. Where the cache cannot be written a temporary folder takes its place.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import os
import tempfile
from functools import cache
from pathlib import Path
from types import ModuleType

from steepest.kernels.compile import cache_folder

log = logging.getLogger("steepest")


def available() -> str | None:
    """None if Triton can be had here, else why not."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed; pip install triton"
    return None


@cache
def load(text: str) -> ModuleType:
    """The module of this text."""
    key = hashlib.sha256(text.encode()).hexdigest()
    folder = cache_folder() / "triton"
    try:
        path = _put(folder, key, text)
    except OSError as error:
        _complain(str(folder), error.strerror or str(error))
        path = _put(_temporary(), key, text)
    spec = importlib.util.spec_from_file_location(f"steepest_kernel_{key[:16]}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _put(folder: Path, key: str, text: str) -> Path:
    """A file with this text. Two processes may write it at once; both write the same bytes."""
    path = folder / f"{key}.py"
    if _holds(path, text):
        return path
    folder.mkdir(parents=True, exist_ok=True)
    handle, partial = tempfile.mkstemp(dir=folder, prefix=key)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(partial, path)
    except OSError:
        Path(partial).unlink(missing_ok=True)
        raise
    return path


def _holds(path: Path, text: str) -> bool:
    try:
        return path.read_bytes() == text.encode()
    except OSError:
        return False


@cache
def _temporary() -> Path:
    """A folder of this process; Triton's own cache still knows what it has compiled."""
    return Path(tempfile.mkdtemp(prefix="steepest-kernels-"))


@cache
def _complain(folder: str, why: str) -> None:
    log.warning("kernels are printed into a temporary folder: %s cannot be written (%s)", folder, why)
