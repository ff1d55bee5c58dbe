"""Saving beside training: what is on the disk is what was handed over, and no failure stays unheard."""

from __future__ import annotations

import errno
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from stores import Faulty, failing, filled, payload, same

from steepest.contract import SteepestError
from steepest.training.checkpoint import Disk, Payload, Store
from steepest.training.checkpoint.manifest import DTYPES
from steepest.training.checkpoint.stage import measure, stage


def one(**tensors: torch.Tensor) -> Payload:
    return Payload({"model": tensors})


class Held(Disk):
    """A disk on which writing waits until it is let go."""

    def __init__(self) -> None:
        self.go = threading.Event()

    def write(self, file: int, data: Any) -> None:
        self.go.wait(30)
        super().write(file, data)


class Broken(Disk):
    """A disk that writes something else than it was given."""

    def write(self, file: int, data: Any) -> None:
        wrong = bytearray(data)
        if wrong:
            wrong[len(wrong) // 2] ^= 1
        super().write(file, bytes(wrong))


# ---------------------------------------------------------------------- what is saved is what is loaded


@pytest.mark.parametrize("name", DTYPES)
def test_every_type_and_shape_is_the_same_bit_by_bit(tmp_path: Path, name: str) -> None:
    dtype = DTYPES[name]
    raw = torch.arange(24, dtype=torch.uint8).repeat(8)[: 24 * dtype.itemsize]
    full = raw.view(dtype) if dtype is not torch.bool else raw % 2 == 0
    cube = full.view(2, 3, 4)
    tensors = {"cube": cube, "turned": cube.transpose(0, 2), "part": cube[:, 1:2], "none": full[:0]}
    tensors |= {
        "scalar": full[3],
        "channels": full.view(1, 2, 3, 4).contiguous(memory_format=torch.channels_last),
    }
    store = Store(tmp_path)
    store.save(one(**tensors), step=1, wait=True)
    found = store.load()
    assert same(found, one(**tensors))
    theirs = load_file(tmp_path / found.generation / "model-00001.safetensors")
    assert {k: (t.dtype, t.shape) for k, t in theirs.items()} == {
        k: (t.dtype, t.shape) for k, t in tensors.items()
    }


names = st.text(min_size=1, max_size=20).filter(lambda s: s != "__metadata__" and s.isprintable())
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@settings(max_examples=40)
@given(
    tensors=st.dictionaries(names, st.lists(st.integers(0, 3), max_size=3), max_size=6),
    facts=st.dictionaries(st.text(), json_values, max_size=5),
    limit=st.integers(1, 200),
)
def test_any_names_shapes_facts_and_files(
    tmp_path_factory: pytest.TempPathFactory, tensors: dict[str, list[int]], facts: dict[str, Any], limit: int
) -> None:
    folder = tmp_path_factory.mktemp("any")
    whole = Payload({"model": {name: torch.randn(shape) for name, shape in tensors.items()}, "b": {}}, facts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("steepest.training.checkpoint.store.stage", lambda given: stage(given, limit))
        store = Store(folder)
        store.save(whole, step=1, wait=True)
    found = store.load()
    assert same(found, whole)
    read = [load_file(path) for path in sorted((folder / found.generation).glob("model-*.safetensors"))]
    merged = {name: tensor for part in read for name, tensor in part.items()}
    assert merged.keys() == tensors.keys() and all(part or len(read) == 1 for part in read)
    sizes = [sum(t.numel() * 4 for t in part.values()) for part in read]
    assert all(
        size <= limit or len([t for t in part.values() if t.numel()]) == 1
        for size, part in zip(sizes, read, strict=True)
    )


def test_tuples_come_back_as_lists_and_numbers_exactly(tmp_path: Path) -> None:
    facts = {"betas": (0.9, 1 / 3), "inf": float("inf"), "big": 2**80, "zero": -0.0, "tiny": 5e-324}
    store = Store(tmp_path)
    store.save(Payload({}, facts), step=1, wait=True)
    found = store.load().facts
    assert found == {**facts, "betas": [0.9, 1 / 3]} and str(found["zero"]) == "-0.0"
    store.save(Payload({}, {"nan": float("nan")}), step=2, wait=True)
    assert str(store.load().facts["nan"]) == "nan"


def test_norms_and_what_is_not_finite_are_told(tmp_path: Path) -> None:
    nan, inf = float("nan"), float("inf")
    tensors = {
        "fine": torch.tensor([3.0, 4.0]),
        "small": torch.full((4,), 1e-30),
        "large": torch.full((4,), 3e38),
        "huge": torch.full((4,), 1e300, dtype=torch.float64),
        "half": torch.full((4,), 6e4).half(),
        "ints": torch.tensor([3, 4]),
        "nan": torch.tensor([1.0, nan]),
        "inf": torch.tensor([inf, -inf, 2.0]).bfloat16(),
        "eight": torch.tensor([nan, 2.0]).to(torch.float8_e4m3fn),
    }
    store = Store(tmp_path)
    store.save(one(**tensors), step=1, wait=True)
    found = store.load()
    assert set(found.nonfinite) == {"model/nan", "model/inf", "model/eight"}
    facts = found.manifest.groups()["model"]
    assert {name: fact.nonfinite for name, fact in facts.items() if fact.nonfinite} == {
        "nan": 1,
        "inf": 2,
        "eight": 1,
    }
    assert facts["fine"].norm == 5.0 and facts["ints"].norm is None and facts["nan"].norm is None
    assert facts["large"].norm == pytest.approx(6e38) and facts["half"].norm == pytest.approx(120000.0)
    assert facts["small"].norm == pytest.approx(2e-30)
    assert facts["huge"].norm is None and facts["huge"].nonfinite == 0


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (Payload({"../up": {}}), r"group '../up' must be at most 100 letters"),
        (Payload({"": {}}), "group '' must be"),
        (Payload({".hidden": {}}), "group '.hidden' must be"),
        (one(__metadata__=torch.ones(1)), "'__metadata__' of model: safetensors cannot hold this name"),
        (Payload({"model": {"\ud800": torch.ones(1)}}), "safetensors cannot hold this name"),
        (
            one(w=torch.ones(2, dtype=torch.complex64)),
            "'w' of model is torch.complex64; a checkpoint holds float64",
        ),
        (one(w=torch.ones(2, 2).to_sparse()), "must be dense and have values, not be torch.sparse_coo"),
        (one(w=torch.ones(2, device="meta")), "must be dense and have values, .* on meta"),
        (Payload({}, {"a": {"b": [1, {2}]}}), r"facts\.a\.b\[1\] is set, which JSON cannot hold"),
        (Payload({}, {"a": torch.ones(1)}), r"facts\.a is Tensor, which JSON cannot hold"),
        (Payload({}, {"a": {0: 1}}), r"facts\.a: the key 0 is not a string"),
    ],
    ids=lambda x: x[:20] if isinstance(x, str) else "",
)
def test_what_could_not_be_read_back_is_refused_at_once(tmp_path: Path, wrong: Payload, words: str) -> None:
    with pytest.raises(SteepestError, match=words):
        Store(tmp_path / "c").save(wrong, step=1)
    assert not (tmp_path / "c").exists()


def test_keep_must_leave_something(tmp_path: Path) -> None:
    with pytest.raises(SteepestError, match="keep=0 would leave no checkpoint"):
        Store(tmp_path, keep=0)


# ---------------------------------------------------------------------- beside training


def test_what_changes_after_save_is_not_what_is_written(tmp_path: Path) -> None:
    disk = Held()
    store = Store(tmp_path, disk=disk)
    mine, expected = payload(1), payload(1)
    handle = store.save(mine, step=1)
    for tensors in mine.tensors.values():
        for tensor in tensors.values():
            tensor.fill_(7)
    mine.facts["curve"].append("later")
    assert not handle.done() and store.failure() is None
    disk.go.set()
    assert handle.result(30).generation == "gen-000001"
    assert same(store.load(), expected)


def test_one_save_at_a_time_and_no_longer_than_patience(tmp_path: Path) -> None:
    disk = Held()
    store = Store(tmp_path, disk=disk, patience=0.05)
    first = store.save(payload(1), step=1)
    for call in (lambda: store.save(payload(2), step=2), store.load, store.close, lambda: first.result(0.01)):
        with pytest.raises(SteepestError, match=r"step 1 is not written after 0\.0. s: the storage hangs"):
            call()
    disk.go.set()
    store.patience = 30.0
    store.save(payload(2), step=2)
    store.close()
    assert store.generations() == ["gen-000001", "gen-000002"]


def test_loading_waits_for_the_save_that_goes_on(tmp_path: Path) -> None:
    disk = Held()
    store = Store(tmp_path, disk=disk)
    store.save(payload(1), step=1)
    threading.Timer(0.1, disk.go.set).start()
    assert same(store.load(), payload(1))


def test_a_failure_is_heard_once_at_the_next_save_which_is_made_all_the_same(tmp_path: Path) -> None:
    disk = Faulty(fault=failing(errno.ENOSPC))
    store = filled(tmp_path, (10,), disk=disk)
    disk.at = len(disk.log) + 4
    store.save(payload(20), step=20)
    words = r"step 20 was not saved: the disk is full .*gen-000010 stands as it was\. That of step 30 is wri"
    with pytest.raises(SteepestError, match=words):
        store.save(payload(30), step=30, wait=True)
    assert same(store.load(), payload(30))
    store.save(payload(40), step=40, wait=True)
    store.close()


@pytest.mark.parametrize("hear", ["failure", "result", "close", "context"])
def test_a_failure_is_heard_where_it_is_asked_for(tmp_path: Path, hear: str) -> None:
    store = Store(tmp_path, disk=Faulty(at=3, fault=failing(errno.EIO)))
    handle = store.save(payload(1), step=1)
    words = "step 1 was not saved: the disk reports an error"
    handle.wait()
    if hear == "failure":
        assert words in (store.failure() or "")
    else:
        asked = {"result": handle.result, "close": store.close, "context": lambda: store.__exit__()}[hear]
        with pytest.raises(SteepestError, match=words):
            asked()
    assert store.failure() is None
    store.save(payload(2), step=2, wait=True)
    store.close()


def test_two_failures_in_a_row_are_both_told(tmp_path: Path) -> None:
    store = Store(tmp_path / "c")
    (tmp_path / "c").write_text("a file in the way")
    store.save(payload(1), step=1).wait()
    with pytest.raises(SteepestError, match=r"step 1 was not saved: .*step 2 was not saved: "):
        store.save(payload(2), step=2, wait=True)


def test_whatever_goes_wrong_in_the_thread_is_a_failed_save(tmp_path: Path) -> None:
    class Odd(Disk):
        def sync(self, file: int) -> None:
            raise MemoryError("no more")

    store = Store(tmp_path, disk=Odd())
    with pytest.raises(SteepestError, match=r"step 1 was not saved: MemoryError: no more\."):
        store.save(payload(1), step=1, wait=True)
    assert list(tmp_path.iterdir()) == []


def test_no_memory_for_the_copy_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise RuntimeError("[enforce fail] can't allocate memory: you tried to allocate\nmore")

    store = Store(tmp_path)
    mine = payload(1)
    monkeypatch.setattr(torch, "empty", refuse)
    with pytest.raises(SteepestError, match=r"cannot be copied to the CPU: \[enforce fail\] can't allocate"):
        store.save(mine, step=1)


def test_no_thread_is_a_sentence_and_the_next_save_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(thread: threading.Thread) -> None:
        if thread.name == "checkpoint":
            raise RuntimeError("can't start new thread")
        start(thread)

    start = threading.Thread.start
    store = Store(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(SteepestError, match="step 1 was not saved: can't start new thread"):
            store.save(payload(1), step=1)
    store.save(payload(2), step=2, wait=True)
    assert store.generations() == ["gen-000002"]


def test_a_full_disk_is_known_before_anything_is_written(tmp_path: Path) -> None:
    class Full(Disk):
        def free(self, path: Path) -> int:
            return 1000

    store = Store(tmp_path, disk=Full())
    with pytest.raises(
        SteepestError, match=r"it needs 0\.0 MB and .* has 0\.0 MB free: free some space, or keep"
    ):
        store.save(payload(1), step=1, wait=True)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SteepestError, match="step 1 was not saved: "):
        Store(tmp_path / "file" / "below").save(payload(1), step=1, wait=True)
    refused = Faulty(at=0, fault=failing(errno.EACCES))
    with pytest.raises(SteepestError, match=r"cannot be written \(Permission denied\): choose a folder"):
        Store(tmp_path / "new", disk=refused).save(payload(1), step=1, wait=True)


def test_a_disk_that_lies_is_found_out_by_reading_back(tmp_path: Path) -> None:
    store = filled(tmp_path, (10,))
    liar = Store(tmp_path, disk=Broken())
    with pytest.raises(
        SteepestError, match=r"read back differs from what was written \(.*memory or disk is failing"
    ):
        liar.save(payload(20), step=20, wait=True)
    assert store.generations() == ["gen-000010"] and store.load().leftovers == ()
    Store(tmp_path, disk=Broken(), verify=False).save(payload(20), step=20, wait=True)
    found = Store(tmp_path).load()
    assert same(found, payload(10)) and "gen-000020: " in found.skipped[0]


def test_a_copy_that_changes_before_it_is_written_is_found_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hash is of what was staged, so an alias of a living tensor cannot pass for a copy."""
    weight = torch.ones(4)
    real = stage

    def alias(given: Payload) -> Any:
        staged = real(given)
        (file,) = staged.files.values()
        file.tensors["w"] = (weight, file.tensors["w"][1])
        return staged

    monkeypatch.setattr("steepest.training.checkpoint.store.stage", alias)
    disk = Held()
    store = Store(tmp_path, disk=disk)
    handle = store.save(one(w=weight), step=1)
    weight.fill_(2)
    disk.go.set()
    with pytest.raises(SteepestError, match="'w' is not what was saved"):
        handle.result(30)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_norms_of_large_tensors_are_exact(dtype: torch.dtype) -> None:
    """Summed in one float32, these 30 million elements would lose more than a thousandth."""
    large = torch.rand(30_000_001, generator=torch.Generator().manual_seed(0)).to(dtype)
    exact = torch.linalg.vector_norm(large, dtype=torch.float64).item()
    norm, nonfinite = measure(large.view(1, -1))
    assert norm == pytest.approx(exact, rel=5e-6) and nonfinite == 0
