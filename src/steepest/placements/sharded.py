"""Parameters that are cut over ranks: DTensors, as FSDP2's `fully_shard` makes them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate
from torch.distributed.tensor import Shard as Rows

from steepest.contract import AddUp, Scope, Shard, SteepestError
from steepest.placements.matrices import Cut, Matrices
from steepest.placements.placement import Measure, Placement
from steepest.placements.traffic import Mover, Traffic


class Sharded(Placement):
    """DTensors cut along their first dimension over one dimension of a mesh, replicated over the others
    (FSDP2, hybrid shard); ordinary tensors beside them are the same on every rank.

    Maths runs on local tensors: an element rule says nothing to anybody, a rule with sums over a tensor adds
    up a vector of all its sums. A matrix rule's matrices are put together at owners, who keep their state.
    """

    name = "sharded"
    moves = True

    def __init__(self) -> None:
        self._movers: dict[int, Mover] = {}
        self._shards: dict[Tensor, Shard] = {}
        self._over: dict[Tensor, Mover | None] = {}
        self._params: list[Tensor] = []
        self._matrices: dict[Mover, Matrices] = {}
        self._of: dict[Tensor, Cut] = {}

    def bind(self, params: Sequence[Tensor], scopes: Sequence[Scope]) -> None:
        self._params = list(params)
        self._shards.clear()
        self._over.clear()
        owned: dict[Mover, list[Tensor]] = {}
        for p, scope in zip(params, scopes, strict=True):
            self._over[p] = None
            if isinstance(p, DTensor) and (cut := _cut_of(p)) is not None:
                if scope > Scope.MATRIX:
                    raise SteepestError(
                        "a rule that computes a number over the whole model needs it in one place, and the "
                        "model is cut over ranks; place it with ddp."
                    )
                group = p.device_mesh.get_group(cut)
                self._over[p] = mover = self._movers.setdefault(id(group), Mover(group))
                if scope is Scope.MATRIX:
                    owned.setdefault(mover, []).append(p)
                else:
                    self._shards[p] = _shard_of(p, cut)
        self._matrices = {mover: Matrices(mover) for mover in owned}
        for mover, matrices in self._matrices.items():
            here = [local(p) for p in owned[mover]]
            matrices.bind(owned[mover], here)
            matrices.gather(matrices.cuts, here, [cut.whole for cut in matrices.cuts])
        self._of = {cut.p: cut for matrices in self._matrices.values() for cut in matrices.cuts}

    def local(self, tensor: Tensor) -> Tensor:
        cut = self._of.get(tensor) if self._of else None
        return local(tensor) if cut is None or cut.whole is None else cut.whole

    def owns(self, place: int) -> bool:
        p = self._params[place]
        cut = self._of.get(p)
        mover = self._over[p]
        return cut is None or mover is None or cut.owner == mover.rank

    def shard(self, p: Tensor) -> Shard | None:
        return self._shards.get(p)

    def add_up(self, p: Tensor) -> AddUp | None:
        mover = self._over[p]
        return None if mover is None else mover.add_up

    def survey(
        self, measure: Measure, params: Sequence[Tensor], grads: Sequence[Tensor], flag: bool
    ) -> tuple[float, bool, int]:
        # Every group is asked, whether there are gradients here or not: the others would wait for it.
        square = 0.0
        for mover in (None, *self._movers.values()):
            own = [g for p, g in zip(params, grads, strict=True) if self._over[p] is mover]
            found = (measure(own) ** 2 if own else 0.0, float(flag), len(own), len(own) ** 2)
            vector = torch.tensor(found, dtype=torch.float64)
            if mover is not None:
                mover.add_up(vector)
                _check_equal(vector, mover.world)
                flag = bool(vector[1])
            square += float(vector[0])
        return math.sqrt(square), flag, len(grads)

    def add_rows(self, rows: Tensor, params: Sequence[Tensor]) -> None:
        for mover in self._movers.values():
            own = [i for i, p in enumerate(params) if self._over[p] is mover]
            part = rows[own]
            mover.add_up(part)
            rows[own] = part

    def bring(self, params: Sequence[Tensor], grads: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
        if not self._matrices:
            return grads
        found, here = list(grads), dict(zip(params, grads, strict=True))
        places = {p: i for i, p in enumerate(params)}
        for matrices in self._matrices.values():
            moved = [cut for cut in matrices.cuts if here[cut.p] is not None]
            matrices.gather(moved, [local(cut.p) for cut in moved], [cut.whole for cut in moved])
            parts = [g for cut in moved if (g := here[cut.p]) is not None]
            whole = [
                g.new_empty(cut.p.shape) if cut.whole is not None else None
                for cut, g in zip(moved, parts, strict=True)
            ]
            matrices.gather(moved, parts, whole)
            for cut, gradient in zip(moved, whole, strict=True):
                found[places[cut.p]] = gradient
        return found

    def publish(self, params: Sequence[Tensor]) -> None:
        for matrices in self._matrices.values():
            moved = [cut for cut in matrices.cuts if cut.p.grad is not None]
            matrices.scatter(moved, [local(cut.p) for cut in moved])

    def gather(self, state: dict[int, Any]) -> dict[int, Any]:
        for mover in self._matrices:
            state = {place: own for part in mover.tell(state) for place, own in part.items()} | state
        return state

    def tell(self, mine: Any) -> list[Any]:
        return next(iter(self._movers.values()), Mover()).tell(mine)

    def wrap(self, stored: Tensor, shape: Sequence[int], p: Tensor) -> Tensor:
        assert isinstance(p, DTensor)
        per = shape[0] // max(p.shape[0], 1)  # rows of what is stored for a slice of the parameter
        whole = torch.Size(shape if per == 1 else (p.shape[0], per, *shape[1:]))
        stride = tuple(math.prod(whole[i + 1 :]) for i in range(len(whole)))
        here = stored.reshape(-1, *whole[1:])
        return DTensor.from_local(
            *(here, p.device_mesh, p.placements), run_check=False, shape=whole, stride=stride
        )

    def unwrap(self, saved: Tensor, shape: Sequence[int]) -> Tensor:
        return local(saved).reshape(shape) if isinstance(saved, DTensor) else saved

    def traffic(self) -> Traffic:
        found = [mover.traffic() for mover in self._movers.values()]
        return Traffic(sum(t.collectives for t in found), sum(t.bytes for t in found))


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that is here, without autograd."""
    if not isinstance(tensor, DTensor):
        return tensor
    with torch.no_grad():
        here = tensor.to_local()
    wait = getattr(here, "wait", None)
    return wait() if wait is not None else here


def _cut_of(p: DTensor) -> int | None:
    """The dimension of the mesh over which a parameter is cut, None if it is the same everywhere."""
    cuts = [i for i, placement in enumerate(p.placements) if not isinstance(placement, Replicate)]
    if not cuts:
        return None
    if len(cuts) > 1 or p.placements[cuts[0]] != Rows(0) or type(p.placements[cuts[0]]) is not Rows:
        raise SteepestError(
            f"a parameter of shape {list(p.shape)} is placed as {list(p.placements)}; Steepest steps "
            "DTensors that are cut along their first dimension, over one dimension of the mesh."
        )
    return cuts[0]


def _shard_of(p: DTensor, cut: int) -> Shard:
    """torch cuts n slices into chunks of ceil(n / ranks); the last ranks may have less, or nothing."""
    chunk = -(-p.shape[0] // p.device_mesh.size(cut))
    return Shard(p.shape, min(p.device_mesh.get_local_rank(cut) * chunk, p.shape[0]))


def _check_equal(vector: Tensor, world: int) -> None:
    """Raise on every rank where some have gradients that others lack: sums would not belong together."""
    *_, count, squares = vector.tolist()
    if squares * world != count * count:
        raise SteepestError(
            "some ranks have gradients for parameters that have none on others; let every rank's loss use "
            "the same parameters, if only times zero."
        )
