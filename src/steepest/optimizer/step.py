"""The work of a step: which parameters move together. It is found once and kept while nothing it rests on
changes, for finding it takes longer than stepping small tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import is_, itemgetter
from typing import Any, TypeAlias

import torch
from torch import Tensor

from steepest.codecs import stored_name
from steepest.contract import AddUp, Codec, Live, Rule, Shard, SteepestError, expand, names_of_pair
from steepest.engines import Pending
from steepest.placements import Placement

States: TypeAlias = Mapping[Tensor, dict[str, Any]]


@dataclass(slots=True)
class Lot:
    """Parameters that are stepped together: of one group, device, type, step count, set of codecs, and over
    the same ranks.

    members: their places among all parameters.  taken: the steps they have had.  params: what is here of
    them; shards, add_up: as a `Bucket` has them.  wave: the part of a step in which they come.
    """

    group: int
    rule: Rule
    codecs: Mapping[str, Codec]
    taken: int
    members: list[int] = field(default_factory=list)
    params: list[Tensor] = field(default_factory=list)
    shards: list[Shard] | None = None
    add_up: AddUp | None = None
    wave: int = 0
    states: list[dict[str, Any]] = field(default_factory=list)
    stored: dict[str, list[Tensor]] = field(default_factory=dict)

    def add(self, place: int, p: Tensor, state: dict[str, Any], shard: Shard | None) -> None:
        self.members.append(place)
        self.params.append(p)
        self.states.append(state)
        if shard is not None:
            self.shards = [*(self.shards or ()), shard]

    def close(self) -> None:
        """Gather the tensors of the state, once all members are there."""
        names = [stored_name(slot, part) for slot, codec in self.codecs.items() for part in codec.parts]
        self.stored = {name: [s[name] for s in self.states] for name in names if name != "p"}

    def holds(self) -> bool:
        """Whether no state was exchanged or counted from outside."""
        return all(s["step"] == self.taken for s in self.states) and all(
            all(map(is_, map(itemgetter(name), self.states), column)) for name, column in self.stored.items()
        )

    def advance(self, steps: int = 1) -> None:
        """Count so many more steps, or fewer."""
        self.taken += steps
        for state in self.states:
            state["step"] = self.taken


@dataclass(slots=True)
class Owed:
    """A deferred step that has been counted as if it were committed, until its verdict is read.

    counted: the steps counted, 1, or 0 for a step that was only recorded.  telemetry: as it was before.
    """

    pending: Pending
    lots: list[Lot]
    counted: int
    telemetry: list[Any]

    def members(self) -> list[int]:
        """The places of the parameters whose gradients were given, in the order of the gradients."""
        return [place for lot in self.lots for place in lot.members]


class Settled:
    """An attribute that a deferred step may change: whoever reads it waits for that step's verdict."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, optimizer: Any, owner: type | None = None) -> Any:
        if optimizer is None:
            return self
        optimizer._settle()
        return optimizer.__dict__[self._name]

    def __set__(self, optimizer: Any, value: Any) -> None:
        optimizer.__dict__[self._name] = value


def expand_there(hyper: Mapping[str, Any], t: int, device: torch.device) -> tuple[Live, dict[str, Tensor]]:
    """`contract.expand`, but tensors on this device are not read: they come second, and 1 stands for them."""
    tensors = {}
    numbers: dict[str, Any] = {}
    for name, value in hyper.items():
        pair = isinstance(value, (tuple, list)) and len(value) == 2
        parts = list(value) if pair else [value]
        for i, (part, own) in enumerate(zip(parts, names_of_pair(name) if pair else (name,), strict=True)):
            if isinstance(part, Tensor) and part.device == device:
                tensors[own], parts[i] = part, 1.0
        numbers[name] = tuple(parts) if pair else parts[0]
    return expand(numbers, t), tensors


CodecsOf: TypeAlias = Callable[[int, Tensor], tuple[Rule, Mapping[str, Codec]]]
"""The rule and the codecs of a parameter of a group."""


class Layout:
    """The lots of a step; `facts` is what they rest on beside the tensors of the state."""

    def __init__(
        self,
        groups: Sequence[Mapping[str, Any]],
        state: States,
        codecs_of: CodecsOf,
        facts: list[Any],
        placement: Placement,
    ) -> None:
        self.facts = facts
        lots: dict[tuple[Any, ...], Lot] = {}
        owned = [(g, p) for g, group in enumerate(groups) for p in group["params"]]
        for place, (g, p) in enumerate(owned):
            if p.grad is None:
                continue
            _refuse(p.grad)
            if not placement.owns(place):
                continue
            rule, codecs = codecs_of(g, p)
            named = tuple((slot, codec.name) for slot, codec in codecs.items())
            shard = placement.shard(p)
            add_up = placement.add_up(p) if shard is not None else None
            over = shard is not None, add_up, placement.wave(place)
            key = g, state[p]["step"], p.device, p.dtype, p.grad.dtype, named, over
            if key not in lots:
                lots[key] = Lot(g, rule, codecs, state[p]["step"], add_up=add_up, wave=over[-1])
            lots[key].add(place, placement.local(p), state[p], shard)
        self.lots = sorted(lots.values(), key=lambda lot: lot.wave)
        for lot in self.lots:
            lot.close()

    def holds(self, facts: list[Any]) -> bool:
        """Whether this is still the layout."""
        return facts == self.facts and all(lot.holds() for lot in self.lots)


def facts_of(
    params: Sequence[Tensor], here: Sequence[Tensor], grads: Sequence[Tensor | None], state: States
) -> list[Any]:
    """What a layout rests on, cheap to gather and to compare. Identities stand for tensors and for states;
    addresses tell of data exchanged under a parameter, also for data on another device.

    here: what is here of the parameters.
    """
    there = [g for g in grads if g is not None]
    return [
        list(map(id, params)),
        list(map(id, state.values())),
        [p.data_ptr() for p in here],
        [p.dtype for p in params],
        [p.requires_grad if g is None else None for p, g in zip(params, grads, strict=True)],
        [g.dtype for g in there],
        [g.layout for g in there],
    ]


def _refuse(grad: Tensor) -> None:
    if grad.layout is not torch.strided or not grad.is_floating_point():
        kind = "sparse" if grad.is_floating_point() else "of whole numbers"
        kind = "complex" if grad.is_complex() else kind
        raise SteepestError(f"a gradient is {kind}; Steepest trains dense real parameters only.")
