"""A generation of several ranks is refused, in words, if anything is missing, swapped or of another save."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from stores import copied, forge, payload, same, save_by, shards, stores

from steepest.contract import SteepestError
from steepest.training.checkpoint import Payload, Store

FIRST, SECOND = (f"model-0000{rank}-00001.safetensors" for rank in (0, 1))
EVEN = torch.arange(8.0).view(4, 2)


def whole(seed: int) -> Payload:
    """Also a group whose two shards have equal shapes, so that only what they are tells them apart."""
    made = payload(seed)
    return Payload({**made.tensors, "even": {"w": EVEN + seed}}, made.facts)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Generations of step 10 and 20, each saved by two ranks; never changed."""
    folder = tmp_path_factory.mktemp("two")
    ranks = stores(folder, 2)
    for step in (10, 20):
        for handle in save_by(ranks, shards(whole(step), 2), step):
            handle.result()
    return folder


def swap(a: str, b: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / a).rename(folder / "between")
        (folder / b).rename(folder / a)
        (folder / "between").rename(folder / b)

    return change


def swap_contents(folder: Path) -> None:
    """Bytes of two pieces of one shape, headers left as they are."""
    names = [f"even-0000{rank}-00001.safetensors" for rank in (0, 1)]
    data = [bytearray((folder / name).read_bytes()) for name in names]
    data[0][-16:], data[1][-16:] = data[1][-16:], data[0][-16:]
    for name, one in zip(names, data, strict=True):
        (folder / name).write_bytes(one)


def flip(folder: Path) -> None:
    data = bytearray((folder / SECOND).read_bytes())
    data[-1] ^= 1
    (folder / SECOND).write_bytes(data)


def held(raw: dict[str, Any], rank: int) -> dict[str, Any]:
    return raw["files"][f"even-0000{rank}-00001.safetensors"]["tensors"]["w"]


def forged(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    return lambda folder: forge(folder, change)


DAMAGE: list[tuple[str, Callable[[Path], object], str]] = [
    ("missing", lambda f: (f / SECOND).unlink(), f"{SECOND} cannot be opened .No such file"),
    ("cut off", lambda f: os.truncate(f / SECOND, 99), f"{SECOND} has .* bytes too few"),
    ("a bit", flip, f"{SECOND}: '.*' is not what was saved"),
    (
        "mixed generations",
        lambda f: shutil.copy(f.parent / "gen-000010" / SECOND, f / SECOND),
        f"{SECOND}: it belongs to another save",
    ),
    (
        "a third rank's",
        lambda f: shutil.copy(f / SECOND, f / "model-00002-00001.safetensors"),
        "model-00002-00001.safetensors is not of this checkpoint",
    ),
    (
        "one twice",
        lambda f: shutil.copy(f / "even-00000-00001.safetensors", f / "even-00001-00001.safetensors"),
        "even-00001-00001.safetensors: its header was changed, or it is another file of this save",
    ),
    (
        "swapped",
        swap("even-00000-00001.safetensors", "even-00001-00001.safetensors"),
        "even-00000-00001.safetensors: its header was changed, or it is another file of this save",
    ),
    ("swapped pieces", swap_contents, "even-00000-.*: 'w' is not what was saved"),
    (
        "manifest of another",
        lambda f: shutil.copy(f.parent / "gen-000010" / "manifest.json", f / "manifest.json"),
        "it belongs to another save",
    ),
    (
        "a gap",
        forged(lambda raw: held(raw, 1).update(first=3)),
        "'w' of even: slice 2 of its 4 is in none of the files",
    ),
    (
        "an overlap",
        forged(lambda raw: held(raw, 1).update(first=1)),
        "'w' of even: slice 1 is in even-00000-.* and again in even-00001-",
    ),
    (
        "order",
        forged(lambda raw: (held(raw, 0).update(first=2), held(raw, 1).pop("first"))),
        "its header was changed",
    ),
    (
        "too many",
        forged(lambda raw: [held(raw, rank).update(rows=3) for rank in (0, 1)]),
        "'w' of even: even-00001-.* holds more than the 3 slices there are",
    ),
    (
        "too few",
        forged(lambda raw: [held(raw, rank).update(rows=10**15) for rank in (0, 1)]),
        "'w' of even: slice 4 of its 1000000000000000 is in none",
    ),
    ("not one", forged(lambda raw: held(raw, 1).update(rows=5)), "holds is no piece of what"),
    ("whole and piece", forged(lambda raw: held(raw, 1).pop("rows")), "'w' of even is listed twice"),
    ("no rows", forged(lambda raw: held(raw, 1).update(shape=[])), "holds is no piece of what"),
    ("negative", forged(lambda raw: held(raw, 1).update(first=-2)), "first: Input should be greater"),
    ("file left out", forged(lambda raw: raw["files"].pop(SECOND)), "of its .* is in none of the files"),
    ("norm", forged(lambda raw: held(raw, 1).update(norm=5.0)), "even/w has norm .* when put together, and"),
]


@pytest.mark.parametrize(("change", "words"), [d[1:] for d in DAMAGE], ids=[d[0] for d in DAMAGE])
def test_damage_is_refused_and_the_one_before_loaded(
    two: Path, tmp_path: Path, change: Callable[[Path], object], words: str
) -> None:
    folder = copied(two, tmp_path / "two")
    change(folder / "gen-000020")
    parts: list[Any] = [None, lambda group, name, shape: range(1) if shape and shape[0] else None]
    for part in parts:
        found = Store(folder).load(part=part)
        assert found.step == 10 and len(found.skipped) == 1
        assert re.search(f"^gen-000020: .*{words}", found.skipped[0]), found.skipped
        assert part or same(found, whole(10))
        with pytest.raises(SteepestError, match=rf"gen-000020: .*{words}"):
            Store(folder).load("gen-000020", part=part)
    assert [one.problem is None for one in Store(folder).check()] == [True, False]


def test_what_was_not_damaged_is_loaded(two: Path) -> None:
    assert same(Store(two).load(), whole(20)) and all(one.problem is None for one in Store(two).check())


def test_a_generation_of_ranks_in_format_2_can_be_read(tmp_path: Path) -> None:
    """Written once, by three ranks, when format 2 was made: readable by every later version."""
    folder = copied(Path(__file__).parent / "format-2", tmp_path / "format-2")
    found = Store(folder).load()
    assert found.manifest.schema_version == 2 and len(found.manifest.files) == 6
    assert same(found, kept())


def kept() -> Payload:
    """What lies in `format-2`."""
    return Payload(
        {
            "model": {"w": torch.arange(14.0).view(7, 2), "half": torch.arange(2.0).bfloat16()},
            "optimizer": {"w/codes": torch.arange(7, dtype=torch.uint8), "count": torch.tensor(3)},
        },
        {"lr": 0.1, "names": ["ü", None]},
    )
