"""Reading generations. Nothing is believed: lengths, headers, checksums and names are compared first."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from torch import Tensor

from steepest.contract import SteepestError
from steepest.training.checkpoint.manifest import (
    DTYPES,
    LIMIT,
    NAME,
    Damaged,
    FileFact,
    Manifest,
    PieceFact,
    header,
)
from steepest.training.checkpoint.stage import content, digest

GENERATION = re.compile(r"gen-\d{6,}(-\d+)?")
CURRENT = "CURRENT"


def read_manifest(folder: Path) -> Manifest:
    """A generation's manifest, checked, and every file found as long as it has to be; no tensor is read."""
    if folder.is_symlink() or not folder.is_dir():
        raise Damaged("it is no folder of its own" if folder.exists() else "it is not there")
    with _open(folder / NAME) as (file, length):
        if length > LIMIT:
            raise Damaged(f"{NAME} has {length / 1e6:.0f} MB, more than any save writes")
        manifest = Manifest.parse(b"".join(iter(lambda: os.read(file, 1 << 20), b"")))
    for name, fact in manifest.files.items():
        _check_length(folder / name, fact, len(header(manifest.save_id, fact.tensors)))
    strange = {path.name for path in folder.glob("*.safetensors")} - set(manifest.files)
    if strange:
        raise Damaged(f"{min(strange)} is not of this checkpoint")
    return manifest


def read_pieces(
    folder: Path, save_id: str, files: Mapping[str, FileFact], *, from_disk: bool = False
) -> Iterator[tuple[str, str, PieceFact, Tensor]]:
    """(group, name, fact, tensor) of whatever files hold, each verified; raises `Damaged` at the first that
    is not what was saved. Nothing that came before is to be used then.

    from_disk: ask the system to forget what it has cached of the files, so that the disk itself is read.
    """
    for name, fact in files.items():
        with _open(folder / name) as (file, _):
            if from_disk and hasattr(os, "posix_fadvise"):
                with suppress(OSError):
                    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
            first = header(save_id, fact.tensors)
            found = bytearray(len(first))
            if not _fill(file, memoryview(found)) or found != first:
                own = save_id.encode() in found
                why = "its header was changed, or it is another file of this save"
                raise Damaged(f"{name}: {why if own else 'it belongs to another save'}")
            for tensor, of in fact.tensors.items():
                yield fact.group, tensor, of, _read(file, of, f"{name}: {tensor!r}")


def _read(file: int, fact: PieceFact, where: str) -> Tensor:
    try:
        tensor = torch.empty(fact.shape, dtype=DTYPES[fact.dtype])
    except (RuntimeError, MemoryError) as error:
        raise Damaged(f"{where} does not fit into memory ({fact.length / 1e9:.1f} GB)") from error
    data = content(tensor)
    if not _fill(file, data):
        raise Damaged(f"{where} is cut off")
    if digest(data) != fact.sha256:
        raise Damaged(f"{where} is not what was saved (its checksum differs)")
    return tensor


def _check_length(path: Path, fact: FileFact, first: int) -> None:
    with _open(path) as (_, length):
        if length != fact.length:
            short = fact.length - length
            raise Damaged(f"{path.name} has {abs(short)} bytes too {'few' if short > 0 else 'many'}")
    if fact.length != first + sum(tensor.length for tensor in fact.tensors.values()):
        raise Damaged(f"{NAME}: {path.name} cannot have the length it gives")


@contextmanager
def _open(path: Path) -> Iterator[tuple[int, int]]:
    """(descriptor, length) of an ordinary file: a link is not followed, a pipe is not waited for."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        if path.is_symlink():
            raise Damaged(f"{path.name} is a link, and links are not followed") from None
        raise Damaged(f"{path.name} cannot be opened ({error.strerror})") from None
    try:
        found = os.fstat(file)
        if not stat.S_ISREG(found.st_mode):
            raise Damaged(f"{path.name} is not an ordinary file")
        yield file, found.st_size
    except OSError as error:
        raise Damaged(f"{path.name} cannot be read ({error.strerror})") from None
    finally:
        os.close(file)


def _fill(file: int, data: memoryview) -> bool:
    """Read until `data` is full; False if the file ends before."""
    while data:
        count = os.readv(file, [data])
        if not count:
            return False
        data = data[count:]
    return True


def names_in(folder: Path) -> list[str]:
    """Whatever has a generation's name, damaged or not, by step."""
    try:
        found = filter(GENERATION.fullmatch, os.listdir(folder))
        return sorted(found, key=lambda name: [int(part) for part in name.split("-")[1:]])
    except FileNotFoundError:
        return []
    except OSError as error:
        raise SteepestError(f"cannot read the checkpoints in {folder} ({error.strerror}).") from error


def current(folder: Path) -> str | None:
    """What CURRENT names, if that is a generation's name at all."""
    try:
        with _open(folder / CURRENT) as (file, _):
            name = os.read(file, 256).decode("ascii", "replace").strip()
    except Damaged:
        return None
    return name if GENERATION.fullmatch(name) else None


def in_order(folder: Path) -> tuple[dict[str, Manifest], dict[str, str]]:
    """(generations, damaged ones with the reason), the one to be loaded first first; no tensor is read.

    From the one that CURRENT names, back along what each went on from; then the rest, the latest first.
    So after a rollback, what was abandoned comes last.
    """
    good: dict[str, Manifest] = {}
    bad: dict[str, str] = {}
    for name in names_in(folder):
        try:
            good[name] = read_manifest(folder / name)
        except Damaged as damaged:
            bad[name] = str(damaged)
    ordered: dict[str, Manifest] = {}
    pointed = current(folder)
    for start in (pointed, *sorted(good, key=lambda name: -good[name].number)):
        at = start
        while at in good and at not in ordered:
            ordered[at] = good[at]
            at = good[at].parent
    if pointed is not None and pointed not in good and pointed not in bad:
        bad[pointed] = "CURRENT names it, but it is not there"
    return ordered, bad
