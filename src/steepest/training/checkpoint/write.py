"""Writing a generation: whole, synced and read back before it has its name; old ones are removed last."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any

import torch

from steepest.contract import SteepestError
from steepest.training.checkpoint.disk import Buffer, Disk, leftovers, put, remove, words
from steepest.training.checkpoint.manifest import (
    NAME,
    SCHEMA,
    Damaged,
    FileFact,
    Manifest,
    PieceFact,
    header,
)
from steepest.training.checkpoint.ranks import (
    GIVEN_UP,
    Ranks,
    Report,
    gather,
    merge,
    outcome,
    report,
    report_name,
)
from steepest.training.checkpoint.read import (
    CURRENT,
    current,
    in_order,
    names_in,
    read_manifest,
    read_pieces,
)
from steepest.training.checkpoint.stage import Staged, StagedFile, content

SPARE = 1 << 20
"""Bytes that the file system is granted for its own books beside the files."""


@dataclass(frozen=True)
class Saved:
    """A save that ended well. length: bytes, of the generation; on other ranks than 0, of their files.
    removed: older generations and leftovers that made room.  stuck: those that could not be removed, with the
    reason; the save stands all the same."""

    generation: str
    step: int
    length: int
    removed: tuple[str, ...] = ()
    stuck: tuple[str, ...] = ()


@dataclass(frozen=True)
class Save:
    """One save, as every process that takes part knows it.

    patience: seconds to wait for another rank.  ranks: None for a process that is alone.
    """

    disk: Disk
    folder: Path
    step: int
    save_id: str
    verify: bool = True
    patience: float = 600.0
    ranks: Ranks | None = None

    @property
    def temporary(self) -> Path:
        """The folder in which all ranks write; the same for all of them."""
        return self.folder / f"gen-{self.step:06}.tmp.{self.save_id[:12]}"


def write_generation(
    save: Save, staged: Staged | Exception, *, keep: bool, retain: int, parent: str | None
) -> Saved:
    """Write one generation, or this rank's part of it, and make it the current one.

    Everything goes into a folder under a temporary name, each file synced and read back from the disk by who
    wrote it, so that checking takes no longer with more ranks; the manifest comes last, and rank 0 reads it
    back and finds all files there, as long as they must be. One rename makes it a generation, one more makes
    CURRENT name it. Only then are generations beyond the newest `retain` removed.
    staged: what to write, or why there is nothing: the others must hear of that.
    parent: what training went on from; None for the one that would be loaded now.

    Whatever fails on any rank before the first rename leaves the folder as it was; the temporary one is
    removed.
    """
    if save.ranks is not None and save.ranks.rank > 0:
        return _follow(save, save.ranks.rank, staged)
    _make_folder(save)
    removed: list[str] = []
    stuck: list[str] = []
    _remove(save, [name for name in leftovers(save.folder) if name != save.temporary.name], removed, stuck)
    disk, temporary = save.disk, save.temporary
    try:
        _make_temporary(save)
        files = _all_files(save, staged)
        assert isinstance(staged, Staged)  # an error was raised with the files
        manifest = _describe(save, files, staged.facts, keep=keep, parent=parent)
        text = manifest.dump()
        put(disk, temporary / NAME, [text])
        disk.sync_folder(temporary)
        if save.verify:
            _read_back(temporary, text)
        name = _fresh_name(save.folder, save.step)
        disk.rename(temporary, save.folder / name)
    except BaseException:
        with suppress(OSError):
            remove(disk, temporary, first=NAME)
        raise
    disk.sync_folder(save.folder)
    _point(save, name)
    _remove(save, _surplus(save.folder, retain), removed, stuck)
    return Saved(name, save.step, manifest.length() + len(text), tuple(removed), tuple(stuck))


def _follow(save: Save, rank: int, staged: Staged | Exception) -> Saved:
    """What a rank other than 0 does: write its files, report, wait for the end. It waits when it has failed,
    too, so that no rank is ever more than one save ahead of rank 0."""
    _make_folder(save)
    _make_temporary(save)
    try:
        files = _write_files(save, staged)
        report(save.disk, save.temporary, rank, Report(files=files))
    except Exception as error:
        if not save.temporary.exists():
            raise SteepestError(GIVEN_UP) from error
        with suppress(OSError):
            _give_up(save, rank, staged, error)
        with suppress(SteepestError):
            outcome(save.folder, save.temporary, save.save_id, 2 * save.patience)
        raise
    # Rank 0 may wait for a third rank, so it is given twice the time.
    name = outcome(save.folder, save.temporary, save.save_id, 2 * save.patience)
    return Saved(name, save.step, sum(file.length for file in files.values()))


def _give_up(save: Save, rank: int, staged: Staged | Exception, error: Exception) -> None:
    """Make room, then say that this rank has failed: on a full disk there is space for the report now."""
    if isinstance(staged, Staged):
        for name in _named(save, staged):
            with suppress(OSError):
                save.disk.unlink(save.temporary / name)
    with suppress(OSError):
        save.disk.unlink(save.temporary / f"{report_name(rank)}.part")
    report(save.disk, save.temporary, rank, Report(failed=words(error)))


def _all_files(save: Save, staged: Staged | Exception) -> dict[str, FileFact]:
    """Write this process' files and wait for those of the others."""
    if save.ranks is None:
        return _write_files(save, staged)
    world = save.ranks.world
    try:
        own = Report(files=_write_files(save, staged))
    except Exception:
        with suppress(SteepestError, OSError):  # whoever still writes must find the folder, to see it go
            gather(save.temporary, world, save.patience)
        raise
    files = merge({0: own} | gather(save.temporary, world, save.patience))
    for rank in range(1, world):
        save.disk.unlink(save.temporary / report_name(rank))
    return files


def _write_files(save: Save, staged: Staged | Exception) -> dict[str, FileFact]:
    """Write what this process holds, and read it back."""
    if isinstance(staged, Exception):
        raise staged
    named = _named(save, staged)
    files = {name: _file_fact(save.save_id, file) for name, file in named.items()}
    _check_space(save, sum(file.length for file in files.values()))
    for name, file in named.items():
        put(save.disk, save.temporary / name, _parts(save.save_id, file))
    if save.verify:
        with _reading_back():
            for _ in read_pieces(save.temporary, save.save_id, files, from_disk=True):
                pass
    return files


def _named(save: Save, staged: Staged) -> Mapping[str, StagedFile]:
    """Files by name: of several ranks, each has its number in the names of its own."""
    if save.ranks is None:
        return staged.files
    rank = save.ranks.rank
    return {
        f"{file.group}-{rank:05}{name.removeprefix(file.group)}": file for name, file in staged.files.items()
    }


def _file_fact(save_id: str, file: StagedFile) -> FileFact:
    tensors = {name: fact for name, (_, fact) in file.tensors.items()}
    length = len(header(save_id, tensors)) + sum(fact.length for fact in tensors.values())
    return FileFact(group=file.group, length=length, tensors=tensors)


def _describe(
    save: Save, files: dict[str, FileFact], facts: dict[str, Any], *, keep: bool, parent: str | None
) -> Manifest:
    before, _ = in_order(save.folder)
    manifest = Manifest(
        schema=SCHEMA,
        save_id=save.save_id,
        number=max((manifest.number for manifest in before.values()), default=0) + 1,
        parent=parent or next(iter(before), None),
        step=save.step,
        keep=keep,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        versions={
            "steepest": importlib.metadata.version("steepest"),
            "torch": str(torch.__version__),
            "python": platform.python_version(),
        },
        files=files,
        facts=facts,
    )
    try:
        manifest.check()
    except Damaged as damaged:
        raise SteepestError(f"what the ranks gave is no whole ({damaged})") from damaged
    return manifest


def _parts(save_id: str, file: StagedFile) -> Iterator[Buffer]:
    tensors: dict[str, PieceFact] = {name: fact for name, (_, fact) in file.tensors.items()}
    yield header(save_id, tensors)
    for tensor, _ in file.tensors.values():
        yield content(tensor)


def _make_folder(save: Save) -> None:
    """Make the store's own folder durable where it is not there; another rank may be quicker."""
    if not save.folder.is_dir():
        save.folder.parent.mkdir(parents=True, exist_ok=True)
        _make(save, save.folder)
        save.disk.sync_folder(save.folder.parent)


def _make_temporary(save: Save) -> None:
    """Every rank sees to it that the folder is there, so none waits for rank 0 on a disk that refuses."""
    _make(save, save.temporary)


def _make(save: Save, folder: Path) -> None:
    try:
        save.disk.make_folder(folder)
    except FileExistsError:
        if save.ranks is None or not folder.is_dir():
            raise


def _check_space(save: Save, need: int) -> None:
    free = save.disk.free(save.folder)
    if free < need + SPARE:
        raise SteepestError(
            f"it needs {need / 1e6:,.1f} MB and {save.folder} has {free / 1e6:,.1f} MB free: free some "
            "space, or keep fewer checkpoints"
        )


def _fresh_name(folder: Path, step: int) -> str:
    """A step that was saved before has another name the second time: nothing is written over."""
    taken = set(names_in(folder))
    names = (f"gen-{step:06}" if again == 1 else f"gen-{step:06}-{again}" for again in count(1))
    return next(name for name in names if name not in taken)


def _read_back(folder: Path, text: bytes) -> None:
    """Raise unless this manifest is on the disk, and all its files as long as it says."""
    with _reading_back():
        read_manifest(folder)
        if (folder / NAME).read_bytes() != text:
            raise Damaged(f"{NAME} is another")


@contextmanager
def _reading_back() -> Iterator[None]:
    try:
        yield
    except Damaged as damaged:
        raise SteepestError(
            f"what was read back differs from what was written ({damaged}): memory or disk is failing"
        ) from damaged


def _point(save: Save, name: str) -> None:
    """Make CURRENT name a generation; it names the old one or the new one at any moment."""
    disk, beside = save.disk, save.folder / f"{CURRENT}.tmp.{save.save_id[:12]}"
    try:
        put(disk, beside, [f"{name}\n".encode()])
        disk.replace(beside, save.folder / CURRENT)
    except BaseException:
        with suppress(OSError):
            disk.unlink(beside)
        raise
    disk.sync_folder(save.folder)


def _surplus(folder: Path, retain: int) -> list[str]:
    """Good generations beyond the first `retain`; those that were marked stay, and so do damaged ones, which
    count for nothing. The current one is never among them."""
    good, _ = in_order(folder)
    rest = list(good)[max(retain, 1) :]
    return [name for name in rest if not good[name].keep and name != current(folder)]


def _remove(save: Save, names: list[str], removed: list[str], stuck: list[str]) -> None:
    """Remove these; a generation loses its name first, at once, and then its manifest.
    What cannot be removed is no reason to lose a save."""
    for name in names:
        try:
            path = save.folder / name
            if ".tmp." not in name:
                path = save.folder / f"{name}.tmp.removed"
                save.disk.rename(save.folder / name, path)
                save.disk.sync_folder(save.folder)
            remove(save.disk, path, first=NAME)
            removed.append(name)
        except OSError as error:
            stuck.append(f"{name}: {error.strerror or error}")
