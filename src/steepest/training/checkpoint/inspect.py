"""Looking into checkpoints from outside a run: where one is, and what differs between two."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from steepest.contract import SteepestError
from steepest.training.checkpoint.assemble import read
from steepest.training.checkpoint.manifest import NAME, Damaged, Manifest, TensorFact
from steepest.training.checkpoint.read import names_in, read_manifest
from steepest.training.checkpoint.store import Loaded, Store


def find_store(path: Path) -> Store | None:
    """The checkpoints of a run's folder, or of the folder of checkpoints itself; None if `path` is a single
    generation. Raises where there is neither."""
    for folder in (path, path / "checkpoints"):
        if names_in(folder):
            return Store(folder)
    if (path / NAME).exists() or path.name in names_in(path.parent):
        return None
    raise SteepestError(
        f"there is no checkpoint in {path}; give a run's folder, its checkpoints, or one generation of them."
    )


def load_at(path: Path) -> Loaded:
    """The newest good generation of a run, or the one generation that `path` is; verified."""
    store = find_store(path)
    if store is not None:
        return store.load()
    try:
        manifest = read_manifest(path)
        return Loaded(path.name, manifest.step, read(path, manifest), manifest.facts, manifest)
    except Damaged as damaged:
        raise SteepestError(f"{path} cannot be used: {damaged}.") from damaged


@dataclass(frozen=True)
class Change:
    """How a tensor moved. most: largest |b - a|.  relative: ||b - a|| / ||a||.  what: in words, where shapes
    or types differ or values are not finite, and then there are no numbers."""

    name: str
    most: float | None = None
    relative: float | None = None
    what: str = ""


@dataclass(frozen=True)
class Difference:
    """What differs between two generations. facts: path to (before, after); `None` is also "not there"."""

    added: tuple[str, ...]
    removed: tuple[str, ...]
    changed: tuple[Change, ...]
    same: int
    facts: dict[str, tuple[Any, Any]]

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.changed or self.facts)


def compare(a: Loaded, b: Loaded) -> Difference:
    """What changed from a to b. Tensors of equal bytes are equal; the others are compared in float64."""
    ours = {f"{group}/{name}": fact for group, name, fact in a.manifest.tensors()}
    theirs = {f"{group}/{name}": fact for group, name, fact in b.manifest.tensors()}
    before, after = _flat_tensors(a), _flat_tensors(b)
    both = [name for name in ours if name in theirs]
    moved = [name for name in both if not _same(ours[name], theirs[name], before[name], after[name])]
    then, now = flat_facts({"step": a.step, **a.facts}), flat_facts({"step": b.step, **b.facts})
    return Difference(
        added=tuple(name for name in theirs if name not in ours),
        removed=tuple(name for name in ours if name not in theirs),
        changed=tuple(_change(name, before[name], after[name]) for name in moved),
        same=len(both) - len(moved),
        facts={
            key: (then.get(key), now.get(key))
            for key in dict.fromkeys((*then, *now))
            if json.dumps(then.get(key)) != json.dumps(now.get(key))
        },
    )


def _same(fact: TensorFact, other: TensorFact, a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are equal bit by bit; checksums know it unless one was saved in several pieces."""
    if (fact.dtype, fact.shape) != (other.dtype, other.shape):
        return False
    if fact.sha256 is not None and other.sha256 is not None:
        return fact.sha256 == other.sha256
    return torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8))


def _change(name: str, a: Tensor, b: Tensor) -> Change:
    if a.shape != b.shape or a.dtype != b.dtype:
        return Change(name, what=f"{describe(a)} -> {describe(b)}")
    first, second = a.double(), b.double()
    apart = second - first
    if not torch.isfinite(apart).all():
        return Change(name, what="not finite")
    norm = first.norm().item()
    return Change(name, apart.abs().max().item(), apart.norm().item() / norm if norm else float("inf"))


def describe(tensor: Tensor) -> str:
    """Shape and type, as in "4x3 float32"."""
    return f"{'x'.join(map(str, tensor.shape)) or 'scalar'} {str(tensor.dtype).removeprefix('torch.')}"


def _flat_tensors(loaded: Loaded) -> dict[str, Tensor]:
    return {f"{group}/{name}": t for group, named in loaded.tensors.items() for name, t in named.items()}


def flat_facts(facts: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Facts by dotted path; a list is one value."""
    out: dict[str, Any] = {}
    for key, value in facts.items():
        nested = isinstance(value, Mapping) and value
        out |= flat_facts(value, f"{above}{key}.") if nested else {f"{above}{key}": value}
    return out


def group_sizes(manifest: Manifest) -> dict[str, tuple[int, int, int]]:
    """Group to (tensors, elements, bytes)."""
    return {
        group: (
            len(tensors),
            sum(math.prod(fact.shape) for fact in tensors.values()),
            sum(fact.length for fact in tensors.values()),
        )
        for group, tensors in manifest.groups().items()
    }
