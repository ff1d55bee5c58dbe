"""Documents packed into rows, so that no text is cut that fits into one and little is padding.

Best-fit decreasing, the longest piece first, each into the row where it leaves the least room (Ding et al.
2024, arXiv:2404.10830). A document longer than a row is cut into pieces that overlap by one token, so every
token but a document's first is predicted exactly once an epoch.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence

import numpy as np
import torch

from steepest.contract import SteepestError
from steepest.data.batches import Indices
from steepest.data.tokenizer import TokenIds

PADDING = -1
"""The segment of a token that is none."""


class Packed:
    """Rows of `length` + 1 tokens with the documents that each holds: a `Source`."""

    def __init__(self, documents: Sequence[TokenIds], *, length: int, pad_id: int = 0) -> None:
        """documents: (n,) token ids each, with their end tokens; length: inputs of a row.

        Documents of fewer than two tokens have nothing to predict; they are left out, and counted.
        """
        if length < 1:
            raise SteepestError(f"length={length} must be at least 1.")
        self.left_out = sum(len(document) < 2 for document in documents)
        """Documents of fewer than two tokens."""
        sizes = np.array([len(document) for document in documents], dtype=np.int64)
        starts, sizes = _pieces(sizes, length + 1)
        rows = best_fit(sizes, length + 1)
        self._tokens = np.concatenate([np.empty(0, dtype=np.int32), *documents])
        self._rows = [[(int(starts[piece]), int(sizes[piece])) for piece in row] for row in rows]
        self._width = length + 1
        self._pad_id = pad_id
        self.lengths: Indices = np.array([sum(size for _, size in row) for row in self._rows], dtype=np.int64)
        """(n,) tokens of each row that are not padding."""

    @property
    def padding(self) -> float:
        """The share of all rows that is padding."""
        room = len(self.lengths) * self._width
        return 1 - float(self.lengths.sum()) / room if room else 0.0

    def batch(self, indices: Indices) -> dict[str, torch.Tensor]:
        """{"ids", "segments"} of the rows of these numbers, int64 (B, length + 1).

        segments: 0 for the first document of a row, 1 for the next, ..., -1 for padding.
        """
        shape = len(indices), self._width
        ids = np.full(shape, self._pad_id, dtype=np.int64)
        segments = np.full(shape, PADDING, dtype=np.int64)
        for row, number in enumerate(indices.tolist()):
            place = 0
            for segment, (start, size) in enumerate(self._rows[number]):
                ids[row, place : place + size] = self._tokens[start : start + size]
                segments[row, place : place + size] = segment
                place += size
        return {"ids": torch.from_numpy(ids), "segments": torch.from_numpy(segments)}


def best_fit(sizes: Indices, width: int) -> list[list[int]]:
    """Rows of the numbers of pieces whose sizes, each at most `width`, add up to at most `width`."""
    rows: list[list[int]] = []
    open_rows: dict[int, list[int]] = {}  # room left to the rows that have it
    rooms: list[int] = []  # the keys of `open_rows`, sorted
    for piece in np.argsort(-sizes, kind="stable").tolist():
        size = int(sizes[piece])
        place = bisect_left(rooms, size)
        if place == len(rooms):
            row, room = len(rows), width
            rows.append([])
        else:
            room = rooms[place]
            row = open_rows[room].pop()
            if not open_rows[room]:
                del open_rows[room], rooms[place]
        rows[row].append(piece)
        if left := room - size:
            if left not in open_rows:
                insort(rooms, left)
            open_rows.setdefault(left, []).append(row)
    return rows


def _pieces(sizes: Indices, width: int) -> tuple[Indices, Indices]:
    """(starts in the joined documents, sizes) of the pieces that documents of these sizes are cut into."""
    ends = np.cumsum(sizes)
    spans = [
        (start, min(width, end - start))
        for first, end in zip((ends - sizes).tolist(), ends.tolist(), strict=True)
        for start in range(first, end - 1, width - 1)
    ]
    found = np.array(spans, dtype=np.int64).reshape(-1, 2)
    return found[:, 0], found[:, 1]
