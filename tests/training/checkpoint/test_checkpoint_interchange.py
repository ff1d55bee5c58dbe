"""Checkpoints of others, read and written by their own libraries: Hugging Face folders, and torch's DCP."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from stores import payload, same, save_by, shards, stores
from torch import Tensor, nn
from torch.distributed import checkpoint as dcp

from steepest.contract import SteepestError
from steepest.training.checkpoint import Payload, Store, convert, load_at, open_any
from steepest.training.weights import weights

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


def language_model(tied: bool) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=tied,
    )
    return LlamaForCausalLM(config).eval()


def logits(folder: Path) -> Tensor:
    from transformers import AutoModelForCausalLM

    model, told = AutoModelForCausalLM.from_pretrained(
        folder, local_files_only=True, output_loading_info=True
    )
    assert not any(told.values()), told
    with torch.no_grad():
        return model.eval()(torch.arange(10).view(1, 10)).logits


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("limit", ["5GB", "8KB"], ids=["one file", "many files"])
def test_hugging_face_there_and_back(tmp_path: Path, tied: bool, limit: str) -> None:
    model = language_model(tied)
    model.save_pretrained(tmp_path / "theirs", max_shard_size=limit)
    assert (len(list((tmp_path / "theirs").glob("*.safetensors"))) > 2) == (limit == "8KB")
    found = open_any(tmp_path / "theirs")
    assert found.step == 0 and found.facts["huggingface"]["hidden_size"] == 16
    assert found.tensors["model"].keys() == weights(model).keys()
    convert(found, tmp_path / "ours", "steepest")
    loaded = Store(tmp_path / "ours").load()
    assert all(torch.equal(t, loaded.tensors["model"][name]) for name, t in weights(model).items())
    convert(loaded, tmp_path / "again", "huggingface")
    assert torch.equal(logits(tmp_path / "again"), logits(tmp_path / "theirs"))


def test_what_ranks_saved_becomes_a_hugging_face_folder(tmp_path: Path) -> None:
    """The config comes from the folder that the run's config names as its model."""
    model = language_model(tied=True)
    model.save_pretrained(tmp_path / "theirs")
    whole = Payload({"model": weights(model)}, {"config": {"model": str(tmp_path / "theirs")}})
    for handle in save_by(stores(tmp_path / "run", 3), shards(whole, 3), 1):
        handle.result()
    files = convert(load_at(tmp_path / "run"), tmp_path / "out", "huggingface")
    assert [file.name for file in files] == ["config.json", "model.safetensors"]
    assert torch.equal(logits(tmp_path / "out"), logits(tmp_path / "theirs"))


def index_of(folder: Path, change: Any) -> None:
    path = folder / "model.safetensors.index.json"
    listed = json.loads(path.read_text())
    change(listed)
    path.write_text(json.dumps(listed))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda f: index_of(f, lambda i: i["weight_map"].update(x="../other.safetensors")),
            r"names '\.\./other\.safetensors', which is no file of weights beside it",
        ),
        (lambda f: index_of(f, lambda i: i["weight_map"].update(x="model.bin")), r"names 'model\.bin'"),
        (lambda f: index_of(f, lambda i: i.pop("weight_map")), "has no weight_map of names to files"),
        (
            lambda f: index_of(f, lambda i: i["weight_map"].update(x=min(i["weight_map"].values()))),
            "and its files differ in x",
        ),
        (lambda f: (f / "model.safetensors.index.json").write_text("{"), "cannot be read: Expecting"),
        (lambda f: min(f.glob("*.safetensors")).unlink(), "cannot be read: "),
        (lambda f: min(f.glob("*.safetensors")).write_bytes(b"\0" * 100), "cannot be read: "),
    ],
    ids=["outside", "not safetensors", "no map", "too much", "no json", "missing", "damaged"],
)
def test_a_broken_hugging_face_folder_is_a_sentence(tmp_path: Path, change: Any, words: str) -> None:
    language_model(tied=False).save_pretrained(tmp_path / "theirs", max_shard_size="8KB")
    change(tmp_path / "theirs")
    with pytest.raises(SteepestError, match=words):
        open_any(tmp_path / "theirs")


def test_without_a_model_there_are_no_weights(tmp_path: Path) -> None:
    Store(tmp_path / "run").save(Payload({"optimizer": {}}), step=1, wait=True)
    with pytest.raises(SteepestError, match="gen-000001 holds no model; there are no weights to write"):
        convert(load_at(tmp_path / "run"), tmp_path / "out", "huggingface")
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------------- torch.distributed.checkpoint


def test_dcp_there_and_back(tmp_path: Path) -> None:
    for handle in save_by(stores(tmp_path / "run", 3), shards(payload(7), 3), 70):
        handle.result()
    convert(load_at(tmp_path / "run"), tmp_path / "theirs", "dcp")
    state = {"model": {name: torch.zeros_like(t) for name, t in payload(7).tensors["model"].items()}}
    dcp.load(state, checkpoint_id=tmp_path / "theirs", no_dist=True)
    assert all(torch.equal(t, state["model"][name]) for name, t in payload(7).tensors["model"].items())
    with pytest.raises(SteepestError, match=r"is a DCP folder, whose metadata are a pickle.*\(--trust\)"):
        open_any(tmp_path / "theirs")
    found = open_any(tmp_path / "theirs", trust=True)
    assert found.step == 70
    convert(found, tmp_path / "ours", "steepest")
    assert same(Store(tmp_path / "ours").load(), payload(7))


def test_a_module_saved_by_dcp_is_read_as_a_model(tmp_path: Path) -> None:
    """Flat or nested, with other things than tensors in it, which stay unread."""
    module = nn.Linear(3, 2)
    for name, state in (
        ("flat", dict(module.state_dict())),
        ("nested", {"model": module.state_dict(), "step": 5, "odd": {"list": [1, module.bias.detach()]}}),
    ):
        dcp.save(state, checkpoint_id=tmp_path / name, no_dist=True)
        found = open_any(tmp_path / name, trust=True)
        assert found.tensors["model"].keys() == {"weight", "bias"} and found.facts == {}
        assert all(torch.equal(found.tensors["model"][key], t) for key, t in module.state_dict().items())
        assert name == "flat" or torch.equal(found.tensors["odd"]["list.1"], module.bias)


class Bad:
    """Leaves a mark where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


def test_a_poisoned_dcp_folder_runs_nothing_unless_it_is_trusted(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / ".metadata").write_bytes(pickle.dumps(Bad(tmp_path / "mark")))
    with pytest.raises(SteepestError, match="--trust"):
        open_any(tmp_path / "theirs")
    assert not (tmp_path / "mark").exists()
    with pytest.raises(SteepestError, match=r"the DCP folder .* cannot be read"):
        open_any(tmp_path / "theirs", trust=True)
    assert (tmp_path / "mark").exists(), "trusting it is trusting it"


TWO = """
import sys
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.multiprocessing as mp
from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh

folder = sys.argv[1]
sys.path.insert(0, sys.argv[2])

def work(rank):
    from test_checkpoint_interchange import uneven

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    cut = lambda t: distribute_tensor(t, mesh, [Shard(0)])
    state = {g: {name: cut(t) for name, t in named.items()} for g, named in uneven().items()}
    dcp.save({**state, "step": 9}, checkpoint_id=f"{folder}/theirs")
    empty = {g: {name: cut(torch.zeros_like(t)) for name, t in n.items()} for g, n in uneven().items()}
    dcp.load(empty, checkpoint_id=f"{folder}/ours")
    for group, named in uneven().items():
        for name, tensor in named.items():
            assert torch.equal(empty[group][name].full_tensor(), tensor), name
    dist.destroy_process_group()

if __name__ == "__main__":
    mp.spawn(work, nprocs=2)
"""


def uneven() -> dict[str, dict[str, Tensor]]:
    made = torch.Generator().manual_seed(1)
    model = {"w": torch.randn(7, 6, generator=made), "v.deep": torch.randn(257, 3, generator=made)}
    return {"model": model | {"one": torch.ones(1)}, "optimizer": {"w/m": model["w"].bfloat16()}}


def test_dcp_of_two_processes_both_ways(tmp_path: Path) -> None:
    """What two ranks wrote with DCP is read whole here; what three ranks wrote here, two read with DCP."""
    for handle in save_by(stores(tmp_path / "run", 3), shards(Payload(uneven()), 3), 1):
        handle.result()
    convert(load_at(tmp_path / "run"), tmp_path / "ours", "dcp")
    (tmp_path / "two.py").write_text(TWO)
    arguments = [sys.executable, str(tmp_path / "two.py"), str(tmp_path), str(Path(__file__).parent)]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "theirs").glob("*.distcp"))) == 2
    found = open_any(tmp_path / "theirs", trust=True).tensors
    assert {group: set(named) for group, named in found.items()} == {
        group: set(named) for group, named in uneven().items()
    }
    assert all(torch.equal(found[g][name], t) for g, named in uneven().items() for name, t in named.items())
