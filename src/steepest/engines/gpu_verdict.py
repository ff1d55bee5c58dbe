"""The pass over the gradients and the verdict, on the device; what the host learns of it, and when."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from steepest.engines.bucket import Outcome, Request
from steepest.engines.gpu_tables import Launcher, Mirror, capturing

PIECE = 2**15
"""Elements in a piece of a gradient."""

TILE = 1024

CONTROL = ("commit", "scale", "norm", "committed", "vetoed")
"""What the verdict leaves on the device, float64; the last two are counts."""


@dataclass(slots=True)
class Gradients:
    """Gradients of one type. places: of each among all gradients.  even: whether their sizes allow for wide
    words.  aligned: whether their addresses do, too."""

    dtype: str
    places: list[int]
    pointers: Mirror
    work: Tensor
    even: bool
    aligned: bool = False


class Court:
    """Decides about steps of gradients of these sizes and types, on their device."""

    def __init__(self, sizes: Sequence[tuple[torch.dtype, int]], device: torch.device) -> None:
        from steepest.kernels.triton import device as functions

        self._functions = functions
        self.control = torch.zeros(len(CONTROL), dtype=torch.float64, device=device)
        self._request = Mirror((3,), torch.float64, device)
        self._one, self._zero = torch.ones(1, device=device), torch.zeros(1, device=device)
        self._gradients, owners = [], []
        for dtype in dict.fromkeys(dtype for dtype, _ in sizes):
            places = [i for i, (other, _) in enumerate(sizes) if other is dtype]
            work = [
                (k, first, min(first + PIECE, sizes[i][1]))
                for k, i in enumerate(places)
                for first in range(0, sizes[i][1], PIECE)
            ]
            owners += [places[k] for k, _, _ in work]
            name = str(dtype).removeprefix("torch.")
            table = torch.tensor(work, dtype=torch.int64, device=device).view(-1, 3)
            even = all(sizes[i][1] % 16 == 0 for i in places)
            own = Gradients(name, places, Mirror((len(places),), torch.int64, device), table, even)
            self._gradients.append(own)
        self._owners = np.array(owners, np.int64)
        self._partials = torch.zeros(max(1, len(owners)), 2, dtype=torch.float64, device=device)
        self._seen = torch.zeros(len(CONTROL), dtype=torch.float64, pin_memory=device.type == "cuda")
        self._counted = np.zeros(2)
        self._looked = False

    def point(self, grads: Sequence[Tensor]) -> None:
        for own in self._gradients:
            if own.pointers.put(slice(None), [grads[i].data_ptr() for i in own.places]):
                own.aligned = own.even and bool((own.pointers.array % 16 == 0).all())

    def decide(self, request: Request, launch: Launcher) -> None:
        """Leave the verdict in `control`."""
        self._looked = request.looks
        limit = np.inf if request.max_norm is None else request.max_norm
        self._request.put(slice(None), [len(self._owners) if request.looks else 0, limit, request.clip_eps])
        self._request.send()
        first = 0
        for own in self._gradients:
            own.pointers.send()
            if request.looks and len(own.work):
                partials = self._partials[first : first + len(own.work)]
                launch(
                    self._functions.measure,
                    len(own.work),
                    *(own.pointers.device, own.work, partials),
                    ALIGNED=own.aligned,
                    TYPE=own.dtype,
                    TILE=TILE,
                )
            first += len(own.work)
        loss_scale = self._one if request.loss_scale is None else request.loss_scale
        found_inf = self._zero if request.found_inf is None else request.found_inf
        launch(
            self._functions.verdict,
            1,
            self._partials,
            self._request.device,
            loss_scale,
            found_inf,
            self.control,
        )

    def pending(self, sums: list[Tensor | None]) -> Awaited:
        """The verdict on its way to the host."""
        self._seen.copy_(self.control, non_blocking=True)
        captured, arrived = capturing(self.control), None
        if self.control.device.type == "cuda" and not captured:
            arrived = torch.cuda.Event()
            arrived.record()
        return Awaited(self, arrived, captured, sums)

    def read(self) -> Outcome:
        """What has arrived: everything since it was last read."""
        commit, scale, norm, *counts = self._seen.tolist()
        new = np.array(counts) - self._counted
        self._counted = np.array(counts)
        bad: list[int] = []
        if not commit and self._looked and not capturing(self.control):
            found = self._partials[: len(self._owners), 1].cpu().numpy()
            bad = sorted(set(self._owners[found > 0].tolist()))
        return Outcome(int(new[0]), int(new[1]), norm, scale, tuple(bad))


@dataclass(frozen=True, slots=True)
class Awaited:
    """A step whose verdict the host has not read. A captured step is one that is run again and again."""

    court: Court
    arrived: Any
    captured: bool
    sums: list[Tensor | None]

    def resolve(self) -> Outcome:
        """Wait for the device to have decided, and say what it did."""
        if self.captured:
            torch.cuda.synchronize(self.court.control.device)
        elif self.arrived is not None and not capturing(self.court.control):
            self.arrived.synchronize()  # a capture begins with everything done
        return self.court.read()
