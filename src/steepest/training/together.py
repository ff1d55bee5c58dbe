"""The micro-batches of a step, of all ranks, as one: its loss, its weight, and whose fault a veto is."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from steepest.optimizer import Verdict
from steepest.optimizer.verdict import NON_FINITE
from steepest.training.world import World


class Part(NamedTuple):
    """One micro-batch: its loss and facts, means over its weight, and the tokens read."""

    loss: Tensor
    facts: Mapping[str, Any]
    weight: float
    tokens: int


class Sum(NamedTuple):
    """All micro-batches of a step, of all ranks: loss and facts, means over the weight."""

    loss: Tensor
    facts: Mapping[str, Any]
    weight: float
    tokens: int


def add_up(parts: Sequence[Part], world: World) -> Sum:
    """A step's micro-batches, by their weights; in one collective where there are other ranks.

    Alone the loss stays where it is: an optimizer on a GPU decides without the host.
    """
    weight, tokens = sum(part.weight for part in parts), sum(part.tokens for part in parts)
    if world.size == 1:
        return Sum(*_mean(parts, weight), weight, tokens)
    names = sorted(parts[0].facts)
    rows = [[part.loss, *(part.facts[name] for name in names)] for part in parts]
    sums = sum(_column(row) * part.weight for row, part in zip(rows, parts, strict=True))
    told = world.sum(torch.cat([torch.tensor([weight, tokens], dtype=torch.float64), torch.as_tensor(sums)]))
    loss, *facts = told[2:] / (float(told[0]) or 1.0)
    return Sum(loss.float(), dict(zip(names, facts, strict=True)), float(told[0]), int(told[1]))


def _mean(parts: Sequence[Part], weight: float) -> tuple[Tensor, dict[str, Any]]:
    if len(parts) == 1:
        return parts[0].loss, dict(parts[0].facts)
    shares = [(part, part.weight / (weight or 1.0)) for part in parts]  # nothing asked for: every loss is 0
    total = torch.stack([part.loss * share for part, share in shares]).sum()
    return total, {name: sum(part.facts[name] * share for part, share in shares) for name in parts[0].facts}


def _column(numbers: Sequence[Any]) -> Tensor:
    return torch.stack([torch.as_tensor(x, dtype=torch.float64).detach().cpu() for x in numbers])


def unit_of(weight: float, world: World) -> float:
    """What weights are counted in while not all of them are known, the same on every rank.

    Gradients then have about the size of one batch's, for which float16 has room. Alone it is the first
    batch's own weight, and its loss is not scaled at all; on ranks a power of two near the mean weight, which
    changes no digit of a gradient, whenever it was chosen.
    """
    if world.size == 1:
        return weight or 1.0
    mean = float(world.sum([weight])[0]) / world.size
    return 2.0 ** round(math.log2(max(mean, 1.0)))


def at_fault(
    verdict: Verdict, losses: Sequence[float], world: World, again: Callable[[], tuple[str, ...]] | None
) -> tuple[str, tuple[str, ...]]:
    """Why a step was not taken, in words that name the rank, and the tensors whose gradients are not finite.

    A loss that is not finite is the reason of whatever else is not.
    losses: of this rank's micro-batches.  again: the tensors at fault in this rank's own gradients, computed
    once more: ranks that hold whole gradients all hold the same mean of them, and cannot see whose it was.
    """
    told = world.gather((_first_bad(losses), verdict.culprits))
    if world.size == 1:
        return told[0][0] or verdict.why, verdict.culprits
    names = tuple(dict.fromkeys(name for _, own in told for name in own))
    if bad := {rank: words for rank, (words, _) in enumerate(told) if words}:
        return f"{next(iter(bad.values()))} on {_ranks([*bad])}", names
    if verdict.why != NON_FINITE or again is None:
        return verdict.why, names
    where = [rank for rank, (_, own) in enumerate(told) if own]
    if len(where) < world.size:
        return f"{verdict.why} on {_ranks(where)}", names
    where = [rank for rank, own in enumerate(world.gather(again())) if own]
    if not where:
        return f"{verdict.why} that no rank finds when it computes its own again", names
    return f"{verdict.why} on {_ranks(where)}", names


def _first_bad(losses: Sequence[float]) -> str:
    """The first loss that is not finite, in words; empty if there is none."""
    bad = [i for i, loss in enumerate(losses) if not math.isfinite(loss)]
    if not bad:
        return ""
    where = f" in micro-batch {bad[0] + 1} of {len(losses)}" if len(losses) > 1 else ""
    return f"the loss is {losses[bad[0]]}{where}"


def _ranks(ranks: Sequence[int]) -> str:
    return f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))}"
