"""One stage of a run as the doctor sees it: columns over steps, and what is known of its plan."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Row = Mapping[str, Any]

CONFIG = {
    "lr": "optimizer: {{lr: {}}}",
    "weight_decay": "optimizer: {{weight_decay: {}}}",
    "beta2": "optimizer: {{betas: [0.9, {}]}}",
    "clip": "clip: {}",
    "no clip": "clip: null",
    "warmup": "schedule: {{warmup: {}}}",
    "final": "schedule: {{final: {}}}",
    "steps": "steps: {}",
    "precision": "precision: {}",
    "param": "optimizer: {{param: {}}}",
    "skip": "guard: {{skip: true}}",
    "update_clip": "guard: {{update_clip: true}}",
    "kl": "objective: {{kl_coef: {}}}",
    "entropy": "objective: {{entropy_coef: {}}}",
    "group": "rollout: {{group: {}}}",
    "updates": "rollout: {{updates: {}}}",
}
"""How a setting is written in a config of this library."""

TRAINER = CONFIG | {
    "lr": "learning_rate={}",
    "weight_decay": "weight_decay={}",
    "beta2": "adam_beta2={}",
    "clip": "max_grad_norm={}",
    "no clip": "max_grad_norm=0",
    "warmup": "warmup_steps={}",
    "final": "lr_scheduler_type='cosine'",
    "steps": "max_steps={}",
    "precision": "bf16=True, fp16=False",
    "param": "float32 weights with bf16=True",
    "skip": "data_seed={}: the same data in another order",
    "update_clip": "adam_beta2=0.95",
    "kl": "beta={}",
    "entropy": "temperature=1.0",
    "group": "num_generations={}",
    "updates": "num_iterations={}",
}
"""How it is written in the arguments of transformers' Trainer and of TRL's."""


@dataclass(frozen=True)
class Column:
    """The finite values of one key, by ascending step."""

    steps: NDArray[np.int64]
    values: Floats

    def __len__(self) -> int:
        return len(self.values)

    def between(self, first: float, last: float) -> Column:
        """The part with `first <= step <= last`."""
        inside = (self.steps >= first) & (self.steps <= last)
        return Column(self.steps[inside], self.values[inside])

    def part(self, start: float, end: float) -> Floats:
        """The values from one fraction of the column to another, one at least if there are any."""
        a, b = int(start * len(self)), math.ceil(end * len(self))
        return self.values[min(a, max(0, len(self) - 1)) : max(b, a + 1)]

    @cached_property
    def noise(self) -> float:
        """Standard deviation of one value about its neighbours, robust against outliers and trends."""
        return noise(self.values)


@dataclass(frozen=True)
class Series:
    """One stage: its rows by step, the journal's events in it, and its plan as far as the files state it.

    name: of the stage, "" if there is only one.  plan: keys of a stage's config that were found (`clip`,
    `steps`, `precision`, `optimizer`, ...).  start: the steps of the run before it.  lines: how a setting is
    written where it is changed.
    """

    rows: tuple[Row, ...]
    events: tuple[Row, ...] = ()
    plan: Mapping[str, Any] = field(default_factory=dict)
    name: str = ""
    start: int = 0
    lines: Mapping[str, str] = field(default_factory=lambda: CONFIG)

    def line(self, setting: str, value: object = "") -> str:
        """The line that changes a setting; numbers rounded to two digits."""
        text = f"{value:.2g}" if isinstance(value, float) else str(value)
        return self.lines[setting].format(text)

    def get(self, key: str) -> Column:
        """A column; booleans count as 0 and 1, what is not a finite number is left out."""
        if key not in self._columns:
            self._columns[key] = self._read(key)
        return self._columns[key]

    @cached_property
    def _columns(self) -> dict[str, Column]:
        return {}

    def _read(self, key: str) -> Column:
        found = {row["step"]: float(value) for row in self.rows if is_finite(value := row.get(key))}
        steps = np.fromiter(found, np.int64, len(found))
        return Column(steps, np.fromiter(found.values(), np.float64, len(found)))

    @cached_property
    def loss(self) -> Column:
        """The training loss. A policy gradient has none that says how well it goes."""
        return self.get("loss") if not self.is_policy else self.get("")

    @cached_property
    def is_policy(self) -> bool:
        return any("reward" in row and row.get("loss") is not None for row in self.rows) and any(
            key in row for row in self.rows for key in ("clip_fraction", "kl", "zero_variance_groups")
        )

    @cached_property
    def lr(self) -> Column:
        return self.get("lr")

    @cached_property
    def ratio(self) -> Column:
        """Norm of the update by norm of the parameters, over the whole model."""
        updates, params = self.get("update_norm"), self.get("param_norm")
        steps, own, other = np.intersect1d(updates.steps, params.steps, return_indices=True)
        values = updates.values[own] / np.maximum(params.values[other], 1e-30)
        return Column(steps, values)

    @cached_property
    def last(self) -> int:
        return int(self.rows[-1]["step"]) if self.rows else 0

    @cached_property
    def planned(self) -> int | None:
        """The last step that the stage was to have, if that is known."""
        steps = self.plan.get("steps") or (self.rows[-1].get("of") if self.rows else None)
        return self.start + int(steps) if is_finite(steps) and steps > 0 else None

    @cached_property
    def peak(self) -> float:
        return float(self.lr.values.max()) if len(self.lr) else 0.0

    @cached_property
    def warm(self) -> int:
        """The first step at (within 1% of) the peak learning rate: warm-up is over."""
        if not len(self.lr):
            return int(self.rows[0]["step"]) if self.rows else 0
        return int(self.lr.steps[int(np.argmax(self.lr.values >= 0.99 * self.peak))])

    @cached_property
    def high(self) -> tuple[int, int]:
        """First and last step with at least half the peak learning rate, warm-up excluded."""
        if not len(self.lr):
            return self.warm, self.last
        return self.warm, int(self.lr.steps[np.flatnonzero(self.lr.values >= 0.5 * self.peak)[-1]])

    def layers(self, key: str) -> dict[str, tuple[int, float]]:
        """Layer to (step, value) of its latest finite value of an indicator, while the rate is a tenth of its
        peak at least: below, updates say nothing."""
        found: dict[str, tuple[int, float]] = {}
        for row in self.rows:
            layers, rate = row.get("layers"), row.get("lr")
            if not isinstance(layers, Mapping) or (is_finite(rate) and rate < 0.1 * self.peak):
                continue
            for name, values in layers.items():
                if isinstance(values, Mapping) and is_finite(value := values.get(key)):
                    found[str(name)] = row["step"], float(value)
        return found


def is_finite(value: Any) -> TypeGuard[float]:
    """Whether a value is a number one can count with: finite, and so is its square."""
    return isinstance(value, (int, float)) and abs(value) < 1e150


def tidy(rows: Iterable[Any]) -> tuple[Row, ...]:
    """The rows that have a step, in its order; of several with one step, each key's last value."""
    merged: dict[int, dict[str, Any]] = {}
    for row in rows:
        if isinstance(row, Mapping) and is_finite(step := row.get("step")) and abs(step) < 2**53:
            merged.setdefault(int(step), {}).update({**row, "step": int(step)})
    return tuple(merged[step] for step in sorted(merged))


def noise(values: Floats) -> float:
    """Robust standard deviation of independent noise on a smooth curve, from its second differences."""
    if len(values) < 3:
        return 0.0
    bend = np.diff(values, 2)
    return float(1.4826 * np.median(np.abs(bend)) / math.sqrt(6.0))


def smooth(values: Floats, width: int) -> Floats:
    """Medians of neighbouring blocks of `width`; the last block may be longer."""
    count = max(1, len(values) // max(1, width))
    return np.array([np.median(block) for block in np.array_split(values, count)])


def runs(flags: Sequence[bool] | NDArray[np.bool_], gap: int) -> list[tuple[int, int]]:
    """(first, last) index of every stretch of True; stretches up to `gap` apart are one."""
    where = np.flatnonzero(np.asarray(flags, dtype=bool))
    if not len(where):
        return []
    cuts = np.flatnonzero(np.diff(where) > gap) + 1
    return [(int(part[0]), int(part[-1])) for part in np.split(where, cuts)]
