"""What a generation says of itself: every tensor, every file, and the facts that go with them."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from steepest.contract import SteepestError

SCHEMA = 2
"""The version of the format that is written; older ones are read, newer ones refused. 1 had no pieces."""
NAME = "manifest.json"
LIMIT = 100_000_000
"""Bytes of JSON that are read at most, in a manifest or in the header of a file of tensors."""

DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""safetensors' name of a type to torch's; tensors of other types are neither written nor read."""
CODES = {dtype: code for code, dtype in DTYPES.items()}

GROUP = re.compile(r"\w[\w.-]{0,99}", re.ASCII)
"""A group gives its files their name, so it has none of the characters that lead elsewhere."""
_CHECKSUM = re.compile(rb'\{"checksum": "([0-9a-f]{64})", ')


class Damaged(Exception):
    """A generation is not what was saved; its text says which file or tensor, and how."""


class Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


Count = Annotated[int, Field(ge=0)]


class PieceFact(Frozen):
    """What one file holds of a tensor: all of it, or slices of its first dimension.

    shape: of what is here.  sha256: of its bytes.  norm: its L2 norm, None for whole numbers and where it is
    not finite.  nonfinite: how many elements are NaN or infinite.
    rows: slices of the whole tensor, None where all of it is here.  first: the number of the first one here.
    """

    dtype: str
    shape: tuple[Count, ...]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    norm: float | None = None
    nonfinite: Count = 0
    rows: Count | None = None
    first: Count = 0

    @property
    def length(self) -> int:
        """Bytes."""
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize

    @property
    def whole(self) -> tuple[int, ...]:
        """The shape of the whole tensor."""
        return self.shape if self.rows is None else (self.rows, *self.shape[1:])


@dataclass(frozen=True)
class TensorFact:
    """One whole tensor, in however many pieces. norm, nonfinite: as of a piece.
    sha256: of its bytes; None where they lie in several files."""

    dtype: str
    shape: tuple[int, ...]
    sha256: str | None
    norm: float | None
    nonfinite: int

    @property
    def length(self) -> int:
        """Bytes."""
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize


class FileFact(Frozen):
    """One file of tensors, in the order in which it holds them. length: in bytes, its header included."""

    group: str
    length: Count
    tensors: dict[str, PieceFact]


class Manifest(Frozen):
    """A whole generation.

    save_id: of this save alone, and in every file of it.  number: saves of this run so far, this one
    included.  parent: the generation that training went on from, or the one saved before.
    keep: never removed to make room.  created: UTC.
    """

    schema_version: Count = Field(alias="schema")
    save_id: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    number: Count
    parent: str | None
    step: Count
    keep: bool
    created: str
    versions: dict[str, str]
    files: dict[str, FileFact]
    facts: dict[str, Any]

    def tensors(self) -> Iterator[tuple[str, str, TensorFact]]:
        """(group, name, facts) of every whole tensor."""
        for group, tensors in self.groups().items():
            yield from ((group, name, fact) for name, fact in tensors.items())

    def groups(self) -> dict[str, dict[str, TensorFact]]:
        """Group to its whole tensors, also for a group that has none."""
        return {
            group: {name: _whole([piece for _, piece in held]) for name, held in tensors.items()}
            for group, tensors in self._pieces().items()
        }

    def _pieces(self) -> dict[str, dict[str, list[tuple[str, PieceFact]]]]:
        """Group to tensor to (file, what it holds of it)."""
        out: dict[str, dict[str, list[tuple[str, PieceFact]]]] = {}
        for file, fact in self.files.items():
            group = out.setdefault(fact.group, {})
            for name, piece in fact.tensors.items():
                group.setdefault(name, []).append((file, piece))
        return out

    def length(self) -> int:
        """Bytes of all files of tensors."""
        return sum(file.length for file in self.files.values())

    def dump(self) -> bytes:
        """As it is written: JSON that begins with the checksum of everything after it."""
        rest = json.dumps(self.model_dump(by_alias=True, exclude_defaults=True)).encode()[1:]
        if len(rest) > LIMIT:
            raise SteepestError(
                f"the facts and names of this checkpoint are {len(rest) / 1e6:.0f} MB of JSON; "
                f"{LIMIT / 1e6:.0f} MB are read back at most, so keep large things in tensors."
            )
        return b'{"checksum": "%s", %s' % (hashlib.sha256(rest).hexdigest().encode(), rest)

    @classmethod
    def parse(cls, data: bytes) -> Manifest:
        """Read and check one; raises `Damaged`, or an error the user can mend if it is of a newer version."""
        found = _CHECKSUM.match(data)
        if found is None:
            raise Damaged(f"{NAME} is no manifest")
        rest = data[found.end() :]
        if hashlib.sha256(rest).hexdigest().encode() != found[1]:
            raise Damaged(f"{NAME} was changed after it was written (its checksum differs)")
        try:
            raw = json.loads(b"{" + rest)
        except (RecursionError, ValueError) as error:
            raise Damaged(f"{NAME} is not JSON ({error})") from None
        if isinstance(raw.get("schema"), int) and raw["schema"] > SCHEMA:
            raise SteepestError(
                f"this checkpoint has format {raw['schema']} and this steepest reads up to {SCHEMA}; update "
                "steepest."
            )
        try:
            manifest = cls.model_validate(raw)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise Damaged(f"{NAME}: {where}: {first['msg']}") from None
        manifest.check()
        return manifest

    def check(self) -> None:
        """Raise `Damaged` unless names lead nowhere else, types are known, and every tensor is here once:
        whole, or in pieces that follow each other without a gap."""
        for name, file in self.files.items():
            if not GROUP.fullmatch(file.group) or not re.fullmatch(
                rf"{re.escape(file.group)}(-\d{{5,}}){{1,2}}\.safetensors", name
            ):
                raise Damaged(f"{NAME} names a file {name!r} for group {file.group!r}; no save does")
            for tensor, fact in file.tensors.items():
                if fact.dtype not in DTYPES:
                    raise Damaged(f"{NAME}: {tensor!r} has the unknown type {fact.dtype!r}")
        for group, tensors in self._pieces().items():
            for tensor, held in tensors.items():
                _check_pieces(f"{NAME}: {tensor!r} of {group}", held)


def _check_pieces(where: str, held: Sequence[tuple[str, PieceFact]]) -> None:
    """Raise unless these (file, what it holds) are one tensor."""
    first_file, first = held[0]
    if len(held) == 1 and first.rows is None:
        return
    for file, piece in held:
        if piece.rows is None:
            raise Damaged(f"{where} is listed twice: {first_file}, {held[1][0]}")
        if not piece.shape or (piece.dtype, piece.whole) != (first.dtype, first.whole):
            raise Damaged(f"{where}: what {file} holds is no piece of what {first_file} holds a piece of")
    at, before = 0, first_file
    for file, piece in sorted(held, key=lambda one: one[1].first):
        if not piece.shape[0]:
            continue  # an empty shard lies anywhere
        if piece.first < at:
            raise Damaged(f"{where}: slice {piece.first} is in {before} and again in {file}")
        if piece.first > at:
            break
        at, before = piece.first + piece.shape[0], file
    if at < (first.rows or 0):
        raise Damaged(f"{where}: slice {at} of its {first.rows} is in none of the files")
    if at > (first.rows or 0):
        raise Damaged(f"{where}: {before} holds more than the {first.rows} slices there are")


def _whole(pieces: Sequence[PieceFact]) -> TensorFact:
    norms = [piece.norm for piece in pieces if piece.norm is not None]
    return TensorFact(
        dtype=pieces[0].dtype,
        shape=pieces[0].whole,
        sha256=pieces[0].sha256 if len(pieces) == 1 else None,
        norm=math.hypot(*norms) if len(norms) == len(pieces) else None,
        nonfinite=sum(piece.nonfinite for piece in pieces),
    )


def header(save_id: str, tensors: Mapping[str, PieceFact]) -> bytes:
    """The first bytes of a file of these tensors, in the safetensors format: a length, then JSON. Its
    metadata say which slices a piece is, so that the pieces of two ranks are never taken for each other.

    It follows from the manifest alone, so a reader compares it instead of believing it. Padded to 8 bytes,
    and tensors come in falling width (see `stage`), so that every one is aligned.
    """
    metadata = {"format": "pt", "save_id": save_id}
    cut = {name: [fact.first, fact.rows] for name, fact in tensors.items() if fact.rows is not None}
    if cut:
        metadata["pieces"] = json.dumps(cut)
    listed: dict[str, Any] = {"__metadata__": metadata}
    offset = 0
    for name, fact in tensors.items():
        end = offset + fact.length
        listed[name] = {"dtype": fact.dtype, "shape": list(fact.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(listed, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
