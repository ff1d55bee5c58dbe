"""What a generation says of itself: every tensor, every file, and the facts that go with them."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from steepest.contract import SteepestError

SCHEMA = 1
"""The version of the format that is written; older ones are read, newer ones refused."""
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


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


Count = Annotated[int, Field(ge=0)]


class TensorFact(_Frozen):
    """One tensor. norm: its L2 norm, None for whole numbers and where it is not finite.
    nonfinite: how many elements are NaN or infinite.  sha256: of its bytes."""

    dtype: str
    shape: tuple[Count, ...]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    norm: float | None = None
    nonfinite: Count = 0

    @property
    def length(self) -> int:
        """Bytes."""
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize


class FileFact(_Frozen):
    """One file of tensors, in the order in which it holds them. length: in bytes, its header included."""

    group: str
    length: Count
    tensors: dict[str, TensorFact]


class Manifest(_Frozen):
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
        """(group, name, facts) of every tensor."""
        for file in self.files.values():
            yield from ((file.group, name, tensor) for name, tensor in file.tensors.items())

    def groups(self) -> dict[str, dict[str, TensorFact]]:
        """Group to its tensors, also for a group that has none."""
        out: dict[str, dict[str, TensorFact]] = {}
        for file in self.files.values():
            out.setdefault(file.group, {}).update(file.tensors)
        return out

    def length(self) -> int:
        """Bytes of all files of tensors."""
        return sum(file.length for file in self.files.values())

    def dump(self) -> bytes:
        """As it is written: JSON that begins with the checksum of everything after it."""
        rest = json.dumps(self.model_dump(by_alias=True)).encode()[1:]
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
        manifest._check()
        return manifest

    def _check(self) -> None:
        """Raise unless names lead nowhere else, types are known, and no tensor is in two places."""
        seen: set[tuple[str, str]] = set()
        for name, file in self.files.items():
            if not GROUP.fullmatch(file.group) or not re.fullmatch(
                rf"{re.escape(file.group)}-\d{{5,}}\.safetensors", name
            ):
                raise Damaged(f"{NAME} names a file {name!r} for group {file.group!r}; no save does")
            for tensor, fact in file.tensors.items():
                if fact.dtype not in DTYPES:
                    raise Damaged(f"{NAME}: {tensor!r} has the unknown type {fact.dtype!r}")
                if (file.group, tensor) in seen:
                    raise Damaged(f"{NAME}: {tensor!r} of {file.group} is listed twice")
                seen.add((file.group, tensor))


def header(save_id: str, tensors: Mapping[str, TensorFact]) -> bytes:
    """The first bytes of a file of these tensors, in the safetensors format: a length, then JSON.

    It follows from the manifest alone, so a reader compares it instead of believing it. Padded to 8 bytes,
    and tensors come in falling width (see `stage`), so that every one is aligned.
    """
    listed: dict[str, Any] = {"__metadata__": {"format": "pt", "save_id": save_id}}
    offset = 0
    for name, fact in tensors.items():
        end = offset + fact.length
        listed[name] = {"dtype": fact.dtype, "shape": list(fact.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(listed, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
