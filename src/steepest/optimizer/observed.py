"""What a step has summed as it went, for whoever asks."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from steepest.contract import SteepestError
from steepest.optimizer.stateful import Stateful


class Observed(Stateful):
    """An optimizer's telemetry.

    observes: whether steps sum it.  _sums: of the last committed step, by the places of parameters.
    """

    observes: bool
    _sums: list[tuple[list[int], Tensor]]

    def _settle(self) -> None:
        raise NotImplementedError

    def _owned(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"]]

    def telemetry(self) -> dict[str, dict[str, float]]:
        """Of every parameter that moved in the last committed step: `grad_norm` (as clipped, before L2
        decay), `update_norm`, `param_norm` after it, and `lost`, the number of elements that should have
        moved and did not because of how the parameter is stored."""
        names, kinds = self._names(), ("grad_norm", "update_norm", "param_norm")
        return {
            names[i]: {**dict(zip(kinds, map(math.sqrt, squares), strict=True)), "lost": int(lost)}
            for i, (*squares, lost) in self._told()
        }

    def norms(self) -> dict[str, float]:
        """`update_norm` and `param_norm` of all that moved in the last committed step, taken together."""
        rows = [row for _, row in self._told()]
        kinds = ((1, "update_norm"), (2, "param_norm"))
        return {key: math.sqrt(math.fsum(row[i] for row in rows)) for i, key in kinds}

    @torch.no_grad()
    def gradient_norms(self) -> dict[str, float]:
        """The norm of every parameter's gradient as it is, over all ranks, which all ask: by name, of those
        that have one anywhere. One reading of the gradients, and one collective where ranks share them."""
        params, placement = self._owned(), self.placement
        rows = torch.zeros(len(params), 2, dtype=torch.float64)
        grads = {
            i: placement.local(p.grad)
            for i, p in enumerate(params)
            if p.grad is not None and placement.owns(i)
        }
        for dtype in {grad.dtype for grad in grads.values()}:
            own = {i: grad for i, grad in grads.items() if grad.dtype is dtype}
            found = torch._foreach_norm([*own.values()], 2, torch.promote_types(dtype, torch.float32))
            rows[[*own], 0] = torch.stack(found).double().cpu().square()
        rows[[*grads], 1] = 1.0
        if placement.moves:
            placement.add_rows(rows, params)
        named = zip(self._names(), rows.tolist(), strict=True)
        return {name: math.sqrt(square) for name, (square, count) in named if count}

    def _told(self) -> list[tuple[int, list[float]]]:
        """The place of every parameter that moved in the last committed step, and its sums over all ranks."""
        if not self.observes:
            raise SteepestError("there is no telemetry; build the optimizer with telemetry=True.")
        self._settle()
        if not self.placement.moves:
            return [pair for places, sums in self._sums for pair in zip(places, sums.tolist(), strict=True)]
        rows = torch.zeros(len(self._owned()), 5, dtype=torch.float64)
        for members, sums in self._sums:
            rows[members] = torch.nn.functional.pad(sums.to(rows.device), (0, 1), value=1.0)
        self.placement.add_rows(rows, self._owned())
        return [(i, sums) for i, (*sums, moved) in enumerate(rows.tolist()) if moved]
