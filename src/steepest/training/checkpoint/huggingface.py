"""Folders of Hugging Face safetensors, both ways: weights, and the config that says whose they are."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from steepest.contract import SteepestError
from steepest.training.checkpoint.contents import Contents, Foreign

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


def from_huggingface(folder: Path) -> Foreign:
    """The weights of a folder that `save_pretrained` wrote, in one file or in several with an index, as the
    group `model`; its `config.json` goes along as the fact `huggingface`."""
    try:
        tensors: dict[str, Tensor] = {}
        for file in _weight_files(folder):
            held = load_file(folder / file)
            if twice := sorted(tensors.keys() & held.keys()):
                raise SteepestError(f"{twice[0]!r} is in two files of {folder}.")
            tensors |= held
        if (folder / INDEX).exists():
            _check_index(folder, tensors)
        config = folder / "config.json"
        facts = {"huggingface": json.loads(config.read_text("utf-8"))} if config.exists() else {}
    except SteepestError:
        raise
    except (OSError, ValueError, SafetensorError) as error:
        why = str(getattr(error, "strerror", None) or error).partition("\n")[0]
        raise SteepestError(f"the weights in {folder} cannot be read: {why}.") from error
    return Foreign(folder.name, 0, {"model": tensors}, facts)


def _weight_files(folder: Path) -> list[str]:
    if not (folder / INDEX).exists():
        return [WEIGHTS]
    files = sorted(set(_weight_map(folder).values()))
    for file in files:
        if Path(file).name != file or not file.endswith(".safetensors"):
            raise SteepestError(f"{INDEX} of {folder} names {file!r}, which is no file of weights beside it.")
    return files


def _weight_map(folder: Path) -> dict[str, str]:
    listed = json.loads((folder / INDEX).read_text("utf-8"))
    found = listed.get("weight_map") if isinstance(listed, dict) else None
    if not isinstance(found, dict) or not all(isinstance(file, str) for file in found.values()):
        raise SteepestError(f"{INDEX} of {folder} has no weight_map of names to files.")
    return found


def _check_index(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    if odd := sorted(_weight_map(folder).keys() ^ tensors.keys()):
        raise SteepestError(f"{INDEX} of {folder} and its files differ in {', '.join(odd[:3])}.")


def to_huggingface(contents: Contents, out: Path) -> None:
    """`model.safetensors`, or several and an index past 5 GB, as `from_pretrained` reads them; with the
    `config.json` of the folder that the model came from, where there is one."""
    if "model" not in contents.tensors:
        raise SteepestError(f"{contents.generation} holds no model; there are no weights to write.")
    hub = importlib.import_module("huggingface_hub")
    hub.save_torch_state_dict(contents.tensors["model"], str(out), metadata={"format": "pt"})
    if "huggingface" in contents.facts:
        (out / "config.json").write_text(json.dumps(contents.facts["huggingface"], indent=2) + "\n", "utf-8")
    config = contents.facts.get("config")
    came_from = Path(str(config["model"])) if isinstance(config, Mapping) and "model" in config else None
    if came_from is not None and (came_from / "config.json").is_file():
        (out / "config.json").write_bytes((came_from / "config.json").read_bytes())
