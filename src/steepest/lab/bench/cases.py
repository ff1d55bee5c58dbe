"""What is measured: rules crossed with ways to store their state and parameters. Data, nothing runs here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from steepest.codecs import PARAM_NAMES, SLOT_NAMES
from steepest.contract import expand, unknown
from steepest.lab.bench.shapes import MANY_SMALL
from steepest.rules import Card, find_card


@dataclass(frozen=True)
class Storage:
    """How a case stores things, by the names that an optimizer takes as `state=` and `param=`."""

    name: str
    state: str | Mapping[str, str] | None = None
    param: str | None = None

    @property
    def dtype(self) -> torch.dtype:
        """The type of the parameters and gradients: a codec of parameters is for bfloat16 ones."""
        return torch.float32 if self.param is None else torch.bfloat16

    @property
    def exact(self) -> bool:
        """Whether nothing is lost between steps but what float32 loses."""
        return self.state is None and self.param in (None, "split32")

    def options(self) -> dict[str, object]:
        """What the optimizer is given beside its hyperparameters; nothing for fp32."""
        given = {"state": self.state, "param": self.param}
        return {key: value for key, value in given.items() if value is not None}


FP32 = Storage("fp32")

STORAGES = (
    "fp32",
    "bf16",
    "fp16",
    "fp8",
    "int8",
    "int4",
    "m=int8+v=factored",
    "split32",
    "split24",
    "kahan",
    "bf16/bf16",
    "split24/fp8",
    "split24/int8",
    "split24/m=int4+v=factored",
)
"""Measured unless others are named."""


def parse_storage(text: str) -> Storage:
    """`int8` is a codec for every slot, `split24` one for the parameters, `split24/int8` both, and
    `m=int4+v=fp8` one for each slot. A misspelt name is an error that helps."""
    param, _, state = text.strip().rpartition("/")
    if not param and state in PARAM_NAMES and state not in SLOT_NAMES:
        param, state = state, "fp32"
    slots = dict(part.partition("=")[::2] for part in state.split("+")) if "=" in state else {"": state}
    for codec in slots.values():
        if codec not in SLOT_NAMES:
            raise unknown("codec of slots", codec, SLOT_NAMES)
    if param and param not in PARAM_NAMES:
        raise unknown("codec of parameters", param, PARAM_NAMES)
    chosen = slots.get("", slots)
    return Storage(text.strip(), None if chosen == "fp32" else chosen, param or None)


@dataclass(frozen=True)
class Case:
    """One rule under one storage, at the model's shapes or at others."""

    card: Card
    storage: Storage
    shapes: tuple[torch.Size, ...]
    small: bool = False

    @property
    def name(self) -> str:
        """As people say it: "AdamW int8"."""
        stored = "" if self.storage == FP32 else f" {self.storage.name}"
        return f"{self.card.title}{stored}" + (", 400 tensors of 10,000" if self.small else "")

    @property
    def hyper(self) -> Mapping[str, object]:
        """The rule's hyperparameters under the card's settings, torch's names."""
        return {**self.card.rule.defaults(), **self.card.settings}

    @property
    def slots(self) -> set[str]:
        """Names of the slots that a matrix of this case has."""
        return set(self.card.rule.slots_for(torch.Size([4096, 4096]), self.hyper))

    @property
    def live(self) -> Mapping[str, object]:
        """The hyperparameters as the rule reads them at the first step."""
        return vars(expand(self.hyper, 1))


def plan_cases(
    cards: Sequence[str], storages: Sequence[str], shapes: tuple[torch.Size, ...]
) -> tuple[Case, ...]:
    """Every card under every storage that says something about it, and many small tensors for two.

    What people ask for first comes first, as the time may run out: fp32, small tensors, AdamW's storages.
    Left out as nothing new: a codec of slots for a rule without slots, and a choice by slot for other slots.
    """
    found = [find_card(name) for name in cards]
    stored = [parse_storage(name) for name in storages]
    cases = [Case(card, storage, shapes) for storage in stored for card in found]
    small = [Case(c, FP32, MANY_SMALL, small=True) for c in found if c.name in ("adamw", "lamb")]
    return tuple(sorted([*filter(_says_something, cases), *small], key=_rank))


def _rank(case: Case) -> int:
    if case.small:
        return 1
    return 0 if case.storage == FP32 else 2 if case.card.name == "adamw" else 3


def _says_something(case: Case) -> bool:
    state = case.storage.state
    if isinstance(state, Mapping):
        return set(state) == case.slots
    return state is None or bool(case.slots)
