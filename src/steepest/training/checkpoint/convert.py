"""Checkpoints in other formats, read and written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch.nn import Parameter

from steepest.contract import SteepestError, unknown
from steepest.optimizer import Optimizer
from steepest.training.checkpoint.contents import Contents
from steepest.training.checkpoint.dcp import METADATA, from_dcp, to_dcp
from steepest.training.checkpoint.huggingface import INDEX, WEIGHTS, from_huggingface, to_huggingface
from steepest.training.checkpoint.inspect import load_at
from steepest.training.checkpoint.manifest import NAME
from steepest.training.checkpoint.stage import Payload
from steepest.training.checkpoint.store import Store


def open_any(path: Path, *, trust: bool = False) -> Contents:
    """A checkpoint of ours, verified (see `load_at`), the weights of a Hugging Face folder, or a DCP folder.

    trust: read a DCP folder, although whoever made it can run code here by that; raises without.
    """
    if not (path / NAME).exists():
        if (path / INDEX).exists() or (path / WEIGHTS).exists():
            return from_huggingface(path)
        if (path / METADATA).exists():
            return from_dcp(path, trust=trust)
    return load_at(path)


def to_plain(contents: Contents, out: Path) -> None:
    """`GROUP.safetensors` for every group, and `facts.json`: readable without this library."""
    for group, tensors in contents.tensors.items():
        save_file(tensors, str(out / f"{group}.safetensors"), metadata={"format": "pt"})
    facts = {"step": contents.step, **contents.facts}
    (out / "facts.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def to_torch(contents: Contents, out: Path) -> None:
    """`optimizer.pt`: the optimizer's state as torch.optim's own optimizer of the same algorithm loads it
    (`torch.load(..., weights_only=True)`), and `model.pt`: the model's `state_dict`, where there is one."""
    torch.save(torch_state(contents), out / "optimizer.pt")
    if "model" in contents.tensors:
        torch.save(contents.tensors["model"], out / "model.pt")


def torch_state(contents: Contents) -> dict[str, Any]:
    """The optimizer's state in torch's shape, decoded: the optimizer is built again over stand-ins for the
    parameters, takes its state with every check there is, and exports it."""
    facts = (contents.facts.get("built") or contents.facts).get("optimizer")
    if facts is None or "optimizer" not in contents.tensors:
        raise SteepestError(
            f"{contents.generation} holds no optimizer state: it was not saved within a stage."
        )
    groups: dict[int, dict[str, Any]] = {}
    for name, of in sorted(facts["parameters"].items(), key=lambda item: item[1]["place"]):
        stand_in = Parameter(
            torch.zeros(of["shape"], dtype=getattr(torch, of["dtype"])), requires_grad=of["step"] is not None
        )
        settings = {**facts["groups"][of["group"]], "rule": of["rule"], "params": []}
        groups.setdefault(of["group"], settings)["params"].append((name, stand_in))
    optimizer = Optimizer([groups[g] for g in sorted(groups)], rule=groups[min(groups)]["rule"])
    optimizer.import_state(contents.tensors["optimizer"], facts)
    return optimizer.export_torch_state()


def to_steepest(contents: Contents, out: Path) -> None:
    """A folder of checkpoints with this one in it, in one piece on however many ranks it was saved."""
    Store(out).save(Payload(contents.tensors, contents.facts), step=contents.step, wait=True)


FORMATS: Mapping[str, Callable[[Contents, Path], None]] = {
    "plain": to_plain,
    "torch": to_torch,
    "huggingface": to_huggingface,
    "dcp": to_dcp,
    "steepest": to_steepest,
}
"""What `convert` can write. A format is a function of a checkpoint and an empty folder."""


def convert(contents: Contents, out: Path, to: str) -> list[Path]:
    """Write a checkpoint to a new folder; it appears there whole. Returns its files."""
    if to not in FORMATS:
        raise unknown("format", to, FORMATS)
    if out.exists():
        raise SteepestError(f"{out} exists already; choose another --out.")
    beside = out.with_name(f".{out.name}.partial")
    try:
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        FORMATS[to](contents, beside)
        beside.rename(out)
    except SteepestError:
        raise
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        why = str(getattr(error, "strerror", None) or error).partition("\n")[0]
        raise SteepestError(f"cannot write {out} ({why}); choose another --out.") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return sorted(out.iterdir())
