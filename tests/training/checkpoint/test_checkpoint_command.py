"""`steepest checkpoint`: verify, show, diff and convert, over real optimizers' states."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from stores import filled, payload, same, save_by, shards, stores, tree
from torch import nn

import steepest
from steepest.cli.app import main
from steepest.training.checkpoint import FORMATS, Loaded, Payload, Store

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """`steepest checkpoint ARGUMENTS`: exit code, what it printed, what it said of errors."""
    monkeypatch.setenv("COLUMNS", "200")

    def checkpoint(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["steepest", "checkpoint", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0), *capsys.readouterr()

    return checkpoint


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run's folder with two generations, the older one marked."""
    store = Store(tmp_path / "run" / "checkpoints")
    store.save(payload(10), step=10, keep=True, wait=True)
    store.save(payload(20), step=20, wait=True)
    return tmp_path / "run"


def test_verify_says_good_of_all_and_of_one(call: Call, run: Path) -> None:
    code, out, _ = call("verify", run)
    rows = [line.split() for line in out.splitlines()]
    assert code == 0 and rows[0][:3] == ["generation", "step", "size"]
    assert rows[1][:2] == ["gen-000010", "10"] and rows[1][-2:] == ["good,", "kept"]
    assert rows[2][:2] == ["gen-000020", "20"] and rows[2][-2:] == ["good,", "current"]
    assert call("verify", run / "checkpoints")[1] == out
    code, out, _ = call("verify", run / "checkpoints" / "gen-000010")
    assert code == 0 and "good, kept" in out and "gen-000020" not in out


def test_verify_ends_with_1_where_one_is_damaged_and_changes_nothing(call: Call, run: Path) -> None:
    file = run / "checkpoints" / "gen-000020" / "model-00001.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    (run / "checkpoints" / "CURRENT.tmp.0").write_text("")
    before = tree(run)
    code, out, _ = call("verify", run)
    assert (
        code == 1 and "gen-000010" in out and "damaged: model-00001.safetensors: 'w.half' is not what" in out
    )
    assert "left by saves that did not end, removed by the next: CURRENT.tmp.0" in out
    assert call("verify", run / "checkpoints" / "gen-000020")[0] == 1
    assert call("verify", run / "checkpoints" / "gen-000010")[0] == 0
    (file.parent / "manifest.json").unlink()
    assert "damaged: manifest.json cannot be opened" in call("verify", run)[1]
    code, out, _ = call("show", run)
    assert code == 0 and "gen-000010: step 10" in out and "passed over: gen-000020: manifest.json" in out
    code, _, err = call("show", run / "checkpoints" / "gen-000020")
    assert code == 1 and "gen-000020 cannot be used: manifest.json cannot be opened" in err
    shutil.copy(run / "checkpoints" / "gen-000010" / "manifest.json", file.parent / "manifest.json")
    assert tree(run).keys() == before.keys()


def test_show_has_groups_tensors_and_facts(call: Call, run: Path) -> None:
    code, out, _ = call("show", run)
    assert code == 0 and out.startswith("gen-000020: step 20, saved 20") and "torch" in out.splitlines()[0]
    rows = [line.split() for line in out.splitlines() if line.strip()]
    assert ["model", "3", "30", "90", "B"] in rows and ["frozen.one", "0", "0", "0", "B"] in rows
    norm = payload(20).tensors["optimizer"]["w.weight/m"].norm().item()
    assert ["optimizer/w.weight/m", "3x5", "f64", f"{norm:.6g}"] in rows
    assert ["nested.name", "ü"] in rows and ["seed", "20"] in rows


def test_show_cuts_long_lists_unless_asked_for_all(call: Call, tmp_path: Path) -> None:
    many = {f"t{i:03}": torch.tensor([float("nan") if i == 0 else float(i)]) for i in range(50)}
    Store(tmp_path).save(Payload({"model": many}, {"text": "x" * 100}), step=1, wait=True)
    code, out, _ = call("show", tmp_path)
    assert code == 0 and "t039" in out and "t040" not in out and "... and 10 more (--all)" in out
    assert "1 not finite" in out and "x" * 57 + "..." in out
    _, out, _ = call("show", tmp_path, "--all")
    assert "t049" in out and "more (--all)" not in out and "x" * 100 in out


def test_diff_of_the_same_and_of_two(call: Call, run: Path, tmp_path: Path) -> None:
    old, new = (run / "checkpoints" / name for name in ("gen-000010", "gen-000020"))
    code, out, _ = call("diff", old, old)
    assert code == 0 and "no difference: 5 tensors and all facts are the same, bit by bit." in out
    filled(tmp_path / "twin", (20,))
    assert "no difference" in call("diff", run, tmp_path / "twin")[1], "two saves of the same are the same"
    code, out, _ = call("diff", old, new)
    rows = [line.split() for line in out.splitlines()]
    a, b = (payload(seed).tensors["optimizer"]["w.weight/m"] for seed in (10, 20))
    most, relative = (b - a).abs().max().item(), ((b - a).norm() / a.norm()).item()
    assert code == 0 and ["optimizer/w.weight/m", "changed", f"{most:.3g}", f"{relative:.3g}"] in rows
    assert ["step", "10", "20"] in rows and ["seed", "10", "20"] in rows
    assert out.splitlines()[-1] == "1 of 5 tensors are the same, bit by bit."


def test_diff_tells_what_came_went_and_changed_its_shape(call: Call, tmp_path: Path) -> None:
    one, nan = torch.ones(2), torch.tensor([1.0, float("nan")])
    before = {"gone": one, "wide": one, "type": one, "sick": one, "zero": one * 0}
    after = {"came": one, "wide": torch.ones(2, 2), "type": one.half(), "sick": nan, "zero": one}
    for name, tensors in (("a", before), ("b", after)):
        Store(tmp_path / name).save(Payload({"model": tensors}, {name: 1}), step=1, wait=True)
    code, out, _ = call("diff", tmp_path / "a", tmp_path / "b")
    rows = [line.split() for line in out.splitlines()]
    assert code == 0 and ["model/came", "added"] in rows and ["model/gone", "removed"] in rows
    assert ["model/wide", "2", "float32", "->", "2x2", "float32"] in rows
    assert ["model/type", "2", "float32", "->", "2", "float16"] in rows
    assert ["model/sick", "not", "finite"] in rows and ["model/zero", "changed", "1", "inf"] in rows
    assert ["a", "1"] in rows and ["b", "1"] in rows


def test_convert_to_plain_files(call: Call, run: Path, tmp_path: Path) -> None:
    code, out, _ = call("convert", run, "--out", tmp_path / "plain")
    assert code == 0 and "facts.json" in out
    found = {path.name for path in (tmp_path / "plain").iterdir()}
    assert found == {"facts.json", *(f"{g}.safetensors" for g in ("model", "optimizer", "frozen.one"))}
    theirs = load_file(tmp_path / "plain" / "model.safetensors")
    assert all(torch.equal(theirs[name], t) for name, t in payload(20).tensors["model"].items())
    assert json.loads((tmp_path / "plain" / "facts.json").read_text()) == {"step": 20, **payload(20).facts}
    code, _, err = call("convert", run, "--out", tmp_path / "plain")
    assert code == 1 and "plain exists already; choose another --out" in err
    code, _, err = call("convert", run, "--out", tmp_path / "new", "--to", "touch")
    assert code == 1 and "unknown format 'touch'; did you mean 'torch'?" in err and len(FORMATS) == 5
    code, _, err = call("convert", run, "--out", tmp_path / "new", "--to", "torch")
    assert code == 1 and "gen-000020 holds no optimizer state" in err
    assert [path.name for path in tmp_path.iterdir() if "partial" in path.name or path.name == "new"] == []


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), RuntimeError("writer failed\nat 0x1")]
)
def test_a_conversion_that_cannot_be_written_leaves_nothing(
    call: Call, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(loaded: Loaded, out: Path) -> None:
        (out / "half").write_text("")
        raise error

    monkeypatch.setitem(FORMATS, "plain", fail)
    code, _, err = call("convert", run, "--out", tmp_path / "deep" / "new")
    assert code == 1 and re.search(r"cannot write .*new \((No space left|writer failed)[^\n]*\); choose", err)
    assert list((tmp_path / "deep").iterdir()) == []


def train(model: nn.Module, optimizer: Any, steps: int, first: int = 0) -> None:
    for step in range(first, first + steps):
        made = torch.Generator().manual_seed(step)
        for p in model.parameters():
            p.grad = torch.randn(p.shape, generator=made).to(p.dtype) if p.requires_grad else None
        optimizer.step()


PEERS: list[tuple[str, dict[str, Any]]] = [
    ("AdamW", {"lr": 0.1, "weight_decay": 0.1, "amsgrad": True}),
    ("SGD", {"lr": 0.1, "momentum": 0.9}),
    ("RMSprop", {"lr": 0.1, "centered": True, "momentum": 0.5}),
]


@pytest.mark.parametrize("built", [True, False], ids=["in a stage", "plain"])
@pytest.mark.parametrize(("name", "options"), PEERS, ids=[name for name, _ in PEERS])
def test_convert_to_torch_and_train_on_there(
    call: Call, tmp_path: Path, name: str, options: dict[str, Any], built: bool
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)).double()
    model[0].weight.requires_grad_(False)
    groups = [{"params": list(m.named_parameters(str(i)))} for i, m in enumerate(model)]
    groups[1]["lr"] = 0.05
    ours = getattr(steepest, name)(groups, **options)
    train(model, ours, 3)
    tensors, facts = ours.export_state()
    held = {"built": {"optimizer": facts}} if built else {"optimizer": facts}
    Store(tmp_path / "run").save(
        Payload({"model": model.state_dict(), "optimizer": tensors}, held), step=3, wait=True
    )
    code, out, err = call("convert", tmp_path / "run", "--to", "torch", "--out", tmp_path / "out")
    assert code == 0 and "optimizer.pt" in out, err
    twin = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)).double()
    twin.load_state_dict(torch.load(tmp_path / "out" / "model.pt", weights_only=True))
    twin[0].weight.requires_grad_(False)
    theirs = getattr(torch.optim, name)([{"params": m.parameters()} for m in twin], lr=1.0)
    theirs.load_state_dict(torch.load(tmp_path / "out" / "optimizer.pt", weights_only=True))
    train(model, ours, 3, first=3)
    train(twin, theirs, 3, first=3)
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-12)


def test_compressed_state_is_decoded_for_torch(call: Call, tmp_path: Path) -> None:
    weight = nn.Parameter(torch.ones(256, 256))
    ours = steepest.AdamW([("w", weight)], lr=0.1, state="int8")
    weight.grad = torch.full_like(weight, 0.5)
    ours.step()
    tensors, facts = ours.export_state()
    Store(tmp_path / "run").save(Payload({"optimizer": tensors}, {"optimizer": facts}), step=1, wait=True)
    assert call("convert", tmp_path / "run", "--to", "torch", "--out", tmp_path / "out")[0] == 0
    state = torch.load(tmp_path / "out" / "optimizer.pt", weights_only=True)["state"][0]
    torch.testing.assert_close(state["exp_avg"], torch.full((256, 256), 0.05), rtol=0.02, atol=0)
    assert state["step"].item() == 1.0 and not (tmp_path / "out" / "model.pt").exists()


@pytest.mark.parametrize("command", ["verify", "show", "diff", "convert"])
def test_a_place_without_checkpoints_is_a_sentence(call: Call, tmp_path: Path, command: str) -> None:
    more = {"diff": [tmp_path], "convert": ["--out", tmp_path / "new"]}.get(command, [])
    code, out, err = call(command, tmp_path, *more)
    assert code == 1 and "there is no checkpoint in" in err and "Traceback" not in out + err


def test_every_command_takes_a_generation_of_several_ranks(call: Call, run: Path, tmp_path: Path) -> None:
    for handle in save_by(stores(tmp_path / "three", 3), shards(payload(20), 3), 20):
        handle.result()
    code, out, _ = call("verify", tmp_path / "three")
    assert code == 0 and out.splitlines()[1].split()[-2:] == ["good,", "current"]
    code, out, _ = call("show", tmp_path / "three")
    rows = [line.split() for line in out.splitlines() if line.strip()]
    norm = payload(20).tensors["optimizer"]["w.weight/m"].norm().item()
    assert code == 0 and ["optimizer/w.weight/m", "3x5", "f64", f"{norm:.6g}"] in rows
    assert ["model", "3", "30", "90", "B"] in rows and ["frozen.one", "0", "0", "0", "B"] in rows
    for pair in ((run, tmp_path / "three"), (tmp_path / "three", run)):
        assert "no difference: 5 tensors and all facts are the same, bit by bit." in call("diff", *pair)[1]
    for source, out_folder in ((run, "a"), (tmp_path / "three", "b")):
        assert call("convert", source, "--out", tmp_path / out_folder)[0] == 0
    assert tree(tmp_path / "a") == tree(tmp_path / "b"), "converted, it is in one piece"
    (tmp_path / "three" / "gen-000020" / "model-00002-00001.safetensors").unlink()
    code, out, _ = call("verify", tmp_path / "three")
    assert code == 1 and "damaged: model-00002-00001.safetensors cannot be opened" in out


def test_ranks_become_one_by_converting(call: Call, run: Path, tmp_path: Path) -> None:
    for handle in save_by(stores(tmp_path / "three", 3), shards(payload(20), 3), 20):
        handle.result()
    assert call("convert", tmp_path / "three", "--out", tmp_path / "one", "--to", "steepest")[0] == 0
    found = Store(tmp_path / "one").load()
    assert same(found, payload(20)) and found.step == 20 and len(found.manifest.files) == 3
    assert "no difference" in call("diff", tmp_path / "one", run)[1]
