"""Whatever happens to the files of a generation is noticed, told in words, and the one before is used."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stores import copied, filled, forge, payload, same, tree, write_manifest

from steepest.contract import SteepestError
from steepest.training.checkpoint import Damaged, Manifest, Payload, Store
from steepest.training.checkpoint import manifest as format

FILES = [
    "frozen.one-00001.safetensors",
    "manifest.json",
    "model-00001.safetensors",
    "optimizer-00001.safetensors",
]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Generations of step 10 and 20, never changed."""
    folder = tmp_path_factory.mktemp("two")
    filled(folder)
    return folder


def test_the_files_are_these(two: Path) -> None:
    assert sorted(os.listdir(two / "gen-000020")) == FILES


def falls_back(folder: Path, words: str) -> None:
    """The generation of step 20 is refused with these words, and that of step 10 loaded."""
    found = Store(folder).load()
    assert same(found, payload(10))
    assert len(found.skipped) == 1 and re.search(f"^gen-000020: .*{words}", found.skipped[0]), found.skipped
    with pytest.raises(SteepestError, match=rf"gen-000020: .*{words}"):
        Store(folder).load("gen-000020")


def cut_last(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def link(path: Path) -> None:
    path.rename(path.parent.parent / "elsewhere")
    path.symlink_to(path.parent.parent / "elsewhere")


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def folder_instead(path: Path) -> None:
    path.unlink()
    path.mkdir()


def older(path: Path) -> None:
    shutil.copy(path.parent.parent / "gen-000010" / path.name, path)


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (cut_last, "bytes too few|its checksum differs"),
        (empty, "bytes too few|is no manifest"),
        (lengthen, "bytes too many|its checksum differs"),
        (Path.unlink, "cannot be opened .No such file"),
        (link, "is a link, and links are not followed"),
        (pipe, "is not an ordinary file"),
        (folder_instead, "is not an ordinary file"),
        (older, "it belongs to another save"),
    ],
    ids=lambda x: getattr(x, "__name__", ""),
)
def test_a_damaged_file_is_refused(
    two: Path, tmp_path: Path, file: str, damage: Callable[[Path], None], words: str
) -> None:
    folder = copied(two, tmp_path / "two")
    damage(folder / "gen-000020" / file)
    falls_back(folder, words)
    assert [one.problem is None for one in Store(folder).check()] == [True, False]


@settings(max_examples=150)
@given(data=st.data())
def test_any_bit_flip_is_noticed(two: Path, data: st.DataObject) -> None:
    path = two / "gen-000020" / data.draw(st.sampled_from(FILES))
    whole = path.read_bytes()
    bit = data.draw(st.integers(0, 8 * len(whole) - 1))
    flipped = bytearray(whole)
    flipped[bit // 8] ^= 1 << bit % 8
    try:
        path.write_bytes(flipped)
        falls_back(two, "")
    finally:
        path.write_bytes(whole)
    assert same(Store(two).load(), payload(20))


@pytest.mark.parametrize("text", ["", "gen-000010", "../gen-000020", "gen-000099", "\xff\xfe", "x" * 1000])
def test_a_wrong_pointer_is_no_loss(two: Path, tmp_path: Path, text: str) -> None:
    folder = copied(two, tmp_path / "two")
    (folder / "CURRENT").write_text(text, encoding="latin-1")
    found = Store(folder).load()
    assert same(found, payload(10 if text == "gen-000010" else 20))
    told = ("gen-000099: CURRENT names it, but it is not there",) if text == "gen-000099" else ()
    assert found.skipped == told


def test_no_pointer_is_no_loss(two: Path, tmp_path: Path) -> None:
    folder = copied(two, tmp_path / "two")
    (folder / "CURRENT").unlink()
    assert same(Store(folder).load(), payload(20))


def test_a_strangers_file_and_a_linked_generation_are_refused(two: Path, tmp_path: Path) -> None:
    folder = copied(two, tmp_path / "two")
    shutil.copy(folder / "gen-000010" / FILES[2], folder / "gen-000020" / "model-00002.safetensors")
    falls_back(folder, "model-00002.safetensors is not of this checkpoint")
    folder = copied(two, tmp_path / "two")
    (folder / "gen-000020").rename(tmp_path / "moved")
    (folder / "gen-000020").symlink_to(tmp_path / "moved")
    falls_back(folder, "it is no folder of its own")


def test_nothing_good_left_lists_everything(two: Path, tmp_path: Path) -> None:
    folder = copied(two, tmp_path / "two")
    cut_last(folder / "gen-000020" / FILES[2])
    (folder / "gen-000010" / FILES[1]).unlink()
    with pytest.raises(SteepestError) as error:
        Store(folder).load()
    assert re.search(
        r"no checkpoint in .* can be used \(.*gen-0000[12]0: .*; gen-0000[12]0: ", str(error.value)
    )
    with pytest.raises(SteepestError, match="can be used"):
        Store(folder).load(optional=True)


def test_there_is_none(tmp_path: Path) -> None:
    assert Store(tmp_path / "none").load(optional=True) is None
    with pytest.raises(SteepestError, match="there is no checkpoint in"):
        Store(tmp_path / "none").load()
    with pytest.raises(SteepestError, match="there is none of this name"):
        Store(tmp_path / "none").load("gen-000010")


# ---------------------------------------------------------------------- manifests of bad intent


def rename_file(raw: dict[str, Any], name: str, group: str = "model") -> None:
    raw["files"][name] = raw["files"].pop(FILES[2]) | {"group": group}


def tensor(raw: dict[str, Any]) -> dict[str, Any]:
    return raw["files"][FILES[2]]["tensors"]["w.weight"]


POISON: list[tuple[str, Callable[[dict[str, Any]], object]]] = [
    ("names a file '../model", lambda raw: rename_file(raw, "../model-00001.safetensors")),
    ("names a file '/etc/passwd'", lambda raw: rename_file(raw, "/etc/passwd")),
    ("names a file '../x-00001", lambda raw: rename_file(raw, "../x-00001.safetensors", "../x")),
    ("names a file '..-00001", lambda raw: rename_file(raw, "..-00001.safetensors", "..")),
    ("names a file 'model-00001.pt'", lambda raw: rename_file(raw, "model-00001.pt")),
    (r"names a file 'model-00001.safetensors\\n'", lambda raw: rename_file(raw, FILES[2] + "\n")),
    ("has the unknown type 'F4'", lambda raw: tensor(raw).update(dtype="F4")),
    ("has the unknown type 'pickle'", lambda raw: tensor(raw).update(dtype="pickle")),
    ("shape.0: Input should be greater", lambda raw: tensor(raw).update(shape=[-3, 5])),
    ("cannot have the length it gives", lambda raw: tensor(raw).update(shape=[10**15, 10**15])),
    ("cannot have the length it gives", lambda raw: tensor(raw).update(shape=[2, 5])),
    ("its header was changed", lambda raw: tensor(raw).update(shape=[5, 3])),
    ("its header was changed|belongs to another", lambda raw: tensor(raw).update(dtype="I32")),
    ("its checksum differs", lambda raw: tensor(raw).update(sha256="0" * 64)),
    ("sha256: String should match", lambda raw: tensor(raw).update(sha256="x")),
    ("belongs to another save", lambda raw: raw.update(save_id="0" * 32)),
    ("save_id: String should match", lambda raw: raw.update(save_id="../../..")),
    ("step: Input should be greater", lambda raw: raw.update(step=-1)),
    ("step: Field required", lambda raw: raw.pop("step")),
    ("files: Field required", lambda raw: raw.pop("files")),
    ("code: Extra inputs", lambda raw: raw.update(code="import os")),
    (
        "'w.weight' of model is listed twice",
        lambda raw: raw["files"].update({"model-00002.safetensors": raw["files"][FILES[2]]}),
    ),
    ("bytes too few", lambda raw: raw["files"][FILES[2]].update(length=10**15)),
]


@pytest.mark.parametrize(("words", "change"), POISON, ids=[words for words, _ in POISON])
def test_a_poisoned_manifest_is_refused(
    two: Path, tmp_path: Path, words: str, change: Callable[[dict[str, Any]], object]
) -> None:
    folder = copied(two, tmp_path / "two")
    if "twice" in words:
        shutil.copy(folder / "gen-000020" / FILES[2], folder / "gen-000020" / "model-00002.safetensors")
    before = tree(folder)
    forge(folder / "gen-000020", change)
    falls_back(folder, words)
    assert {k for k, v in tree(folder).items() if before.get(k) != v} == {"gen-000020/manifest.json"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"{" + b'"a": [' * 100_000, "is not JSON"),
        (b'{"step": ' + b"9" * 5000 + b"}", "is not JSON"),
        (b'{"step": \xff}', "is not JSON"),
        (b"{}", "is not JSON|Field required"),
    ],
    ids=["deep", "digits", "bytes", "empty"],
)
def test_json_bombs_are_refused(two: Path, tmp_path: Path, text: bytes, words: str) -> None:
    folder = copied(two, tmp_path / "two")
    write_manifest(folder / "gen-000020", text)
    falls_back(folder, words)


def test_too_much_json_is_neither_read_nor_written(
    two: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copied(two, tmp_path / "two")
    os.truncate(folder / "gen-000020" / "manifest.json", 2 * format.LIMIT)  # a hole: no disk is used
    falls_back(folder, "has 200 MB, more than any save writes")
    monkeypatch.setattr(format, "LIMIT", 3000)
    big = Payload({}, {"text": "x" * 3000})
    with pytest.raises(SteepestError, match=r"MB of JSON; .*keep large things in tensors"):
        Store(tmp_path / "new").save(big, step=1, wait=True)
    assert Store(tmp_path / "new").generations() == []


def test_a_newer_format_is_an_error_and_no_fallback(two: Path, tmp_path: Path) -> None:
    """An older generation would be loaded while the newest is fine: that would lose work without need."""
    folder = copied(two, tmp_path / "two")
    forge(folder / "gen-000020", lambda raw: raw.update(schema=3, surprise=[]))
    with pytest.raises(SteepestError, match="has format 3 and this steepest reads up to 2; update steepest"):
        Store(folder).load()


def test_a_checkpoint_of_the_first_format_can_be_read(tmp_path: Path) -> None:
    """Written once, when format 1 was made: what was saved then is readable by every later version."""
    folder = copied(Path(__file__).parent / "format-1", tmp_path / "format-1")
    found = Store(folder).load()
    assert found.manifest.schema_version == 1 and found.step == 5
    assert found.facts == {"lr": 0.1, "names": ["ü", None]}
    assert found.tensors["model"]["half"].dtype is torch.bfloat16
    assert torch.equal(found.tensors["model"]["weight"], torch.arange(6.0).view(2, 3))
    assert torch.equal(found.tensors["optimizer"]["weight/codes"], torch.arange(6, dtype=torch.uint8))


def test_nothing_that_is_read_is_ever_unpickled() -> None:
    package = Path(format.__file__).parent
    sources = {path.name: path.read_text(encoding="utf-8") for path in package.glob("*.py")}
    assert len(sources) > 10
    dcp = sources.pop("dcp.py")  # another format, whose metadata are one: read on request alone
    assert dcp.index("if not trust:") < dcp.index("read_metadata()") and "torch.load(" not in dcp
    for name, source in sources.items():
        assert "pickle" not in source and "torch.load(" not in source.replace("`torch.load(", ""), name


def test_a_manifest_is_its_own_round_trip(two: Path) -> None:
    data = (two / "gen-000020" / "manifest.json").read_bytes()
    manifest = Manifest.parse(data)
    assert manifest.dump() == data
    assert manifest.number == 2 and manifest.parent == "gen-000010" and manifest.facts == payload(20).facts
    with pytest.raises(Damaged, match="was changed after it was written"):
        Manifest.parse(data.replace(b'"step": 20', b'"step": 21'))
