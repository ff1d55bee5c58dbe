"""What is to be saved, and the copy of it that the writer works from while training goes on."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from steepest.contract import Shard, SteepestError
from steepest.training.checkpoint.manifest import CODES, DTYPES, GROUP, PieceFact

FILE_BYTES = 2_000_000_000
"""A file of tensors holds about this much; one larger tensor has a file of its own."""
ROW = 4096
"""Elements whose squares are summed in float32."""


@dataclass(frozen=True)
class Piece:
    """What this process holds of a tensor that is cut: slices of its first dimension, perhaps none of them.

    tensor: (slices, *shard.shape[1:]).  shard: which ones, of what.
    """

    tensor: Tensor
    shard: Shard


@dataclass(frozen=True)
class Payload:
    """What a checkpoint holds: group to (name to tensor), and facts that are plain JSON.

    Groups are short words ("model", "optimizer"). Facts are None, bools, numbers, strings, lists and dicts
    with strings for keys; tuples come back as lists.
    Of several processes, each gives the pieces that it holds; a tensor that all of them have is given by one
    of them, and facts are taken from rank 0.
    """

    tensors: Mapping[str, Mapping[str, Tensor | Piece]]
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class StagedFile:
    """A file to be written: its tensors, copied to the CPU, and what was true of them then."""

    group: str
    tensors: dict[str, tuple[Tensor, PieceFact]]


@dataclass(frozen=True)
class Staged:
    """A payload that no longer changes: files by name."""

    files: dict[str, StagedFile]
    facts: dict[str, Any]


def stage(payload: Payload, limit: int = FILE_BYTES) -> Staged:
    """Copy every tensor to CPU memory and hash the copies; what happens to the originals later is not seen.

    Hashes are made here, not by the writer, so that what is read back from the disk is compared with the
    tensors as they were handed over. They are made on as many threads as torch uses, beside the copying.
    """
    check_facts(payload.facts, "facts")
    _check_tensors(payload)
    try:
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            pending = {
                group: {name: _copy(tensor, pool) for name, tensor in tensors.items()}
                for group, tensors in payload.tensors.items()
            }
    except (MemoryError, RuntimeError) as error:
        why = str(error).partition("\n")[0]
        raise SteepestError(f"the tensors of this checkpoint cannot be copied to the CPU: {why}") from error
    files = {}
    for group, entries in pending.items():
        ready = {
            name: (copy, PieceFact(sha256=digest.result(), **facts))
            for name, (copy, facts, digest) in entries.items()
        }
        for index, names in enumerate(_split(ready, limit), 1):
            tensors = {name: ready[name] for name in names}
            files[f"{group}-{index:05}.safetensors"] = StagedFile(group, tensors)
    return Staged(files, json.loads(json.dumps(payload.facts)))


def content(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous CPU tensor, not copied."""
    return tensor.reshape(-1).view(torch.uint8).numpy().data


def digest(data: memoryview) -> str:
    """SHA-256. Never by chance the same for different bytes, so equal digests are equal tensors; with the
    instructions that CPUs have for it, it is faster than the disks that it guards."""
    return hashlib.sha256(data).hexdigest()


@torch.no_grad()
def _copy(given: Tensor | Piece, pool: ThreadPoolExecutor) -> tuple[Tensor, dict[str, Any], Any]:
    tensor, shard = (given.tensor, given.shard) if isinstance(given, Piece) else (given, None)
    tensor = tensor.detach()
    copy = torch.empty(tensor.shape, dtype=tensor.dtype).copy_(tensor)
    norm, nonfinite = measure(tensor)
    facts = {"dtype": CODES[copy.dtype], "shape": tuple(copy.shape), "norm": norm, "nonfinite": nonfinite}
    if shard is not None:
        facts |= {"rows": shard.shape[0], "first": shard.first}
    return copy, facts, pool.submit(digest, content(copy))


def measure(tensor: Tensor) -> tuple[float | None, int]:
    """L2 norm (None for whole numbers, and where it is not finite) and number of non-finite elements,
    computed where the tensor is; to 1e-5, however large it is. In float32 where squares stay well inside its
    range, which is many times as fast, else in float64."""
    if not tensor.is_floating_point():
        return None, 0
    if tensor.dtype.itemsize == 1:
        tensor = tensor.float()  # torch computes nothing in 8 bits
    norm = _norm(tensor.reshape(-1), torch.promote_types(tensor.dtype, torch.float32))
    if not 1e-15 < norm < 1e15:
        nonfinite = int(tensor.numel() - torch.isfinite(tensor).sum().item())
        norm = torch.linalg.vector_norm(tensor, dtype=torch.float64).item()
        return (norm if math.isfinite(norm) else None), nonfinite
    return norm, 0


def _norm(flat: Tensor, dtype: torch.dtype) -> float:
    """L2 norm, in rows whose norms are then put together in float64: one float32 sum over 1e8 elements is a
    hundredth off."""
    whole = flat.numel() // ROW * ROW
    rows = torch.linalg.vector_norm(flat[:whole].view(-1, ROW), dim=1, dtype=dtype)
    rest = torch.linalg.vector_norm(flat[whole:], dtype=dtype)
    return torch.linalg.vector_norm(torch.cat([rows, rest.view(1)]).cpu().double()).item()


def _split(ready: Mapping[str, tuple[Tensor, PieceFact]], limit: int) -> list[list[str]]:
    """Names in files of about `limit` bytes, wide types first, so that each tensor is aligned in its file.
    A group without tensors is one empty file: it exists."""
    files: list[list[str]] = [[]]
    size = 0
    for name in sorted(ready, key=lambda name: -DTYPES[ready[name][1].dtype].itemsize):
        length = ready[name][1].length
        if files[-1] and size + length > limit:
            files.append([])
            size = 0
        files[-1].append(name)
        size += length
    return files


def _check_tensors(payload: Payload) -> None:
    """Raise for the first name or tensor that could not be read back as it is."""
    for group, tensors in payload.tensors.items():
        if not GROUP.fullmatch(group):
            raise SteepestError(
                f"checkpoint group {group!r} must be at most 100 letters, digits, '_', '-' or '.', and begin "
                "with none of the last two: it names files."
            )
        for name, given in tensors.items():
            where = f"checkpoint tensor {name!r} of {group}"
            tensor = given.tensor if isinstance(given, Piece) else given
            if isinstance(given, Piece):
                _check_piece(where, given)
            if name == "__metadata__" or not _encodes(name):
                raise SteepestError(f"{where}: safetensors cannot hold this name.")
            if tensor.layout != torch.strided or tensor.device.type == "meta":
                raise SteepestError(
                    f"{where} must be dense and have values, not be {tensor.layout} on {tensor.device}."
                )
            if tensor.dtype not in CODES:
                known = ", ".join(str(dtype).removeprefix("torch.") for dtype in CODES)
                raise SteepestError(f"{where} is {tensor.dtype}; a checkpoint holds {known}.")


def _check_piece(where: str, piece: Piece) -> None:
    shape, whole, first = piece.tensor.shape, piece.shard.shape, piece.shard.first
    fits = len(shape) == len(whole) > 0 and shape[1:] == whole[1:]
    if not fits or not 0 <= first <= whole[0] - shape[0]:
        raise SteepestError(
            f"{where} cannot be a piece of {tuple(whole)} from slice {first} on: it is {tuple(shape)}."
        )


def _encodes(name: str) -> bool:
    try:
        return bool(name.encode())
    except UnicodeEncodeError:
        return False


def check_facts(value: Any, where: str) -> None:
    """Raise, saying where, for the first thing that JSON would not give back."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if not isinstance(key, str):
                raise SteepestError(f"{where}: the key {key!r} is not a string; JSON would make it one.")
            check_facts(inner, f"{where}.{key}")
    elif isinstance(value, (list, tuple)):
        for index, inner in enumerate(value):
            check_facts(inner, f"{where}[{index}]")
    elif not (value is None or isinstance(value, (bool, int, float, str))):
        raise SteepestError(
            f"{where} is {type(value).__name__}, which JSON cannot hold; save a plain number, "
            "string, list or dict, or a tensor."
        )
