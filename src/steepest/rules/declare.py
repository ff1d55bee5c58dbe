"""How a rule is declared: the decorator that turns a formula into a `Rule`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from steepest.contract import Decay, Hyper, Rule, RuleFn, Scope, Slot, SteepestError

WEIGHT_DECAY = Hyper(0.0, low=0.0)
UNIT: dict[str, Any] = {"low": 0.0, "high": 1.0, "open_high": True}
EPS = Hyper(1e-8, low=0.0, open_low=True)
"""What is added to a root of squared gradients before dividing by it. torch takes 0 as well: then the first
gradient that is zero, that of a token which a batch does not have, divides 0 by 0."""
MOMENTUM = Slot(average="momentum", of="gradient")
UPDATES = Slot(average="momentum", of="update")
FLAG = Hyper(False, live=False, choices=(False, True))


def rate(default: float) -> Hyper:
    """A learning rate: anything from zero to what float32 can hold."""
    return Hyper(default, low=0.0, high=1e38)


def rule(
    *,
    paper: str,
    scope: Scope,
    hyper: Mapping[str, Hyper],
    slots: Mapping[str, Slot] | None = None,
    decay: Decay = "decoupled",
    apply: str | None = None,
    dialects: Mapping[str, Mapping[str, Any]] | None = None,
) -> Callable[[RuleFn], Rule]:
    """Declare the decorated formula as a rule of this name.

    `apply` follows from `decay` unless stated: decoupled decay lands by `decoupled`, the others by
    `descend`. A rule with dialects gets the fixed hyperparameter `dialect`.
    """
    if dialects:
        hyper = {**hyper, "dialect": Hyper(next(iter(dialects)), live=False, choices=tuple(dialects))}

    for needed in ("lr", *(() if decay == "inside" else ("weight_decay",))):
        if needed not in hyper:
            raise SteepestError(
                f"a rule with {decay} decay needs the hyperparameter {needed!r}; declare it, or say "
                "decay='inside' for a rule without weight decay."
            )

    def declare(formula: RuleFn) -> Rule:
        return Rule(
            name=formula.__name__,
            formula=formula,
            slots=slots or {},
            hyper=hyper,
            scope=scope,
            paper=paper,
            decay=decay,
            apply=apply or ("decoupled" if decay == "decoupled" else "descend"),
            dialects=dialects or {},
        )

    return declare


def variant(base: Rule, name: str, *, paper: str, decay: Decay, defaults: Mapping[str, Any]) -> Rule:
    """The same formula with its weight decay elsewhere and other defaults (Adam from AdamW)."""
    hyper = {key: replace(h, default=defaults.get(key, h.default)) for key, h in base.hyper.items()}
    apply = "decoupled" if decay == "decoupled" else "descend"
    return replace(base, name=name, paper=paper, decay=decay, apply=apply, hyper=hyper)
