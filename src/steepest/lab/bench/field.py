"""Who runs in a case: our variants, the peers, the probes of memory bandwidth, the baselines in fp32."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from steepest.contract import Rule, Scope, SteepestError, zeros
from steepest.lab.bench.cases import FP32, Case
from steepest.lab.bench.peers import BASELINES, Peer, peers_of
from steepest.lab.bench.race import Racer
from steepest.optimizer import Optimizer, constructor
from steepest.rules import find_rule

LR = 1e-6
"""So small that no number of rounds moves a parameter out of its range."""

NORM = 1.0
"""What gradients are clipped to. They start above it, and torch's own clipping leaves them at it, so that
clipping has work to do in every round of everybody."""

VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "update": {"check_finite": False},
    "step": {},
    "clipped": {"max_grad_norm": NORM},
    "telemetry": {"check_finite": False, "telemetry": True},
}
"""The update alone, as peers do it; the whole step, which refuses non-finite gradients; that with clipping by
global norm; and the update with its telemetry."""

PROBE_ELEMENTS = 2**26
"""The most elements of the bandwidth probe; a smaller case has a probe of its own size."""


class Workspace:
    """Parameters with gradients, one set a type, shared by everyone in a case."""

    def __init__(self, shapes: Sequence[torch.Size], device: str) -> None:
        self.shapes, self.device = shapes, device
        self._params: dict[torch.dtype, list[nn.Parameter]] = {}

    def params(self, dtype: torch.dtype) -> list[nn.Parameter]:
        """The parameters of this type, made when first asked for."""
        if dtype not in self._params:
            like: dict[str, Any] = {"dtype": dtype, "device": self.device}
            made = [nn.Parameter(torch.empty(s, **like).uniform_(-0.05, 0.05)) for s in self.shapes]
            for p in made:
                p.grad = torch.empty_like(p).uniform_(-0.01, 0.01)
            self._params[dtype] = made
        return self._params[dtype]


def ours(
    case: Case,
    params: Sequence[nn.Parameter],
    engine: str | None,
    variant: str = "step",
    *,
    lr: float = LR,
) -> Optimizer:
    """This library's optimizer of a case. Raises SteepestError where it cannot be had."""
    given = {"max_grad_norm": None, **VARIANTS[variant], **case.storage.options()}
    made = constructor(case.card.constructor)
    return made(params, lr=lr, engine=engine, **case.card.settings, **given)


def racers(case: Case, work: Workspace, engine: str | None, *, with_peers: bool = True) -> list[Racer]:
    """Everybody who is timed in a case."""
    found = [_mine(case, work, engine, variant) for variant in VARIANTS]
    found += [_bandwidth(work)]
    if case.storage == FP32 and case.card.name == "adamw":
        found += [_streams(work, engine)]
    if case.storage != FP32:
        plain = Case(case.card, FP32, case.shapes)
        racer = _mine(plain, work, engine, "update")
        racer.name, racer.group = "fp32 update", "baseline"
        found += [racer]
        if with_peers:
            named = [p for p in peers_of(case.card.name, "fp32") if p.name in BASELINES]
            found += [_theirs(peer, work, torch.float32, "baseline") for peer in named]
    if with_peers:
        for peer in peers_of(case.card.name, case.storage.name, case.small):
            found += [_theirs(peer, work, case.storage.dtype, "update" if peer.same else "other")]
            if peer.clip:
                found += [_theirs(peer, work, case.storage.dtype, "clipped")]
    return found


def _mine(case: Case, work: Workspace, engine: str | None, variant: str) -> Racer:
    facts: dict[str, Any] = {}

    def build() -> Callable[[], Any]:
        made = ours(case, work.params(case.storage.dtype), engine, variant)
        facts["engine"] = made.engine
        return made.step

    return Racer(variant, "steepest", variant, build, facts)


def _theirs(peer: Peer, work: Workspace, dtype: torch.dtype, group: str) -> Racer:
    def build() -> Callable[[], Any]:
        params = work.params(dtype)
        made = peer.make(params, LR)

        def clip_and_step() -> None:
            nn.utils.clip_grad_norm_(params, NORM, foreach=True)
            made.step()

        return clip_and_step if group == "clipped" else made.step

    return Racer(peer.name, peer.module.split(".")[0], group, build)


def _bandwidth(work: Workspace) -> Racer:
    """a += b in torch: two reads and a write, twelve bytes an element."""
    elements = min(PROBE_ELEMENTS, sum(shape.numel() for shape in work.shapes))

    def build() -> Callable[[], Any]:
        a, b = (torch.ones(elements, device=work.device) for _ in range(2))
        return lambda: a.add_(b, alpha=1e-9)

    return Racer("a += b", "torch", "probe", build, {"bytes": 12 * elements})


def _seven_streams(p: Any, g: Any, s: Any, h: Any) -> tuple[Any, dict[str, Any]]:
    m, v = s.m + g, s.v + g
    return m + v, {"m": m, "v": v}


def _streams(work: Workspace, engine: str | None) -> Racer:
    """AdamW's seven streams with next to no arithmetic, through the fused engine: what memory allows with
    as many streams, which is less regular than `a += b`."""
    elements = sum(shape.numel() for shape in work.shapes)
    plain = find_rule("adamw").hyper
    hyper = {name: plain[name] for name in ("lr", "weight_decay")}
    slots = {"m": zeros, "v": zeros}
    rule = Rule("seven_streams", _seven_streams, slots, hyper, Scope.ELEMENT, "a probe of this benchmark")

    def build() -> Callable[[], Any]:
        made = Optimizer(work.params(torch.float32), rule, lr=LR, engine=engine, **VARIANTS["update"])
        if made.engine != "fused":
            raise SteepestError("seven streams are timed with the fused engine; others move more bytes.")
        return made.step

    return Racer("seven streams", "steepest", "probe", build, {"bytes": 28 * elements})
