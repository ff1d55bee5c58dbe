"""Whole tensors, or the parts of them that one process keeps, from the pieces in which they were saved."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from steepest.contract import SteepestError
from steepest.training.checkpoint.manifest import DTYPES, Damaged, Manifest, PieceFact, TensorFact
from steepest.training.checkpoint.read import read_pieces
from steepest.training.checkpoint.stage import measure

Part = Callable[[str, str, torch.Size], range | None]
"""(group, name, shape of the whole tensor) to the wanted slices of its first dimension; None: all of it."""

TOLERANCE = 1e-5
"""How far the norm of a tensor that was put together may be from that of its pieces, relative to it: each is
summed in its own order (see `measure`). That the bytes are the same is known from their checksums."""


def read(
    folder: Path, manifest: Manifest, part: Part | None = None, *, from_disk: bool = False
) -> dict[str, dict[str, Tensor]]:
    """All tensors of a generation by group, once all are verified; raises `Damaged`.

    Every byte is read and its checksum compared. One piece at a time is in memory beside what is kept, and
    what was put together has the norm that was saved. from_disk: see `read_pieces`.
    """
    exact = manifest.schema_version > 1  # norms of format 1 were a hundredth off for 1e8 elements
    kept = {
        group: {
            name: _Kept(f"{group}/{name}", fact, part and _rows(part, group, name, fact), exact)
            for name, fact in t.items()
        }
        for group, t in manifest.groups().items()
    }
    for group, name, piece, tensor in read_pieces(
        folder, manifest.save_id, manifest.files, from_disk=from_disk
    ):
        kept[group][name].add(piece, tensor)
    return {group: {name: one.done() for name, one in named.items()} for group, named in kept.items()}


def nothing(group: str, name: str, shape: torch.Size) -> range | None:
    """The part of who only looks whether all is well."""
    return range(0) if shape else None


def _rows(part: Part, group: str, name: str, fact: TensorFact) -> range | None:
    rows = part(group, name, torch.Size(fact.shape))
    if rows is None or (fact.shape and rows.step == 1 and 0 <= rows.start <= rows.stop <= fact.shape[0]):
        return rows
    raise SteepestError(f"{rows} of {group}/{name} is asked for, which has the shape {fact.shape}.")


class _Kept:
    """A tensor of which pieces arrive. rows: the slices that are kept, None for all of them.  exact: whether
    the norm that was saved is that of the tensor to `TOLERANCE`."""

    def __init__(self, where: str, fact: TensorFact, rows: range | None, exact: bool) -> None:
        self.where, self.fact, self.rows, self.exact = where, fact, rows, exact
        self.tensor: Tensor | None = None
        self.left: list[float] = []

    def add(self, piece: PieceFact, tensor: Tensor) -> None:
        """Copy what is wanted of a piece to its place; of the rest only the norm remains."""
        if self.rows is None and piece.rows is None:
            self.tensor = tensor
            return
        rows = range(self.fact.shape[0]) if self.rows is None else self.rows
        if self.tensor is None:
            self.tensor = self._room(len(rows))
        length = tensor.shape[0]
        first = min(max(rows.start - piece.first, 0), length)
        last = min(max(rows.stop - piece.first, first), length)
        at = piece.first + first - rows.start
        self.tensor[at : at + last - first].copy_(tensor[first:last])
        self.left += [measure(rest)[0] or 0.0 for rest in (tensor[:first], tensor[last:])]

    def done(self) -> Tensor:
        """What was kept, whose norm, with that of what was left out, is the one that was saved."""
        assert self.tensor is not None  # the manifest was refused if a tensor had no pieces
        if self.exact and self.fact.norm is not None:
            found = math.hypot(measure(self.tensor)[0] or 0.0, *self.left)
            if not math.isclose(found, self.fact.norm, rel_tol=TOLERANCE):
                raise Damaged(
                    f"{self.where} has norm {found:g} when put together, and {self.fact.norm:g} was saved"
                )
        return self.tensor

    def _room(self, rows: int) -> Tensor:
        shape = (rows, *self.fact.shape[1:])
        try:
            return torch.empty(shape, dtype=DTYPES[self.fact.dtype])
        except (RuntimeError, MemoryError) as error:
            raise Damaged(f"{self.where} does not fit into memory") from error
