"""The nouns everyone uses: errors, hyperparameters, slots, scope, rules, schedules.

Floor 0 of the house: this file imports torch types only, and every other room may import it.
"""

from __future__ import annotations

import difflib
import importlib
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import IntEnum
from numbers import Real
from types import SimpleNamespace
from typing import Any, Literal, Protocol

import torch


class SteepestError(ValueError):
    """A mistake the user can mend. The message is one or two sentences: what is wrong, what to do.

    A ValueError, because that is what torch.optim raises for the same mistakes.
    """


def unknown(kind: str, name: object, options: Iterable[str]) -> SteepestError:
    """The error for a misspelt name: says what is unknown and offers the nearest name there is."""
    options = sorted(options)
    near = difflib.get_close_matches(str(name).lower(), [o.lower() for o in options], n=1, cutoff=0.5)
    named = [o for o in options if near and o.lower() == near[0]]
    hint = f"did you mean {named[0]!r}?" if named else f"known: {', '.join(options)}."
    return SteepestError(f"unknown {kind} {str(name)!r}; {hint}")


class Scope(IntEnum):
    """What a rule must see to compute one element of its update.

    Scope alone decides which bucket, which shard and which kernel is legal.
    """

    ELEMENT = 0
    """Its own element only: any cut of the tensor gives the same numbers."""
    TENSOR = 1
    """A few numbers of the whole tensor (a norm, a row mean)."""
    MATRIX = 2
    """The whole matrix (a matrix product)."""
    MODEL = 3
    """A number over all tensors."""


class Schedule(Protocol):
    """A pure function of the committed step. See `steepest.schedules`."""

    def __call__(self, step: int) -> float: ...


@dataclass(frozen=True, slots=True)
class Hyper:
    """One hyperparameter of a rule: its default, the range it must lie in, and whether it is live.

    A live hyperparameter may change at every step (a schedule, a learning rate finder) and never
    causes a retrace; a fixed one shapes the formula itself (Nesterov or not) and is set once.
    """

    default: Any
    low: float = -math.inf
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False
    infinite: bool = False
    live: bool = True
    choices: tuple[Any, ...] | None = None

    def check(self, name: str, value: Any, where: str) -> None:
        """Raise one sentence naming the group if `value` cannot be this hyperparameter."""
        if self.choices is not None:
            if value not in self.choices:
                allowed = ", ".join(map(repr, self.choices))
                raise SteepestError(f"{where}: {name}={value!r} is not one of {allowed}.")
            return
        if value is None and self.default is None:
            return
        if isinstance(self.default, tuple):
            self._check_pair(name, value, where)
            return
        self._check_number(name, value, where)

    def _check_pair(self, name: str, value: Any, where: str) -> None:
        length = len(self.default)
        if not isinstance(value, (tuple, list)) or len(value) != length:
            raise SteepestError(f"{where}: {name} must be {length} numbers, got {value!r}.")
        for index, part in enumerate(value):
            if part is None and self.default[index] is None:
                continue
            self._check_number(f"{name}[{index}]", part, where)

    def _check_number(self, name: str, value: Any, where: str) -> None:
        if type(value) is float and self.low < value < self.high:  # asked of every number in every step
            return
        if isinstance(value, torch.Tensor):
            if value.numel() != 1:
                raise SteepestError(f"{where}: {name} must hold one number, got shape {tuple(value.shape)}.")
            value = value.item()
        if not isinstance(value, Real):  # numpy's numbers are Real too
            raise SteepestError(f"{where}: {name} must be a number, got {value!r}.")
        value = float(value)
        below = value < self.low or (self.open_low and value == self.low)
        above = value > self.high or (self.open_high and value == self.high)
        endless = math.isnan(value) or (math.isinf(value) and not self.infinite)
        if endless or above or below:
            start, end = "(" if self.open_low else "[", ")" if self.open_high else "]"
            raise SteepestError(
                f"{where}: {name}={value!r} is out of range; "
                f"it must lie in {start}{self.low:g}, {self.high:g}{end}."
            )


@dataclass(frozen=True, slots=True)
class Slot:
    """What a rule remembers between steps for one parameter.

    init:  the value it starts from: a number, or the name of the hyperparameter that holds it.
    when:  whether this parameter has the slot at all, from its shape and the hyperparameters at
           construction (`None`: always). A rule asks `"m" in s`, which is fixed for a parameter.
    shape: the slot's shape from the parameter's shape and the hyperparameters (`None`: the same).
    nonnegative: it never holds a value below zero.
    average: the hyperparameter, as `h` has it, that is this moving average's decay; `None` for a sum, or
           an average whose decay tends to one.
    exact: it has to be stored without loss (a maximum, which rounding would ratchet up).
    of:    what it remembers, by which another rule can take it over: the "gradient" or its "square" (or means
           of that, where it has a shape of its own), or the rule's own "update"; None if it is another thing.
    steady: what it holds of a constant 1 after `h.t` steps; `None`: 1 less what an average still lacks then.
    """

    init: float | str = 0.0
    when: Callable[[torch.Size, Mapping[str, Any]], bool] | None = None
    shape: Callable[[torch.Size, Mapping[str, Any]], torch.Size] | None = None
    nonnegative: bool = False
    average: str | None = None
    exact: bool = False
    of: Literal["gradient", "square", "update"] | None = None
    steady: Callable[[Live], float] | None = None

    def held(self, h: Live) -> float:
        """What it holds of a constant 1 after `h.t` steps."""
        if self.steady is not None:
            return self.steady(h)
        return 1.0 - getattr(h, self.average) ** h.t if self.average else 1.0

    def if_set(self, name: str) -> Slot:
        """The same slot, present only where hyperparameter `name` is set (not zero, None or False)."""
        return replace(self, when=lambda shape, hyper: bool(hyper[name]))


zeros = Slot()
"""The usual slot: the parameter's shape, starting from zero."""

Per = Literal["element", "pair", "block", "row", "column"]
"""What one stored number stands for: an element, two elements of a row (in four bits each), a block of the
grid, a row or a column of a matrix."""


@dataclass(frozen=True, slots=True)
class Part:
    """One tensor of a stored slot or parameter."""

    dtype: torch.dtype
    per: Per = "element"


@dataclass(frozen=True)
class Codec:
    """How a slot or a parameter is stored: a pair of pure functions (see `codecs.formats`), and its tensors.

    parts: the tensors; "" has the name of the slot or is the parameter itself, "scale" of `m` is "m.scale".
    step:  the largest relative change of a value that rounding to nearest can lose, 0 for none.
    lossy: whether decoding gives another value than was encoded.
    """

    name: str
    parts: Mapping[str, Part]
    encode: Callable[[Any, Any], Mapping[str, Any]]
    decode: Callable[[Any], Any]
    step: float = 0.0
    lossy: bool = True


@dataclass(frozen=True, slots=True)
class Shard:
    """The part of a tensor that is held in one place: slices of its first dimension that follow each other.

    shape: of the whole tensor.  first: the number of the first slice held here.
    """

    shape: torch.Size
    first: int = 0

    @property
    def start(self) -> int:
        """Elements of the whole tensor before this part."""
        return self.first * math.prod(self.shape[1:])


AddUp = Callable[[torch.Tensor], None]
"""Adds a float64 vector, in place, over all who hold the other parts of the same tensors. Everyone calls it
equally often, in the same order, with vectors of one length."""

Decay = Literal["decoupled", "l2", "inside"]
"""Where weight decay enters: at the parameter (decoupled), added to the gradient before the rule
(l2), or in the rule's own formula (inside)."""

RuleFn = Callable[[Any, Any, Any, Any], tuple[Any, dict[str, Any]]]


@dataclass(frozen=True)
class Rule:
    """An update rule: gradient to direction, written once; see `steepest.rules`.

    Calling it calls the formula, so one rule may be another rule, changed.
    """

    name: str
    formula: RuleFn
    slots: Mapping[str, Slot]
    hyper: Mapping[str, Hyper]
    scope: Scope
    paper: str
    decay: Decay = "decoupled"
    apply: str = "decoupled"
    dialects: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Name of a dialect to the defaults that differ under it; the first is the accepted reference."""

    def __call__(self, p: Any, g: Any, s: Any, h: Any) -> tuple[Any, dict[str, Any]]:
        return self.formula(p, g, s, h)

    def __reduce__(self) -> tuple[Any, ...]:
        # A pickled optimizer names its rules; the formula stays in the code.
        return _rule_of, (self.formula.__module__, self.name)

    def defaults(self, dialect: str | None = None) -> dict[str, Any]:
        """Every hyperparameter at its default, under a dialect if the rule has any."""
        out = {name: hyper.default for name, hyper in self.hyper.items()}
        if self.dialects:
            dialect = dialect or next(iter(self.dialects))
            if dialect not in self.dialects:
                raise unknown(f"dialect of {self.name}", dialect, self.dialects)
            out |= {"dialect": dialect, **self.dialects[dialect]}
        return out

    def slots_for(self, shape: torch.Size, hyper: Mapping[str, Any]) -> dict[str, torch.Size]:
        """Slot name to shape, for a parameter of this shape under these hyperparameters."""
        return {
            name: slot.shape(shape, hyper) if slot.shape else shape
            for name, slot in self.slots.items()
            if slot.when is None or slot.when(shape, hyper)
        }


class Slots(SimpleNamespace):
    """The `s` of a rule: one parameter's slots by name; `"m" in s` asks whether it has one."""

    def __contains__(self, name: str) -> bool:
        return name in self.__dict__


class Live(SimpleNamespace):
    """The `h` of a rule: every hyperparameter by its paper name, and `t`, the step from 1."""


def _rule_of(module: str, name: str) -> Any:
    return getattr(importlib.import_module(module), name)


def names_of_pair(name: str) -> tuple[str, str]:
    """`betas` is `beta1`, `beta2` inside a rule; `eps` of two is `eps1`, `eps2`."""
    stem = name.rstrip("s") if name != "eps" else name
    return f"{stem}1", f"{stem}2"


def expand(hyper: Mapping[str, Any], t: int) -> Live:
    """A group's hyperparameters, torch's names, as the rule reads them: pairs split, tensors read."""
    out: dict[str, Any] = {"t": t}
    for name, value in hyper.items():
        pair = isinstance(value, (tuple, list)) and len(value) == 2
        out |= zip(names_of_pair(name), value, strict=True) if pair else {name: value}
    return Live(**{name: float(x) if isinstance(x, torch.Tensor) else x for name, x in out.items()})


def compute_dtype(p: torch.Tensor) -> torch.dtype:
    """The type a parameter's step is computed and its slots are kept in: float64 or float32."""
    return torch.float64 if p.dtype == torch.float64 else torch.float32
