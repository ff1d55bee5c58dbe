"""Payloads that can be told apart, and disks on which anything can happen."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from steepest.contract import Shard
from steepest.training.checkpoint import Disk, Handle, Loaded, Payload, Piece, Ranks, Store

OPERATIONS = [name for name in vars(Disk) if not name.startswith("_")]


def payload(seed: int) -> Payload:
    """A small model and optimizer, different for every seed: types, shapes, an empty group."""
    made = torch.Generator().manual_seed(seed)
    weight = torch.randn(3, 5, generator=made)
    return Payload(
        tensors={
            "model": {"w.weight": weight, "w.half": weight.bfloat16(), "empty": weight[:0]},
            "optimizer": {"w.weight/m": weight.double() * 2, "w.weight/codes": (weight * 9).to(torch.uint8)},
            "frozen.one": {},
        },
        facts={"seed": seed, "curve": [0.1 * seed, seed], "nested": {"name": "ü", "none": None, "yes": True}},
    )


def same(loaded: Loaded, expected: Payload) -> bool:
    """Bit by bit: groups, names, types, shapes, values, facts."""

    def bits(tensors: Any) -> Any:
        return {
            group: {
                name: (t.dtype, t.shape, t.contiguous().reshape(-1).view(torch.uint8).tolist())
                for name, t in named.items()
            }
            for group, named in tensors.items()
        }

    return bits(loaded.tensors) == bits(expected.tensors) and loaded.facts == expected.facts


def filled(folder: Path, steps: tuple[int, ...] = (10, 20), **options: Any) -> Store:
    """A folder with a generation of each of these steps, `payload(step)` in it."""
    store = Store(folder, **options)
    for step in steps:
        store.save(payload(step), step=step, wait=True)
    return store


def rows_of(rows: int, world: int) -> list[range]:
    """Slices of a first dimension by rank, as FSDP2 cuts them: the last ranks have fewer, or none."""
    each = -(-rows // world) if rows else 0
    return [range(min(r * each, rows), min((r + 1) * each, rows)) for r in range(world)]


def shards(whole: Payload, world: int) -> list[Payload]:
    """What each of `world` ranks gives of a payload: its slices; rank 0 also what has none, and the facts."""

    def piece(tensor: Tensor, rank: int) -> Piece:
        rows = rows_of(tensor.shape[0], world)[rank]
        return Piece(tensor[rows.start : rows.stop], Shard(tensor.shape, rows.start))

    def given(tensors: Any, rank: int) -> dict[str, Tensor | Piece]:
        cut = {name: piece(t, rank) for name, t in tensors.items() if t.ndim}
        return cut | {name: t for name, t in tensors.items() if not t.ndim and rank == 0}

    return [
        Payload(
            {group: given(named, rank) for group, named in whole.tensors.items()},
            whole.facts if rank == 0 else {},
        )
        for rank in range(world)
    ]


def stores(folder: Path, world: int, disks: Sequence[Disk] = (), **options: Any) -> list[Store]:
    """A store of the same folder for each rank."""
    session = uuid.uuid4().hex
    given = [*disks, *(Disk() for _ in range(world - len(disks)))]
    return [
        Store(folder, ranks=Ranks(rank, world, session), disk=disk, **options)
        for rank, disk in enumerate(given)
    ]


def save_by(ranks: Sequence[Store], payloads: Sequence[Payload], step: int) -> list[Handle]:
    """All ranks save; returns when each knows what came of it."""
    handles = [store.save(given, step=step) for store, given in zip(ranks, payloads, strict=True)]
    assert all(handle.wait(60) for handle in handles)
    return handles


def tree(folder: Path) -> dict[str, bytes]:
    """Every file by its path, with its bytes."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


class Killed(BaseException):
    """The process is dead; nothing catches this."""


class Faulty(Disk):
    """A disk that counts its operations and at the `at`-th does `fault` instead.

    fault(disk, name, args) raises, or returns and lets the operation happen.
    """

    def __init__(
        self, at: int = -1, fault: Callable[[Faulty, str, tuple[Any, ...]], None] | None = None
    ) -> None:
        self.at, self.fault = at, fault
        self.log: list[tuple[str, str]] = []
        self.dead = False
        self._paths: dict[int, Path] = {}
        self._unsynced: list[tuple[Path, Callable[[], None]]] = []

    def operate(self, name: str, args: tuple[Any, ...]) -> Any:
        if self.dead:
            if name == "close":  # the system closes the files of the dead
                super().close(*args)
            raise Killed
        path = self._paths.get(args[0], args[0]) if name != "create" else args[0]
        self.log.append((name, Path(path).name))
        if len(self.log) - 1 == self.at and self.fault is not None:
            self.fault(self, name, args)
        out = getattr(Disk, name)(self, *args)
        self._remember(name, args, out)
        return out

    def _remember(self, name: str, args: tuple[Any, ...], out: Any) -> None:
        """What a power cut would take back: whatever was not synced since."""
        if name == "create":
            self._paths[out] = args[0]
            self._unsynced.append((args[0], lambda: args[0].exists() and os.truncate(args[0], 0)))
        elif name == "sync":
            self._unsynced = [(p, undo) for p, undo in self._unsynced if p != self._paths[args[0]]]
        elif name == "rename":
            self._unsynced.append((args[1].parent, lambda: os.rename(args[1], args[0])))
        elif name == "sync_folder":
            self._unsynced = [(p, undo) for p, undo in self._unsynced if p != args[0]]

    def cut_power(self) -> None:
        for _, undo in reversed(self._unsynced):
            undo()


def _counted(name: str) -> Callable[..., Any]:
    return lambda disk, *args: disk.operate(name, args)


for _name in OPERATIONS:
    setattr(Faulty, _name, _counted(_name))


def kill(disk: Faulty, name: str, args: tuple[Any, ...]) -> None:
    """Dead before the operation."""
    disk.dead = True
    raise Killed


def tear(disk: Faulty, name: str, args: tuple[Any, ...]) -> None:
    """Dead within it: half of what was to be written is there."""
    if name == "write":
        data = memoryview(args[1])
        Disk.write(disk, args[0], data[: len(data) // 2])
    kill(disk, name, args)


def cut(disk: Faulty, name: str, args: tuple[Any, ...]) -> None:
    """A power cut: what was never synced is lost as well."""
    disk.cut_power()
    kill(disk, name, args)


def failing(code: int) -> Callable[[Faulty, str, tuple[Any, ...]], None]:
    """The system refuses the operation, this once."""

    def fail(disk: Faulty, name: str, args: tuple[Any, ...]) -> None:
        if name == "close":
            Disk.close(disk, *args)
        raise OSError(code, os.strerror(code))

    return fail


def forge(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a manifest and give it a checksum that fits."""
    raw = json.loads((folder / "manifest.json").read_bytes())
    del raw["checksum"]
    change(raw)
    write_manifest(folder, json.dumps(raw).encode())


def write_manifest(folder: Path, text: bytes) -> None:
    checksum = hashlib.sha256(text[1:]).hexdigest()
    (folder / "manifest.json").write_bytes(b'{"checksum": "%s", %s' % (checksum.encode(), text[1:]))


def copied(folder: Path, to: Path) -> Path:
    """A copy of a folder, if there is one, at a fresh place."""
    shutil.rmtree(to, ignore_errors=True)
    if folder.exists():
        shutil.copytree(folder, to)
    return to
