"""The table that the laws run over: every rule x dialect x option that shapes its formula.

Nothing here is a list of names kept by hand: a new rule, dialect or switch appears in every law at once.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from steepest import Optimizer, Rule, SteepestError
from steepest.codecs import PARAM_CODECS, SLOT_CODECS, SLOT_NAMES, plain
from steepest.contract import Live, compute_dtype, expand
from steepest.engines import Bucket
from steepest.rules import CARDS, RULES

SWITCHED = {
    "momentum": (0.0, 0.9),
    "beta1": (0.0, 0.9),
    "dampening": (0.0, 0.5),
    "lr_decay": (0.0, 0.1),
    "initial_accumulator_value": (0.0, 0.1),
}
"""Numbers whose zero gives another formula, or another set of slots."""


@dataclass(frozen=True)
class Case:
    """A rule with its options; `str` is the test's name."""

    rule: Rule
    hyper: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        shown = {k: v for k, v in self.hyper.items() if k != "weight_decay"}
        parts = [self.rule.name, str(shown.pop("dialect", ""))]
        parts += [key if value is True else f"{key}={value:g}" for key, value in shown.items() if value]
        return "-".join([*filter(None, parts), *(["no_decay"] if not self.hyper["weight_decay"] else [])])

    @property
    def full(self) -> dict[str, Any]:
        """Every hyperparameter of the rule under this case, torch's names."""
        return self.rule.defaults(self.hyper.get("dialect")) | self.hyper

    def live(self, t: int = 1, **change: Any) -> Live:
        """What the rule reads as `h` at step t."""
        h = expand(self.full | change, t)
        h.scale, h.clip_value, h.l2 = None, None, h.weight_decay or None
        return h

    def build(self, params: Any, **options: Any) -> Optimizer:
        return Optimizer(params, self.rule, **(self.hyper | options))


def _switches(rule: Rule) -> dict[str, Sequence[Any]]:
    flags = {
        k: h.choices for k, h in rule.hyper.items() if not h.live and h.choices is not None and k != "dialect"
    }
    return flags | {k: v for k, v in SWITCHED.items() if k in rule.hyper}


def _legal(case: Case) -> bool:
    h = case.hyper
    needs = {"warmup_init": "relative_step", "dampening": "momentum", "nesterov": "momentum"}
    if any(h.get(switch) and not h.get(other) for switch, other in needs.items()):
        return False
    try:
        case.build([torch.zeros(2)])
    except SteepestError:  # nesterov with dampening
        return False
    return True


def _cases() -> Iterator[Case]:
    for rule in RULES.values():
        switches = _switches(rule)
        for dialect in list(rule.dialects) or [None]:
            named = {"dialect": dialect} if dialect else {}
            for values in itertools.product(*switches.values()):
                case = Case(rule, {**named, "weight_decay": 0.1, **dict(zip(switches, values, strict=True))})
                if _legal(case):
                    yield case
            yield Case(rule, {**named, "weight_decay": 0.0})


CASES = list(_cases())
CARD_CASES = [Case(c.rule, {"weight_decay": 0.1, **c.settings}) for c in CARDS.values()]

SHAPES = [(7, 6), (5,), (), (1,), (0,), (1, 9), (40, 33), (2, 3, 4)]
"""Ordinary and odd shapes."""
MATRIX = (64, 128)
"""Large enough for a codec."""
LARGE = (129, 128)
"""Large enough for every dialect of Adafactor to factor."""


def tensors(shapes: Sequence[Sequence[int]], seed: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Normal tensors of these shapes, the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(tuple(s), generator=generator, dtype=torch.float64).to(dtype) for s in shapes]


def feed(params: Sequence[Tensor], seed: int) -> None:
    """Give every parameter a fresh gradient."""
    for p, g in zip(params, tensors([p.shape for p in params], seed, params[0].dtype), strict=True):
        p.grad = g


def slots_of(opt: Optimizer, p: Tensor) -> dict[str, Tensor]:
    """The tensors an optimizer keeps for a parameter."""
    return {name: value for name, value in opt.state[p].items() if isinstance(value, Tensor)}


def bucket(rule: Rule, params: list[Tensor], grads: list[Tensor], slots: dict[str, Any], h: Live) -> Bucket:
    """What an engine runs, without codecs. slots: lists of tensors by name."""
    own = plain(compute_dtype(params[0]))
    codecs = {"p": plain(params[0].dtype), **dict.fromkeys(slots, own)}
    return Bucket(rule, h, codecs, params, grads, slots, list(range(len(params))), seed=0, telemetry=False)


def legal(case: Case, name: str, shapes: Sequence[Sequence[int]]) -> dict[str, bool]:
    """For every slot of parameters of these shapes: whether a codec of this name can work for it."""
    h, base = vars(expand(case.full, 1)), name.removesuffix("_rn")
    slots = [case.rule.slots_for(torch.Size(shape), case.full) for shape in shapes]
    out = {}
    for slot in dict.fromkeys(itertools.chain(*slots)):
        of = case.rule.slots[slot]
        keeps = name == "fp32" or (not of.exact and of.shape is None)
        signs = name != "factored" or of.nonnegative
        moves = 1 - h[of.average] if of.average else 0.0
        out[slot] = keeps and signs and (base == name or moves >= SLOT_CODECS[base](True, False).step)
    return out


def choice(case: Case, name: str, shapes: Sequence[Sequence[int]]) -> str | dict[str, str]:
    """One name for all slots where that can work, else for those for which it can."""
    fits = legal(case, name, shapes)
    exempt = [slot for slot in fits if case.rule.slots[slot].exact or case.rule.slots[slot].shape]
    whole = all(ok or slot in exempt for slot, ok in fits.items())
    return name if whole else {slot: name for slot, ok in fits.items() if ok}


CODED = [MATRIX, (40, 133), (5,), (), (4096,)]
"""Shapes of which some are compressed and some are too small for it."""
PARAMS = [None, *PARAM_CODECS]


def _combinations() -> Iterator[tuple[Case, str, str | None]]:
    """(case, codec of slots, codec of parameters). A case that differs from an earlier one of its rule in its
    formula alone, not in its slots, meets one codec, the others meet all of them; parameters take turns."""
    known, turn = set(), 0
    for i, case in enumerate(CASES):
        slots = case.rule.name, *legal(case, "fp32", CODED)
        names = SLOT_NAMES if slots not in known else [SLOT_NAMES[i % len(SLOT_NAMES)]]
        known.add(slots)
        for name in names:
            yield case, name, PARAMS[turn % len(PARAMS)]
            turn += 1


COMBINATIONS = list(_combinations())


def every_rule(cases: Sequence[Case]) -> bool:
    """Whether a parameter set is not empty and leaves out no rule."""
    return bool(cases) and {case.rule.name for case in cases} == set(RULES)
