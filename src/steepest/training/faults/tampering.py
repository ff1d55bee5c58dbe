"""What happens to a run's files between two starts: damage, and intact saves that say something else."""

from __future__ import annotations

import hashlib
import json
import math
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor

from steepest.training.checkpoint import Payload, Store
from steepest.training.checkpoint.manifest import NAME
from steepest.training.checkpoint.read import CURRENT
from steepest.training.faults.terms import demand
from steepest.training.files import write_atomic

Tensors = dict[str, dict[str, Tensor]]
Edit = Callable[[Tensors, dict[str, Any], Random], None]


def cut(whole: Path, folder: Path, step: int) -> None:
    """A copy of a finished run as it was left by a crash after the save of a step."""
    shutil.copytree(whole, folder, ignore=shutil.ignore_patterns(".lock", "model", "run.html", "run.json"))
    saves = folder / "checkpoints"
    for path in saves.glob("gen-*"):
        if _step(path) > step:
            shutil.rmtree(path)
    left = saved(folder)
    demand(bool(left), f"the undisturbed run has saved nothing up to step {step}")
    write_atomic(saves / CURRENT, f"{left[-1].name}\n")


def saved(folder: Path) -> list[Path]:
    """The generations of a run, the newest last."""
    return [folder / "checkpoints" / name for name in Store(folder / "checkpoints").generations()]


def _step(path: Path) -> int:
    return int(path.name.split("-")[1])


# ---------------------------------------------------------------------- damage


def _files(folder: Path, back: int = 1) -> list[Path]:
    """The files of tensors of the newest generation, or of one `back - 1` before; the largest first."""
    found = sorted(saved(folder)[-back].glob("*.safetensors"), key=lambda path: -path.stat().st_size)
    demand(bool(found), "the run has saved nothing that could be damaged")
    return found


def flip_bit(folder: Path, draw: Random) -> None:
    """One bit of the newest generation is another one."""
    files = _files(folder)
    path = draw.choices(files, [path.stat().st_size for path in files])[0]
    data = bytearray(path.read_bytes())
    data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    path.write_bytes(data)


def truncate(folder: Path, draw: Random) -> None:
    """A file of the newest generation is cut short."""
    path = draw.choice(_files(folder))
    os.truncate(path, draw.randrange(path.stat().st_size))


def lose_file(folder: Path, draw: Random, back: int = 1) -> None:
    """A file of a generation is not there."""
    draw.choice(_files(folder, back)).unlink()


def mix_saves(folder: Path, draw: Random, back: int = 2) -> None:
    """A file of a generation is that of another one."""
    for path in _files(folder, back):
        other = saved(folder)[-1 if back > 1 else -2] / path.name
        if other.exists() and other.stat().st_size == path.stat().st_size:
            shutil.copy2(other, path)
            return
    demand(False, "no two saves of this run have a file of one name and length")


def exchange_files(folder: Path, draw: Random, back: int = 3) -> None:
    """Two files of a generation have each other's names: of two ranks, where there are such, else of two
    groups."""
    files = _files(folder, back)
    first = files[0]
    group = first.name.split("-")[0]
    other = next((p for p in files[1:] if p.name.split("-")[0] == group), files[1])
    content = first.read_bytes()
    first.write_bytes(other.read_bytes())
    other.write_bytes(content)


# ---------------------------------------------------------------------- saves that are made to harm


class _Bomb:
    """Unpickled, it leaves a mark."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


MARK = "harmed"


def plant_pickle(folder: Path, draw: Random, back: int = 1) -> None:
    """In the place of tensors, objects that would act when they are unpickled."""
    path = _files(folder, back)[0]
    length = path.stat().st_size
    data = pickle.dumps(_Bomb(folder / MARK))
    path.write_bytes(data.ljust(length, b"\0")[:length])
    torch.save({"bomb": _Bomb(folder / MARK)}, path.with_name("optimizer.pt"))


def plant_link(folder: Path, draw: Random, back: int = 2) -> None:
    """In the place of tensors, a link that leads out of the run."""
    path = _files(folder, back)[0]
    outside = folder / "outside.safetensors"
    path.rename(outside)
    path.symlink_to(outside)


def plant_path(folder: Path, draw: Random, back: int = 3) -> None:
    """A manifest, with its checksum as it should be, that names a file elsewhere."""

    def elsewhere(manifest: dict[str, Any]) -> None:
        name = next(iter(manifest["files"]))
        manifest["files"][f"../../{name}"] = manifest["files"].pop(name)

    _edit_manifest(saved(folder)[-back], elsewhere)


def plant_bomb(folder: Path, draw: Random, back: int = 4) -> None:
    """A manifest of brackets within brackets."""
    depth = 200_000
    path = saved(folder)[-back] / NAME
    rest = b'"facts": ' + b"[" * depth + b"]" * depth + b"}"
    path.write_bytes(b'{"checksum": "%s", %s' % (hashlib.sha256(rest).hexdigest().encode(), rest))


def newer_format(folder: Path, draw: Random) -> None:
    """The newest manifest is of a format that is not known yet."""
    _edit_manifest(saved(folder)[-1], lambda manifest: manifest.update(schema=99))


def _edit_manifest(generation: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    manifest = json.loads((generation / NAME).read_bytes())
    del manifest["checksum"]
    edit(manifest)
    rest = json.dumps(manifest).encode()[1:]
    head = b'{"checksum": "%s", ' % hashlib.sha256(rest).hexdigest().encode()
    (generation / NAME).write_bytes(head + rest)


# ---------------------------------------------------------------------- saves that say something else


def rewrite(folder: Path, draw: Random, edit: Edit) -> None:
    """One more generation, intact as files: the newest one after an edit of its tensors and facts."""
    store = Store(folder / "checkpoints", keep=100)
    found = store.load()
    tensors = {group: {n: t.clone() for n, t in own.items()} for group, own in found.tensors.items()}
    edit(tensors, found.facts, draw)
    store.save(Payload(tensors=tensors, facts=found.facts), step=found.step, wait=True)


def _slot(tensors: Tensors, draw: Random) -> str:
    return draw.choice(sorted(name for name, t in tensors["optimizer"].items() if t.is_floating_point()))


def bad_moment(tensors: Tensors, facts: dict[str, Any], draw: Random) -> None:
    name = _slot(tensors, draw)
    tensors["optimizer"][name].view(-1)[0] = math.nan


def bad_weight(tensors: Tensors, facts: dict[str, Any], draw: Random) -> None:
    name = draw.choice(sorted(set(facts["built"]["optimizer"]["parameters"]) & set(tensors["model"])))
    tensors["model"][name].view(-1)[0] = math.inf


def lost_slot(tensors: Tensors, facts: dict[str, Any], draw: Random) -> None:
    del tensors["optimizer"][_slot(tensors, draw)]


def foreign_slot(tensors: Tensors, facts: dict[str, Any], draw: Random) -> None:
    tensors["optimizer"]["elsewhere.weight/m"] = torch.zeros(2)


def lost_scale(tensors: Tensors, facts: dict[str, Any], draw: Random) -> None:
    facts["built"]["precision"].clear()


def newer_facts(tensors: Tensors, facts: dict[str, Any], draw: Random) -> None:
    facts["version"] = 99


def older_config(tensors: Tensors, facts: dict[str, Any], draw: Random) -> None:
    """As a version would have written it that did not know these keys."""
    for key in ("recompute", "rename", "pad_vocab", "sinks"):
        facts["config"].pop(key, None)


def save_again(folder: Path, draw: Random) -> None:
    """The newest step is saved once more."""
    before = saved(folder)
    held = {path: path.read_bytes() for path in before[-1].iterdir()}
    rewrite(folder, draw, lambda tensors, facts, draw: None)
    demand(len(saved(folder)) == len(before) + 1, "the same step again is no generation of its own")
    odd = [path.name for path, data in held.items() if path.read_bytes() != data]
    demand(not odd, f"the first save of this step was written over: {', '.join(odd)}")
