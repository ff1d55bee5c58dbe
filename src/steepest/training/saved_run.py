"""What a run has saved, read before it is continued: its version, config and data; whether it is sound."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from torch import Tensor

from steepest.contract import SteepestError
from steepest.training.checkpoint import Loaded, Store
from steepest.training.config import RunConfig, parse_config
from steepest.training.curve import Curve

VERSION = 2
"""Of what a generation holds of a session. 1 did not say so, and had the curves in its facts, as lists."""

FREE = ("checkpoint", "health", "threads", "sinks", "rename", "placement", "offload", "timeout")
"""Keys of a config that may change when a run is continued: they say when it is saved and looked at, on how
many cores it computes, and what the modules of a save are called now."""

Curves = tuple[Curve, Curve]
KINDS = ("training", "validation")


def curve_tensors(stages: Sequence[Curves]) -> dict[str, Tensor]:
    """The curves of stages as a generation holds them: "<stage>/<training or validation>/<column>"."""
    return {
        f"{i}/{kind}/{column}": values
        for i, curves in enumerate(stages)
        for kind, curve in zip(KINDS, curves, strict=True)
        for column, values in curve.tensors().items()
    }


def curves_of(tensors: Mapping[str, Tensor]) -> list[Curves]:
    """What `curve_tensors` was made of."""
    columns: dict[tuple[int, str], dict[str, Tensor]] = {}
    for name, values in tensors.items():
        stage, kind, column = name.split("/")
        columns.setdefault((int(stage), kind), {})[column] = values
    curves = {key: Curve.of(own) for key, own in columns.items()}
    return [(curves[i, KINDS[0]], curves[i, KINDS[1]]) for i in range(len(curves) // len(KINDS))]


def upgrade(found: Loaded) -> Loaded:
    """A generation as this version would have written it. Raises SteepestError for one of a later version."""
    version = found.facts.get("version", 1)
    if version > VERSION:
        raise SteepestError(
            f"{found.generation} was saved by a newer steepest (version {version} of a run's facts, and this "
            f"one knows {VERSION}); update steepest."
        )
    return _with_curves(found) if version == 1 else found


def _with_curves(found: Loaded) -> Loaded:
    """From version 1: the curves leave the facts."""
    records, built = [dict(record) for record in found.facts["results"]], found.facts["built"]
    lists = [(record.pop("curve"), record.pop("validation")) for record in records]
    if built is not None:
        built = dict(built)
        lists.append(built.pop("curves"))
    curves = curve_tensors([(Curve(**training), Curve(**validation)) for training, validation in lists])
    facts = {**found.facts, "version": 2, "results": records, "built": built}
    return replace(found, tensors={**found.tensors, "curves": curves}, facts=facts)


def renamed(found: Loaded, modules: Mapping[str, str]) -> Loaded:
    """The same with modules called otherwise (old name to new one), wherever the name of a tensor stands.
    Raises SteepestError where two tensors would then have one name."""

    def now(name: str) -> str:
        old = next((old for old in modules if name.startswith(f"{old}.")), None)
        return name if old is None else f"{modules[old]}{name[len(old) :]}".lstrip(".")

    def within(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {now(key): within(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [within(inner) for inner in value]
        return now(value) if isinstance(value, str) else value

    tensors = {group: {now(name): t for name, t in own.items()} for group, own in found.tensors.items()}
    if merged := [group for group, own in tensors.items() if len(own) < len(found.tensors[group])]:
        raise SteepestError(f"rename gives two tensors of {merged[0]} one name; look at {modules}.")
    builder = {**found.facts["builder"], "previous": within(found.facts["builder"]["previous"])}
    facts = {**found.facts, "built": within(found.facts["built"]), "builder": builder}
    return replace(found, tensors=tensors, facts=facts)


def before(store: Store, index: int, spike: int) -> Loaded:
    """The newest good generation of a stage that the run stands on; what an earlier rollback has given up is
    not among them. Good is one whose own loss, measured in the step after it, was no spike."""
    found = store.load()
    while found.step + 1 >= spike or found.facts["index"] != index or found.facts["built"] is None:
        if found.manifest.parent not in store.generations() or found.facts["index"] < index:
            raise SteepestError(
                f"the loss did not come down again after step {spike}, and there is no generation of "
                "this stage from before it to go back to; save more often (checkpoint.every)."
            )
        found = store.load(found.manifest.parent)
    return found


def changed(then: Mapping[str, Any], now: RunConfig, folder: Path) -> list[str]:
    """What differs between the config of a save and the one that goes on, in words. A run is continued as it
    was written down: raises SteepestError for a key that is not `FREE`."""
    whole = parse_config(then, f"the config saved in {folder}")  # a key it lacks: its default
    found = changes(whole.model_dump(mode="json"), now.model_dump(mode="json"))
    if refused := [words for key, words in found if key.partition(".")[0] not in FREE]:
        raise SteepestError(
            f"{folder} holds a run of another config ({'; '.join(refused)}); give another --out, or "
            "continue it with its own config."
        )
    return [words for _, words in found]


def digest(config: RunConfig) -> str:
    """Equal for configs that may continue each other."""
    own = {key: value for key, value in config.model_dump(mode="json").items() if key not in FREE}
    return hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()[:16]


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


def forget(folder: Path) -> None:
    """Delete what an earlier run has left in its folder; nothing else that lies there."""
    for name in ("checkpoints", "model"):
        shutil.rmtree(folder / name, ignore_errors=True)
    for name in ("metrics.jsonl", "journal.jsonl", "run.json"):
        (folder / name).unlink(missing_ok=True)
