"""The tables that kernels on a GPU read, kept on the device and sent there when they change."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from steepest.codecs import grid
from steepest.contract import SteepestError
from steepest.kernels import Kernel
from steepest.kernels.triton import FACTS, WORK, Printed

PIECE = 64
"""Blocks of 128 elements in a piece."""

TILE = {False: (8, 4), True: (32, 8)}
"""Whether a kernel sees rows and columns, to the rows of its tiles and its warps."""

SPAN = 1024
"""Columns in a piece of a kernel that sees rows and columns; elements of a vector in one tile of a fold."""

OPTIONS = {"enable_fp_fusion": True}
"""A product and a sum become one instruction, as on the CPU, whatever this Triton's default is."""

Launcher = Callable[..., None]
"""launch(function, programs, *arguments, **options)"""


class Mirror:
    """Numbers on the host and their copy on the device."""

    def __init__(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> None:
        self._host = torch.zeros(tuple(shape), dtype=dtype, pin_memory=device.type == "cuda")
        self.device = torch.zeros(tuple(shape), dtype=dtype, device=device)
        self.array = self._host.numpy()
        self._stale = False
        self._copied: Any = None

    def put(self, where: Any, values: Any) -> bool:
        """Change the numbers of the host; returns whether they were others."""
        values = np.asarray(values, self.array.dtype)
        if np.array_equal(self.array[where], values):
            return False
        if capturing(self.device):
            raise SteepestError(
                "something a captured step reads has moved or changed; take a step before the capture, keep "
                "gradients where they are with zero_grad(set_to_none=False), and make the rate a tensor."
            )
        if self._copied is not None:  # the copy under way still reads them
            self._copied.synchronize()
        self.array[where] = values
        self._stale = True
        return True

    def send(self) -> None:
        """Bring the copy up to date; the host does not wait."""
        if not self._stale:
            return
        self.device.copy_(self._host, non_blocking=True)
        self._stale = False
        if self.device.device.type == "cuda":
            self._copied = torch.cuda.Event()
            self._copied.record()


def capturing(tensor: Tensor) -> bool:
    """Whether what is launched now is recorded for a CUDA graph and not run."""
    return tensor.device.type == "cuda" and torch.cuda.is_current_stream_capturing()


@dataclass(frozen=True, slots=True)
class Compiled:
    """A kernel, its text and its functions."""

    kernel: Kernel
    printed: Printed
    module: ModuleType


class Tables:
    """For one kernel and tensors of these shapes, in so many groups.

    pointers: [tensors, names].  live: [groups, live numbers], float64, and steps: [groups], the steps that
    each group has committed; the device counts them itself.
    """

    def __init__(
        self,
        compiled: Compiled,
        shapes: Sequence[torch.Size],
        groups: Sequence[int],
        ordinals: Sequence[int],
        starts: Sequence[int],
        seeds: Sequence[int],
        device: torch.device,
    ) -> None:
        self.compiled, self.groups = compiled, max(groups) + 1
        kernel = compiled.kernel
        self.columns = {n: i for i, n in enumerate(kernel.layout.names)}
        self.rows, self.warps = TILE[kernel.by_rows]
        pieces: list[tuple[int, ...]] = []
        facts = np.zeros((len(shapes), len(FACTS)), np.int64)
        for t, shape in enumerate(shapes):
            rows, length = self._rectangle(shape)
            own = [(t, *piece) for piece in self._pieces(rows, length)]
            known = {
                **{"length": length, "rows": rows, "numel": rows * length, "group": groups[t]},
                **{"ordinal": ordinals[t], "start": starts[t], "seed": seeds[t] & 0xFFFFFFFF},
                **{"first": len(pieces), "last": len(pieces) + len(own)},
                **{"row_parts": -(-length // SPAN), "column_parts": -(-rows // self.rows)},
            }
            facts[t] = [known[name] for name in FACTS]
            pieces += own
        self.facts = torch.from_numpy(facts).to(device)
        self.pieces = [self.facts[:, FACTS.index(name)].contiguous() for name in ("first", "last")]
        self.work = torch.tensor(pieces, dtype=torch.int64).view(-1, len(WORK)).to(device)
        self.pointers = Mirror((len(shapes), len(self.columns)), torch.int64, device)
        self.live = Mirror((self.groups, max(1, len(compiled.printed.live))), torch.float64, device)
        self.steps = torch.zeros(self.groups, dtype=torch.float64, device=device)
        self.constants = torch.zeros(self.groups, max(1, len(kernel.schedule.host)), device=device)
        self._scalars = torch.zeros(len(shapes), max(1, len(kernel.schedule.scalars)), device=device)
        self._even = bool((facts[:, FACTS.index("length")] % 16 == 0).all())
        self._aligned = False
        self._give_scratch(facts, device)
        self._stretches = torch.tensor(
            [
                (t, start)
                for t, (length, rows) in enumerate(facts[:, :2].tolist())
                for start in range(0, max(length, rows), SPAN)
            ],
            device=device,
        )
        self.partials = [
            torch.zeros(len(pieces), launch.width or 1, dtype=torch.float64, device=device)
            for launch in compiled.printed.launches
            if launch.kind == "pass"
        ]

    def _rectangle(self, shape: torch.Size) -> tuple[int, int]:
        """How a tensor is seen: as its matrix, on the grid of blocks, or flat."""
        if self.compiled.kernel.by_rows:
            return shape[0], shape[1]
        return grid(shape) if self.compiled.kernel.layout.gridded else (1, shape.numel())

    def _pieces(self, rows: int, length: int) -> list[tuple[int, int, int, int]]:
        """(row, first, last, part) of each piece, as `WORK` has them."""
        if self.compiled.kernel.by_rows:
            return [
                (row, first, min(first + SPAN, length), part)
                for row in range(0, rows, self.rows)
                for part, first in enumerate(range(0, length, SPAN))
            ]
        blocks = rows * -(-length // 128)
        return [(0, first, min(first + PIECE, blocks), 0) for first in range(0, blocks, PIECE)]

    def _give_scratch(self, facts: Any, device: torch.device) -> None:
        """Memory of the vectors that live between passes, one after another in one tensor."""
        names = self.compiled.kernel.schedule.vectors
        fact = {name: facts[:, i] for i, name in enumerate(FACTS)}
        sizes = np.zeros((len(facts), len(names)), np.int64)
        for i, name in enumerate(names):
            of_rows = self.compiled.kernel.layout.names[name].per == "row"
            sizes[:, i] = fact["rows" if of_rows else "length"]
            parts = {"sum": "row_parts", "part": "column_parts"}.get(name.split(".")[0])
            if parts:
                sizes[:, i] *= fact[parts]
        sizes = -(-sizes // 64) * 64
        offsets = np.concatenate([[0], np.cumsum(sizes.ravel())])
        self._scratch = torch.zeros(max(1, int(offsets[-1])), device=device)
        for i, name in enumerate(names):
            own = offsets[:-1].reshape(sizes.shape)[:, i]
            self.pointers.put((slice(None), self.columns[name]), self._scratch.data_ptr() + 4 * own)

    # ------------------------------------------------------------ a step

    def point(self, name: str, tensors: Sequence[Tensor]) -> None:
        """Say where the tensors of this name lie."""
        if self.pointers.put((slice(None), self.columns[name]), [t.data_ptr() for t in tensors]):
            self._aligned = self._even and bool((self.pointers.array % 16 == 0).all())

    def send(self) -> None:
        self.pointers.send()
        self.live.send()

    def run(self, launch: Launcher, control: Tensor) -> None:
        """All passes and folds, each in one launch."""
        partials, done = self.partials[0], 0
        common = self.constants, self._scalars
        for own in self.compiled.printed.launches:
            function = getattr(self.compiled.module, own.name)
            tables = self.pointers.device, self.facts
            if own.kind == "numbers":
                launch(function, self.groups, self.live.device, self.steps, self.constants, control)
                continue
            options: dict[str, Any] = {"ALIGNED": self._aligned, **OPTIONS}
            if own.kind == "pass":
                partials, done = self.partials[done], done + 1
                options |= {"BLOCKS": self.rows, "num_warps": self.warps}
                rows = self.work, *common, partials, control, self.steps
                launch(function, len(self.work), *tables, *rows, **options)
            elif own.kind == "gather":
                stretches = self._stretches
                launch(function, len(stretches), *tables, stretches, control, **options, TILE=SPAN)
            else:
                launch(function, len(self.facts), *tables, *common, partials, control, **options, TILE=SPAN)
