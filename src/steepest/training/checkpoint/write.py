"""Writing a generation: whole, synced and read back before it has its name; old ones are removed last."""

from __future__ import annotations

import importlib.metadata
import platform
import uuid
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import count
from pathlib import Path

import torch

from steepest.contract import SteepestError
from steepest.training.checkpoint.disk import Buffer, Disk, leftovers, put, remove
from steepest.training.checkpoint.manifest import (
    NAME,
    SCHEMA,
    Damaged,
    FileFact,
    Manifest,
    TensorFact,
    header,
)
from steepest.training.checkpoint.read import (
    CURRENT,
    current,
    in_order,
    names_in,
    read_manifest,
    read_tensors,
)
from steepest.training.checkpoint.stage import Staged, StagedFile, content

SPARE = 1 << 20
"""Bytes that the file system is granted for its own books beside the files."""


@dataclass(frozen=True)
class Saved:
    """A save that ended well. length: bytes written.  removed: older generations and leftovers that made
    room.  stuck: those that could not be removed, with the reason; the save stands all the same."""

    generation: str
    step: int
    length: int
    removed: tuple[str, ...] = ()
    stuck: tuple[str, ...] = ()


def write_generation(
    disk: Disk,
    folder: Path,
    staged: Staged,
    *,
    step: int,
    keep: bool,
    retain: int,
    parent: str | None,
    verify: bool,
) -> Saved:
    """Write one generation and make it the current one.

    Everything goes into a folder under a temporary name, each file synced, the manifest last; it is read
    back from the disk and compared with what was staged; one rename makes it a generation, one more makes
    CURRENT name it. Only then are generations beyond the newest `retain` removed.
    parent: what training went on from; None for the one that would be loaded now.

    Whatever fails before the first rename leaves the folder as it was; the temporary one is removed.
    """
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        disk.make_folder(folder)
        disk.sync_folder(folder.parent)
    removed: list[str] = []
    stuck: list[str] = []
    _remove(disk, folder, leftovers(folder), removed, stuck)
    manifest = _describe(folder, staged, step=step, keep=keep, parent=parent)
    text = manifest.dump()
    _check_space(disk, folder, manifest.length() + len(text))
    name = _fresh_name(folder, step)
    temporary = folder / f"{name}.tmp.{manifest.save_id[:12]}"
    try:
        disk.make_folder(temporary)
        for file, of in staged.files.items():
            put(disk, temporary / file, _parts(manifest.save_id, of))
        put(disk, temporary / NAME, [text])
        disk.sync_folder(temporary)
        if verify:
            _read_back(temporary, manifest.save_id)
        disk.rename(temporary, folder / name)
    except BaseException:
        with suppress(OSError):
            remove(disk, temporary, first=NAME)
        raise
    disk.sync_folder(folder)
    _point(disk, folder, name, manifest.save_id)
    _remove(disk, folder, _surplus(folder, retain), removed, stuck)
    return Saved(name, step, manifest.length() + len(text), tuple(removed), tuple(stuck))


def _describe(folder: Path, staged: Staged, *, step: int, keep: bool, parent: str | None) -> Manifest:
    save_id = uuid.uuid4().hex
    files = {}
    before, _ = in_order(folder)
    for name, file in staged.files.items():
        tensors = {tensor: fact for tensor, (_, fact) in file.tensors.items()}
        length = len(header(save_id, tensors)) + sum(fact.length for fact in tensors.values())
        files[name] = FileFact(group=file.group, length=length, tensors=tensors)
    return Manifest(
        schema=SCHEMA,
        save_id=save_id,
        number=max((manifest.number for manifest in before.values()), default=0) + 1,
        parent=parent or next(iter(before), None),
        step=step,
        keep=keep,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        versions={
            "steepest": importlib.metadata.version("steepest"),
            "torch": str(torch.__version__),
            "python": platform.python_version(),
        },
        files=files,
        facts=staged.facts,
    )


def _parts(save_id: str, file: StagedFile) -> Iterator[Buffer]:
    tensors: dict[str, TensorFact] = {name: fact for name, (_, fact) in file.tensors.items()}
    yield header(save_id, tensors)
    for tensor, _ in file.tensors.values():
        yield content(tensor)


def _check_space(disk: Disk, folder: Path, need: int) -> None:
    free = disk.free(folder)
    if free < need + SPARE:
        raise SteepestError(
            f"it needs {need / 1e6:,.1f} MB and {folder} has {free / 1e6:,.1f} MB free: free some space, or "
            "keep fewer checkpoints"
        )


def _fresh_name(folder: Path, step: int) -> str:
    """A step that was saved before has another name the second time: nothing is written over."""
    taken = set(names_in(folder))
    names = (f"gen-{step:06}" if again == 1 else f"gen-{step:06}-{again}" for again in count(1))
    return next(name for name in names if name not in taken)


def _read_back(folder: Path, save_id: str) -> None:
    """Raise unless the disk holds, checksum by checksum, what was staged."""
    try:
        manifest = read_manifest(folder)
        if manifest.save_id != save_id:
            raise Damaged(f"{NAME} is of another save")
        for _ in read_tensors(folder, manifest, from_disk=True):
            pass
    except Damaged as damaged:
        raise SteepestError(
            f"what was read back differs from what was written ({damaged}): memory or disk is failing"
        ) from damaged


def _point(disk: Disk, folder: Path, name: str, save_id: str) -> None:
    """Make CURRENT name a generation; it names the old one or the new one at any moment."""
    beside = folder / f"{CURRENT}.tmp.{save_id[:12]}"
    try:
        put(disk, beside, [f"{name}\n".encode()])
        disk.replace(beside, folder / CURRENT)
    except BaseException:
        with suppress(OSError):
            disk.unlink(beside)
        raise
    disk.sync_folder(folder)


def _surplus(folder: Path, retain: int) -> list[str]:
    """Good generations beyond the first `retain`; those that were marked stay, and so do damaged ones, which
    count for nothing. The current one is never among them."""
    good, _ = in_order(folder)
    rest = list(good)[max(retain, 1) :]
    return [name for name in rest if not good[name].keep and name != current(folder)]


def _remove(disk: Disk, folder: Path, names: list[str], removed: list[str], stuck: list[str]) -> None:
    """Remove these; a generation loses its name first, at once, and then its manifest.
    What cannot be removed is no reason to lose a save."""
    for name in names:
        try:
            path = folder / name
            if ".tmp." not in name:
                path = folder / f"{name}.tmp.removed"
                disk.rename(folder / name, path)
                disk.sync_folder(folder)
            remove(disk, path, first=NAME)
            removed.append(name)
        except OSError as error:
            stuck.append(f"{name}: {error.strerror or error}")
