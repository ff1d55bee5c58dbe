"""Which parameter gets which rule: ordered routes, the first that matches wins."""

from __future__ import annotations

import fnmatch
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

from torch import Tensor, nn

from steepest.contract import Rule, SteepestError

Match: TypeAlias = str | re.Pattern[str] | Callable[[str, Tensor], bool]


def matrices(name: str, p: Tensor) -> bool:
    """Parameters of two dimensions or more: the weights that are decayed."""
    return p.ndim >= 2


def vectors(name: str, p: Tensor) -> bool:
    """Biases, norms and other parameters of fewer than two dimensions."""
    return p.ndim < 2


def everything(name: str, p: Tensor) -> bool:
    """Whatever no earlier route has claimed."""
    return True


class Route:
    """A predicate, and the rule with its hyperparameters for the parameters it matches.

    match: a shell pattern on the parameter's name ("*.embed_tokens.weight"), a compiled regular
           expression (searched), or a function of (name, parameter).
    """

    def __init__(self, match: Match, rule: str | Rule, **hyper: Any) -> None:
        self.match, self.rule, self.hyper = match, rule, hyper

    def __call__(self, name: str, p: Tensor) -> bool:
        if isinstance(self.match, str):
            return fnmatch.fnmatchcase(name, self.match)
        if isinstance(self.match, re.Pattern):
            return self.match.search(name) is not None
        return self.match(name, p)

    def __str__(self) -> str:
        if isinstance(self.match, re.Pattern):
            return self.match.pattern
        return self.match if isinstance(self.match, str) else getattr(self.match, "__name__", "function")


def route_groups(named: Iterable[tuple[str, Tensor]], routes: Sequence[Route]) -> list[dict[str, Any]]:
    """One parameter group a route; a tensor under two names (tied weights) counts once.

    A route that matches nothing, and a trainable parameter that no route claims, are errors.
    """
    claimed: list[list[tuple[str, Tensor]]] = [[] for _ in routes]
    seen: set[int] = set()
    orphans = []
    for name, p in named:
        if id(p) in seen:
            continue
        seen.add(id(p))
        first = next((i for i, route in enumerate(routes) if route(name, p)), None)
        if first is not None:
            claimed[first].append((name, p))
        elif p.requires_grad:
            orphans.append(name)
    if orphans:
        shown = ", ".join(orphans[:5]) + (f" and {len(orphans) - 5} more" if len(orphans) > 5 else "")
        raise SteepestError(f"no route claims {shown}; add a last route that matches everything.")
    for route, params in zip(routes, claimed, strict=True):
        if not params:
            raise SteepestError(f"route {str(route)!r} matches no parameter; mend its pattern or remove it.")
    return [
        {"params": params, "rule": route.rule, **route.hyper}
        for route, params in zip(routes, claimed, strict=True)
    ]


def routing_digest(rows: Sequence[Sequence[Any]]) -> str:
    """A short hash of a routing table, for records: equal tables, equal digests."""
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]


def decay_groups(model: nn.Module | Iterable[tuple[str, Tensor]]) -> list[dict[str, Any]]:
    """Parameter groups as language models are usually decayed: matrices are, biases and norms are not.

    model: a module, or named parameters. The groups go into any constructor, torch's too:
    `steepest.Lion(decay_groups(model), lr=1e-4, weight_decay=1.0)`.
    """
    given = model.named_parameters() if isinstance(model, nn.Module) else model
    named = [(name, p) for name, p in given if p.requires_grad]
    rest = [(name, p) for name, p in named if not matrices(name, p)]
    groups: list[dict[str, Any]] = [{"params": [(name, p) for name, p in named if matrices(name, p)]}]
    if rest:
        groups.append({"params": rest, "weight_decay": 0.0})
    return [group for group in groups if group["params"]]
