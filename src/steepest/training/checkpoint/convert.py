"""A checkpoint in the formats of others."""

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
from steepest.training.checkpoint.store import Loaded


def to_plain(loaded: Loaded, out: Path) -> None:
    """`GROUP.safetensors` for every group, and `facts.json`: readable without this library."""
    for group, tensors in loaded.tensors.items():
        save_file(tensors, str(out / f"{group}.safetensors"), metadata={"format": "pt"})
    facts = {"step": loaded.step, **loaded.facts}
    (out / "facts.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def to_torch(loaded: Loaded, out: Path) -> None:
    """`optimizer.pt`: the optimizer's state as torch.optim's own optimizer of the same algorithm loads it
    (`torch.load(..., weights_only=True)`), and `model.pt`: the model's `state_dict`, where there is one."""
    torch.save(torch_state(loaded), out / "optimizer.pt")
    if "model" in loaded.tensors:
        torch.save(loaded.tensors["model"], out / "model.pt")


def torch_state(loaded: Loaded) -> dict[str, Any]:
    """The optimizer's state in torch's shape, decoded: the optimizer is built again over stand-ins for the
    parameters, takes its state with every check there is, and exports it."""
    facts = (loaded.facts.get("built") or loaded.facts).get("optimizer")
    if facts is None or "optimizer" not in loaded.tensors:
        raise SteepestError(f"{loaded.generation} holds no optimizer state: it was not saved within a stage.")
    groups: dict[int, dict[str, Any]] = {}
    for name, of in sorted(facts["parameters"].items(), key=lambda item: item[1]["place"]):
        stand_in = Parameter(
            torch.zeros(of["shape"], dtype=getattr(torch, of["dtype"])), requires_grad=of["step"] is not None
        )
        settings = {**facts["groups"][of["group"]], "rule": of["rule"], "params": []}
        groups.setdefault(of["group"], settings)["params"].append((name, stand_in))
    optimizer = Optimizer([groups[g] for g in sorted(groups)], rule=groups[min(groups)]["rule"])
    optimizer.import_state(loaded.tensors["optimizer"], facts)
    return optimizer.export_torch_state()


FORMATS: Mapping[str, Callable[[Loaded, Path], None]] = {"plain": to_plain, "torch": to_torch}
"""What `convert` can write. A format is a function of a verified checkpoint and an empty folder."""


def convert(loaded: Loaded, out: Path, to: str) -> list[Path]:
    """Write a checkpoint to a new folder; it appears there whole. Returns its files."""
    if to not in FORMATS:
        raise unknown("format", to, FORMATS)
    if out.exists():
        raise SteepestError(f"{out} exists already; choose another --out.")
    beside = out.with_name(f".{out.name}.partial")
    try:
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        FORMATS[to](loaded, beside)
        beside.rename(out)
    except (OSError, RuntimeError, SafetensorError) as error:
        why = str(getattr(error, "strerror", None) or error).partition("\n")[0]
        raise SteepestError(f"cannot write {out} ({why}); choose another --out.") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return sorted(out.iterdir())
