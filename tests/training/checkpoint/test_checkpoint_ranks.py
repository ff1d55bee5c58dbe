"""Saved by N ranks and loaded on M: the same, bit by bit, as saved and loaded by one; or failed for all."""

from __future__ import annotations

import errno
import json
import math
import os
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from stores import Faulty, failing, filled, payload, rows_of, same, save_by, shards, stores, tree

from steepest.contract import Shard, SteepestError
from steepest.training.checkpoint import Disk, Loaded, Payload, Piece, Ranks, Store, compare

WORLDS = (1, 2, 3, 4)


def rich(seed: int = 0) -> Payload:
    """Every shape that is cut badly: uneven, fewer rows than ranks, none, one element, no dimension; and
    every kind of number."""
    made = torch.Generator().manual_seed(seed)
    weight = torch.randn(7, 6, generator=made)
    sick = weight.clone()
    sick[5, 3] = float("nan")
    model = {
        "weight": weight,
        "vocabulary": torch.randn(257, 3, generator=made),
        "narrow": weight[:2].bfloat16(),
        "one": weight[:1, :1],
        "scalar": weight[0, 0],
        "none": weight[:0],
        "thin": weight[:, :0],
        "cube": torch.randn(5, 2, 3, generator=made).double(),
        "turned": weight.t(),
        "sick": sick,
    }
    state = {"weight/m": (weight * 9).to(torch.uint8), "weight/s": weight[:, 0].to(torch.float8_e4m3fn)}
    return Payload({"model": model, "optimizer": state, "empty": {}}, {"seed": seed, "list": [1, 2.5]})


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.reshape(-1).view(torch.uint8)


def saved(folder: Path, whole: Payload, world: int, step: int = 5) -> Store:
    ranks = stores(folder, world) if world > 1 else [Store(folder)]
    for handle in save_by(ranks, shards(whole, world) if world > 1 else [whole], step):
        assert handle.result().generation == f"gen-{step:06}"
    return ranks[-1]


def test_the_payload_has_the_cuts_that_go_wrong() -> None:
    cuts = {len(set(map(len, rows_of(t.shape[0], 4)))) for t in rich().tensors["model"].values() if t.ndim}
    assert cuts == {1, 2, 3}
    assert [len(r) for r in rows_of(2, 4)] == [1, 1, 0, 0] and [len(r) for r in rows_of(7, 4)] == [2, 2, 2, 1]


@pytest.mark.parametrize("saving", WORLDS)
def test_saved_on_some_ranks_loaded_on_others(tmp_path: Path, saving: int) -> None:
    whole = rich()
    store = saved(tmp_path / "shards", whole, saving)
    found = store.load()
    assert same(found, whole) and found.nonfinite == ("model/sick",)
    assert not compare(found, saved(tmp_path / "one", whole, 1).load())
    for loading in WORLDS:
        parts = [
            Store(tmp_path / "shards").load(
                part=lambda group, name, shape, r=rank, n=loading: rows_of(shape[0], n)[r] if shape else None
            )
            for rank in range(loading)
        ]
        for group, tensors in whole.tensors.items():
            for name, tensor in tensors.items():
                held = [part.tensors[group][name] for part in parts]
                if not tensor.ndim:
                    assert all(torch.equal(one, tensor) for one in held)
                    continue
                assert [len(one) for one in held] == [len(r) for r in rows_of(tensor.shape[0], loading)]
                assert torch.equal(torch.cat([bits(one) for one in held]), bits(tensor))


@settings(max_examples=40)
@given(
    rows=st.integers(0, 9),
    cuts=st.lists(st.integers(0, 9), max_size=3),
    part=st.tuples(st.integers(0, 9), st.integers(0, 9)),
)
def test_any_cuts_and_any_part(
    tmp_path_factory: pytest.TempPathFactory, rows: int, cuts: list[int], part: tuple[int, int]
) -> None:
    folder = tmp_path_factory.mktemp("any")
    whole = torch.randn(rows, 3)
    edges = [0, *sorted(min(c, rows) for c in cuts), rows]
    given = [Payload({"model": {"w": Piece(whole[a:b], Shard(whole.shape, a))}}) for a, b in pairwise(edges)]
    ranks = stores(folder, len(given)) if len(given) > 1 else [Store(folder)]
    for handle in save_by(ranks, given, 1):
        handle.result()
    first, last = sorted(min(x, rows) for x in part)
    found = Store(folder).load(part=lambda *_: range(first, last)).tensors["model"]["w"]
    assert torch.equal(found, whole[first:last])
    assert torch.equal(Store(folder).load().tensors["model"]["w"], whole)


def test_a_part_takes_the_memory_of_a_part(tmp_path: Path) -> None:
    whole = Payload({"model": {"w": torch.randn(100, 8), "v": torch.randn(100)}})
    for world in (1, 3):
        saved(tmp_path / f"{world}", whole, world)
        found = Store(tmp_path / f"{world}").load(part=lambda *_: range(30, 40)).tensors["model"]
        assert [t.untyped_storage().nbytes() for t in found.values()] == [10 * 8 * 4, 10 * 4]


@pytest.mark.parametrize("rows", [range(0, 8), range(-1, 3), range(0, 6, 2), range(4, 2)])
def test_a_part_that_is_none_is_refused(tmp_path: Path, rows: range) -> None:
    store = saved(tmp_path, Payload({"model": {"w": torch.randn(7, 2)}}), 2)
    with pytest.raises(SteepestError, match=r"of model/w is asked for, which has the shape \(7, 2\)"):
        store.load(part=lambda *_: rows)


def test_the_folder_holds_what_the_page_says(tmp_path: Path) -> None:
    saved(tmp_path, rich(), 2)
    assert sorted(os.listdir(tmp_path)) == ["CURRENT", "gen-000005"]
    files = sorted(os.listdir(tmp_path / "gen-000005"))
    assert files == ["empty-00000-00001.safetensors", "empty-00001-00001.safetensors", "manifest.json"] + [
        f"{group}-0000{rank}-00001.safetensors" for group in ("model", "optimizer") for rank in (0, 1)
    ]
    with safe_open(tmp_path / "gen-000005" / "model-00001-00001.safetensors", "pt") as theirs:
        assert torch.equal(theirs.get_tensor("weight"), rich().tensors["model"]["weight"][4:])
        cut = json.loads(theirs.metadata()["pieces"])
        assert cut["weight"] == [4, 7] and "scalar" not in theirs.keys()  # noqa: SIM118


def test_norms_are_of_whole_tensors(tmp_path: Path) -> None:
    one, four = (saved(tmp_path / f"{n}", rich(), n).load().manifest.groups()["model"] for n in (1, 4))
    assert one.keys() == four.keys() and len(one) == 10
    for name in one:
        assert (one[name].shape, one[name].dtype) == (four[name].shape, four[name].dtype)
        assert one[name].nonfinite == four[name].nonfinite
        assert one[name].norm is four[name].norm is None or math.isclose(
            one[name].norm, four[name].norm, rel_tol=1e-6
        )


def test_a_tensor_that_all_ranks_have_is_given_by_one(tmp_path: Path) -> None:
    """Who gives it does not matter: here rank 1 owns a whole tensor, as under ZeRO-1."""
    ranks = stores(tmp_path, 2)
    save_by(ranks, [Payload({"m": {"a": torch.ones(2)}}), Payload({"m": {"b": torch.zeros(3)}})], 1)
    found = ranks[0].load().tensors["m"]
    assert sorted(found) == ["a", "b"] and torch.equal(found["b"], torch.zeros(3))


# ---------------------------------------------------------------------- what fails for one fails for all


def refused(ranks: list[Store], payloads: list[Payload], words: str, step: int = 30) -> list[str]:
    """A save fails on all ranks, rank 0 says why, nothing is left, and the next save is made."""
    folder = ranks[0].folder
    before = tree(folder)
    told = [handle.failure() or "" for handle in save_by(ranks, payloads, step)]
    assert all(f"the checkpoint of step {step} was not saved: " in one for one in told), told
    assert re.search(words, told[0]), told[0]
    assert tree(folder) == before and Store(folder).leftovers() == []
    for handle in save_by(ranks, shards(rich(9), len(ranks)), step + 10):
        assert handle.result().generation == f"gen-{step + 10:06}"
    assert same(Store(folder).load(), rich(9))
    return told


@pytest.mark.parametrize("victim", [0, 1, 2])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_disk_that_fails_one_rank_fails_the_save_for_all(tmp_path: Path, victim: int, code: int) -> None:
    filled(tmp_path, (20,))
    disks = [Disk(), Disk(), Disk()]
    disks[victim] = bad = Faulty(at=4, fault=failing(code))
    ranks = stores(tmp_path, 3, disks, patience=20.0)
    told = refused(ranks, shards(rich(), 3), "gen-000020 stands as it was")
    assert bad.log[4][0] in ("write", "create", "sync")
    assert os.strerror(code) in told[0] and os.strerror(code) in told[victim]
    assert ("not saved: rank " in told[0]) == (victim > 0) and (not victim or f"rank {victim}: " in told[0])
    assert all("rank 0 has given it up, and says why" in told[r] for r in {1, 2} - {victim})


def test_a_payload_that_one_rank_cannot_stage_fails_for_all(tmp_path: Path) -> None:
    given = shards(rich(), 2)
    given[1] = Payload({"model": {"w": torch.ones(2, dtype=torch.complex64)}})
    words = "not saved: rank 1: checkpoint tensor 'w' of model is torch.complex64"
    refused(stores(tmp_path, 2, patience=20.0), given, words)
    given = shards(rich(), 2)
    given[0] = Payload({}, {"a": {1, 2}})
    refused(stores(tmp_path, 2, patience=20.0), given, "not saved: facts.a is set", step=50)


def test_a_rank_that_does_not_come_is_named(tmp_path: Path) -> None:
    filled(tmp_path, (20,))
    before = tree(tmp_path)
    ranks = stores(tmp_path, 8, patience=0.2)
    handle = ranks[0].save(Payload({}), step=30)
    handle.wait(20)
    words = "ranks 1, 2, 3, 4, 5 and 2 more did not report within 0.2 s: dead, or the storage hangs"
    assert words in (handle.failure() or "") and tree(tmp_path) == before
    ranks = stores(tmp_path, 2, patience=0.4)
    with pytest.raises(SteepestError, match=r"rank 0 did not end it within 0\.8 s"):
        ranks[1].save(Payload({}), step=30, wait=True)
    assert same(ranks[1].load(), payload(20)) and ranks[1].leftovers()
    assert Store(tmp_path).save(payload(40), step=40, wait=True).result().removed


def test_a_disk_that_lies_to_one_rank_is_found_out(tmp_path: Path) -> None:
    class Broken(Disk):
        def write(self, file: int, data: Any) -> None:
            wrong = bytearray(data)
            if wrong and wrong[:1] != b"{":  # no report
                wrong[-1] ^= 1
            super().write(file, bytes(wrong))

    ranks = stores(tmp_path, 2, [Disk(), Broken()], patience=20.0)
    handles = save_by(ranks, shards(rich(), 2), 30)
    assert "not saved: rank 1: what was read back differs" in (handles[0].failure() or "")
    assert not (tmp_path / "gen-000030").exists()


A, B = torch.arange(12.0).view(6, 2), torch.arange(12.0).view(4, 3)


def piece(tensor: torch.Tensor, first: int, last: int, start: int | None = None) -> dict[str, Any]:
    return {"w": Piece(tensor[first:last], Shard(tensor.shape, first if start is None else start))}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (({"w": A}, {"w": A}), "'w' of model is listed twice: model-00000-00001.*, model-00001-00001"),
        (({"w": A}, piece(A, 3, 6)), "'w' of model is listed twice"),
        ((piece(A, 0, 3), piece(A, 2, 6)), "slice 2 is in model-00000-.* and again in model-00001-"),
        ((piece(A, 0, 3), piece(A, 4, 6)), "slice 3 of its 6 is in none of the files"),
        ((piece(A, 0, 3), {}), "slice 3 of its 6 is in none of the files"),
        ((piece(A, 0, 3), piece(B, 3, 4)), "what model-00001-.* holds is no piece of what model-00000-"),
        ((piece(A, 0, 3), piece(A.double(), 3, 6)), "holds is no piece of what"),
    ],
    ids=["both", "both, one cut", "overlap", "gap", "end", "shapes", "types"],
)
def test_what_does_not_fit_together_is_refused(tmp_path: Path, given: Any, words: str) -> None:
    payloads = [Payload({"model": tensors}) for tensors in given]
    refused(stores(tmp_path, 2, patience=20.0), payloads, f"what the ranks gave is no whole .*{words}")


@pytest.mark.parametrize(
    ("tensor", "shard"),
    [
        (torch.ones(()), Shard(torch.Size(()))),
        (torch.ones(2), Shard(torch.Size(()))),
        (torch.ones(2, 3), Shard(torch.Size((4, 2)))),
        (torch.ones(2, 3), Shard(torch.Size((4, 3)), 3)),
        (torch.ones(2, 3), Shard(torch.Size((4, 3)), -1)),
    ],
)
def test_a_piece_that_is_none_is_refused(tmp_path: Path, tensor: torch.Tensor, shard: Shard) -> None:
    with pytest.raises(SteepestError, match="'w' of model cannot be a piece of"):
        Store(tmp_path).save(Payload({"model": {"w": Piece(tensor, shard)}}), step=1)


@pytest.mark.parametrize("wrong", [(-1, 2, "x"), (2, 2, "x"), (0, 0, "x"), (0, 2, "")])
def test_ranks_are_counted_from_0_and_share_a_word(wrong: tuple[int, int, str]) -> None:
    with pytest.raises(SteepestError, match=r"ranks count from 0|need one word"):
        Ranks(*wrong)


# ---------------------------------------------------------------------- saves in a row


def test_many_saves_beside_training_stay_in_step(tmp_path: Path) -> None:
    ranks = stores(tmp_path, 3, keep=2, patience=20.0)
    for step in range(1, 9):
        mine = [shards(rich(step), 3)[rank] for rank in range(3)]
        for store, one in zip(ranks, mine, strict=True):
            store.save(one, step=step)
        for one in mine:
            for tensors in one.tensors.values():
                for held in tensors.values():
                    (held.tensor if isinstance(held, Piece) else held).zero_()
    for store in ranks:
        store.close()
    assert ranks[1].generations() == ["gen-000007", "gen-000008"] and not ranks[0].leftovers()
    assert same(ranks[2].load(), rich(8)) and same(ranks[2].load("gen-000007"), rich(7))
    assert ranks[0].load().manifest.parent == "gen-000007" and ranks[0].load().manifest.number == 8


def test_one_of_one_is_alone(tmp_path: Path) -> None:
    (store,) = stores(tmp_path, 1)
    store.save(payload(1), step=1, wait=True)
    assert (tmp_path / "gen-000001" / "model-00001.safetensors").exists()
    assert same(store.load(), payload(1))


def test_a_dead_start_does_not_mix_with_the_next(tmp_path: Path) -> None:
    """What a killed rank has left of the same step is another save's, by its name."""
    dead = stores(tmp_path, 2, patience=0.1)
    with pytest.raises(SteepestError):
        dead[1].save(shards(rich(1), 2)[1], step=5, wait=True)
    assert len(dead[1].leftovers()) == 1
    alive = stores(tmp_path, 2, patience=20.0)
    handles = save_by(alive, shards(rich(2), 2), 5)
    assert len(handles[0].result().removed) == 1
    assert same(alive[0].load(), rich(2)) and not alive[0].leftovers()


def test_compare_finds_the_one_slice_that_differs(tmp_path: Path) -> None:
    other = rich()
    other.tensors["model"]["vocabulary"][200, 1] += 1
    found: list[Loaded] = [saved(tmp_path / "a", rich(), 3).load(), saved(tmp_path / "b", other, 2).load()]
    differs = compare(*found)
    assert [change.name for change in differs.changed] == ["model/vocabulary"] and not differs.facts
    assert differs.changed[0].most == pytest.approx(1.0, rel=1e-5) and differs.same == 11
