"""Checkpoints of torch.distributed.checkpoint (DCP), both ways.

The only file here that meets a pickle: DCP keeps its metadata in one.
"""

from __future__ import annotations

import importlib
import json
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from steepest.contract import SteepestError
from steepest.training.checkpoint.contents import Contents, Foreign
from steepest.training.checkpoint.manifest import GROUP

METADATA = ".metadata"
"""What a DCP folder's file about all others is called."""
OWN = "steepest"
"""The group with the facts of a checkpoint, as JSON in a tensor of bytes: so there is nothing but tensors."""


def from_dcp(folder: Path, *, trust: bool) -> Foreign:
    """The tensors of a DCP folder, whole, however many ranks wrote it; whatever else is in it stays unread.

    Its metadata are a pickle, and reading one runs whatever its maker has put there: so nothing is read
    unless `trust` is given. The data themselves are read by torch's own loader, into tensors made here for
    exactly the names and shapes that the metadata list.
    """
    if not trust:
        raise SteepestError(
            f"{folder} is a DCP folder, whose metadata are a pickle: reading them can run code of whoever "
            "made it. If you trust them, say so (--trust)."
        )
    dcp: Any = importlib.import_module("torch.distributed.checkpoint")
    kinds: Any = importlib.import_module("torch.distributed.checkpoint.metadata")
    planners: Any = importlib.import_module("torch.distributed.checkpoint.default_planner")
    try:
        reader = dcp.FileSystemReader(folder)
        metadata = reader.read_metadata()
        flat = {
            name: torch.empty(entry.size, dtype=entry.properties.dtype)
            for name, entry in metadata.state_dict_metadata.items()
            if isinstance(entry, kinds.TensorStorageMetadata)
        }
        with warnings.catch_warnings(action="ignore"):  # that there is no process group, which is meant
            planner = planners.DefaultLoadPlanner(flatten_state_dict=False)
            dcp.load(flat, storage_reader=reader, planner=planner, no_dist=True)
    except Exception as error:  # pickles raise whatever they like
        raise SteepestError(
            f"the DCP folder {folder} cannot be read: {type(error).__name__}: {error}."
        ) from error
    paths = metadata.planner_data or {}
    tensors: dict[str, dict[str, Tensor]] = {}
    for name, tensor in flat.items():
        group, inner = _place(paths.get(name, (name,)))
        tensors.setdefault(group, {})[inner] = tensor
    own = tensors.pop(OWN, {})
    if "facts" not in own:
        return Foreign(folder.name, 0, tensors)
    told = json.loads(own["facts"].numpy().tobytes())
    return Foreign(folder.name, told["step"], {g: tensors.get(g, {}) for g in told["groups"]}, told["facts"])


def _place(path: tuple[Any, ...]) -> tuple[str, str]:
    """(group, name) of a path in a nested state dict; what lies at its top is taken for a model's."""
    first, *rest = map(str, path)
    if rest and GROUP.fullmatch(first):
        return first, ".".join(rest)
    return "model", ".".join((first, *rest))


def to_dcp(contents: Contents, out: Path) -> None:
    """A folder that `torch.distributed.checkpoint.load` reads on any number of ranks, given a state dict
    {group: {name: tensor}}."""
    dcp: Any = importlib.import_module("torch.distributed.checkpoint")
    told = {"step": contents.step, "groups": list(contents.tensors), "facts": contents.facts}
    text = bytearray(json.dumps(told).encode())
    state: dict[str, dict[str, Tensor]] = {g: dict(named) for g, named in contents.tensors.items() if named}
    state[OWN] = {"facts": torch.frombuffer(text, dtype=torch.uint8)}
    with warnings.catch_warnings(action="ignore"):  # that there is no process group, which is meant
        dcp.save(state, storage_writer=dcp.FileSystemWriter(out), no_dist=True)
