"""A model, placed: torch's own engines do the moving."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch.distributed as dist
from torch import nn

from steepest.contract import SteepestError, unknown
from steepest.placements.blocks import blocks_of
from steepest.placements.owned import Owned
from steepest.placements.placement import Placement
from steepest.placements.release import ToOwners
from steepest.placements.unused import EXCHANGE, Unused

KINDS: Mapping[str, str] = {
    "ddp": "every rank holds everything; gradients are averaged (DistributedDataParallel)",
    "zero1": "as ddp, and every rank keeps the state of the parameters it owns",
    "zero2": "as zero1, and gradients are kept by owners only",
    "fsdp": "parameters, gradients and state are cut over ranks (fully_shard, ZeRO-3)",
    "hybrid": "cut within groups of ranks and copied between them (a mesh of two dimensions)",
}
"""How a model can be placed over the ranks of the default process group."""


@dataclass
class Placed:
    """A model over ranks.

    model: to be called in training.  placement: for the optimizer; None lets it find its own.
    gradients: of zero2, once `attach` was called.  unused: of a cut model, where passes may leave some out.
    """

    kind: str
    model: nn.Module
    placement: Placement | None = None
    gradients: ToOwners | None = None
    unused: Unused | None = None

    def attach(self) -> None:
        """Watch the gradients of a zero2 model, once its optimizer has been made."""
        if self.kind == "zero2":
            assert isinstance(self.placement, Owned)
            self.gradients = ToOwners(list(self.model.parameters()), self.placement)

    def holding(self) -> AbstractContextManager[None]:
        """Backward passes in here only add to gradients; the next one outside reduces them."""
        if self.gradients is not None:
            return self.gradients.holding()
        if isinstance(self.model, nn.parallel.DistributedDataParallel):
            return self.model.no_sync()
        return nullcontext() if self.kind not in ("fsdp", "hybrid") else _Unsynced(self.model)

    def finish(self) -> None:
        """Before a step: gradients are where they belong."""
        if self.gradients is not None:
            self.gradients.finish()
        if self.unused is not None:
            self.unused.finish()


class _Unsynced(AbstractContextManager[None]):
    def __init__(self, model: nn.Module) -> None:
        self._model = model

    def __enter__(self) -> None:
        self._model.set_requires_gradient_sync(False)  # type: ignore[operator]

    def __exit__(self, *_: object) -> None:
        self._model.set_requires_gradient_sync(True)  # type: ignore[operator]


def place(
    model: nn.Module, kind: str, *, device: str = "cpu", shard: int | None = None, unused: bool = False
) -> Placed:
    """Place a model over the ranks of the default process group; every rank holds the same weights before.

    shard: ranks in a group that a hybrid model is cut over; it divides the number of ranks.
    unused: whether some parameters have no part in the loss at times, perhaps on some ranks alone.
    """
    if kind not in KINDS:
        raise unknown("placement", kind, KINDS)
    if not dist.is_initialized():
        raise SteepestError(f"placement {kind} is for several processes; start them with torchrun.")
    if kind in ("ddp", "zero1"):
        wrapped = nn.parallel.DistributedDataParallel(model, find_unused_parameters=unused)
        return Placed(kind, wrapped, Owned() if kind == "zero1" else None)
    if kind == "zero2":
        return Placed(kind, model, Owned())
    cut = _cut(model, kind, device, shard)
    return Placed(kind, cut, unused=Unused(cut) if unused and hasattr(cut, EXCHANGE) else None)


def _cut(model: nn.Module, kind: str, device: str, shard: int | None) -> nn.Module:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    world = dist.get_world_size()
    size = shard or world
    if kind == "fsdp":
        mesh = init_device_mesh(device, (world,), mesh_dim_names=("shard",))
    else:
        if world % size:
            raise SteepestError(f"hybrid groups of {size} ranks do not divide {world} ranks; give a divisor.")
        mesh = init_device_mesh(device, (world // size, size), mesh_dim_names=("copy", "shard"))
    for block in blocks_of(model):
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model
