"""The ranks of a run, looked at as it goes: whether copies are still the same, and who lets others wait."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from steepest.contract import Scope, SteepestError
from steepest.optimizer import Optimizer
from steepest.placements import find_placement
from steepest.training.indicators import Finding
from steepest.training.learner import Learner
from steepest.training.weights import weights
from steepest.training.world import World

SLOW, LEAST, LOOKS = 1.5, 0.005, 3
"""A rank is slow whose forward passes take so many times the median's, by so many seconds at least, at so
many looks in a row."""
BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}

Sums = Mapping[str, int]


class Fleet:
    """Call `look` on every rank at the same steps, and `check` once its findings are told."""

    def __init__(self, world: World) -> None:
        self.world = world
        self._late = [0] * world.size
        self._fault = ""

    def look(self, step: int, learner: Learner) -> list[Finding]:
        """What is found about ranks, the same on all of them; one collective."""
        if self.world.size == 1:
            return []
        busy, learner.busy = learner.busy, 0.0
        cut = learner.placed is not None and learner.placed.kind == "fsdp"  # nothing lies twice
        told = self.world.gather((busy, {} if cut else checksums(learner)))
        return [
            *self._slow(step, [seconds for seconds, _ in told]),
            *self._odd(step, [own for _, own in told]),
        ]

    def check(self) -> None:
        """Raise if copies differ: who goes on saves one of them, and nobody knows which is right."""
        if self._fault:
            raise SteepestError(self._fault)

    def _slow(self, step: int, seconds: Sequence[float]) -> list[Finding]:
        """Only forward passes are compared: in everything else all ranks wait for the slowest."""
        usual = statistics.median_low(seconds)
        found = []
        for rank, own in enumerate(seconds):
            times = own / max(usual, 1e-9)
            slow = times > SLOW and own - usual > LEAST
            self._late[rank] = self._late[rank] + 1 if slow else 0
            if self._late[rank] == LOOKS:
                means = f"its forward passes take {times:.1f} times as long as the others'"
                do = "look at what else runs there, at its temperature and its clock: all wait for it"
                found.append(
                    Finding(
                        step, "straggler", f"rank {rank}", own / max(usual, 1e-9), SLOW, "warn", means, do
                    )
                )
        return found

    def _odd(self, step: int, told: Sequence[Sums]) -> list[Finding]:
        odd = differing(told)
        if not odd:
            return []
        names = list(dict.fromkeys(name for own in odd.values() for name in own))
        ranks = ", ".join(map(str, odd))
        where = f"rank {ranks}" if len(odd) < self.world.size else f"one of ranks {ranks}"
        more = f" and {len(names) - 1} more tensors" if len(names) > 1 else ""
        means = f"its copy of {names[0]}{more} is not what the others have"
        do = "its memory or its device is failing: leave it out, and go on from a generation before this step"
        self._fault = f"{where}: {means} at step {step}; {do}."
        return [Finding(step, "replicas", where, float(len(names)), 0.0, "act", means, do)]


def checksums(learner: Learner) -> dict[str, int]:
    """The sum of the bits, as whole numbers, of all that lies here of model and state, by name and place. Any
    one flip changes it; two that cancel each other do not."""
    named = {**_here(weights(learner.model)), **_state(learner.optimizer)}
    if not named:
        return {}
    sums = torch.stack([checksum(tensor) for tensor in named.values()]).tolist()
    return dict(zip(named, sums, strict=True))


@torch.no_grad()
def checksum(tensor: Tensor) -> Tensor:
    """The sum of a tensor's bits, read as whole numbers: int64, where the tensor is."""
    return (
        tensor.detach().contiguous().view(-1).view(BITS[tensor.element_size()]).sum(dtype=torch.int64).cpu()
    )


def differing(told: Sequence[Sums]) -> dict[int, list[str]]:
    """Ranks, and the names of what they hold otherwise than most of those who hold it; all who hold it where
    no value is held by most."""
    out: dict[int, list[str]] = {}
    for name in dict.fromkeys(name for own in told for name in own):
        held = {rank: own[name] for rank, own in enumerate(told) if name in own}
        (usual, count), *_ = Counter(held.values()).most_common(1)
        for rank, value in held.items():
            if value != usual or 2 * count <= len(held) > count:
                out.setdefault(rank, []).append(name)
    return dict(sorted(out.items()))


def _here(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    values = list(tensors.values())
    placement = find_placement(values)
    placement.bind(values, [Scope.ELEMENT] * len(values))
    out = {}
    for name, value in tensors.items():
        shard = placement.shard(value)
        out[name if shard is None else f"{name} from {shard.first} on"] = placement.local(value)
    return out


def _state(optimizer: Optimizer) -> dict[str, Tensor]:
    shards = optimizer.shards()
    return {
        f"{name} from {shards[name].first} on" if name in shards else name: tensor
        for name, tensor in optimizer.export_state()[0].items()
    }
