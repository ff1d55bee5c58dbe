"""What a save says of a run, read before it is continued: its config, its data, whether it is sound."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from itertools import pairwise
from typing import Any

from steepest.training.checkpoint import Loaded

FREE = ("checkpoint", "health", "threads", "sinks")
"""Keys of a config that may change when a run is continued: they say when it is saved and looked at, and on
how many cores it computes."""


def changes(then: Any, now: Any, path: str = "") -> list[tuple[str, str]]:
    """(key, "key: old -> new") of whatever differs between two configs."""
    if isinstance(then, Mapping) and isinstance(now, Mapping):
        pairs = [(key, then.get(key), now.get(key)) for key in {**then, **now}]
    elif isinstance(then, list) and isinstance(now, list) and len(then) == len(now):
        pairs = [(str(i), old, new) for i, (old, new) in enumerate(zip(then, now, strict=True))]
    else:
        same = json.dumps(then, sort_keys=True) == json.dumps(now, sort_keys=True)
        return [] if same else [(path, f"{path}: {json.dumps(then)} -> {json.dumps(now)}")]
    start = f"{path}." if path else ""
    return [found for key, old, new in pairs for found in changes(old, new, start + key)]


def broken(found: Loaded) -> list[str]:
    """What is trained and no longer finite. A buffer (a mask of -inf, say) may be what it likes."""
    trained = (found.facts["built"] or {"optimizer": {"parameters": ()}})["optimizer"]["parameters"]
    return [
        f"{group}/{name}"
        for group, name, fact in found.manifest.tensors()
        if fact.nonfinite and (group == "optimizer" or (group == "model" and name in trained))
    ]


def ledger_of(read: int, skipped: Collection[int], vetoed: Collection[int]) -> dict[str, list[list[int]]]:
    """The positions of a source before `read`, as ranges, by what became of them."""
    out = {p for p in skipped if p < read}
    edges = [-1, *sorted(out.union(vetoed)), read]
    trained = [[a + 1, b - 1] for a, b in pairwise(edges) if b - a > 1]
    return {"trained": trained, "skipped": _ranges(out), "vetoed": _ranges(vetoed)}


def _ranges(places: Collection[int]) -> list[list[int]]:
    """Whole numbers as ranges [first, last]."""
    found: list[list[int]] = []
    for place in sorted(set(places)):
        if found and found[-1][1] == place - 1:
            found[-1][1] = place
        else:
            found.append([place, place])
    return found
