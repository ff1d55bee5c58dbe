"""What the doctor says: causes, and the rules that look for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

from steepest.training.doctor.series import Series

Level = Literal["note", "warn", "act"]
LEVELS: tuple[Level, ...] = ("note", "warn", "act")
Blame = Literal["yes", "perhaps", "no"]


@dataclass(frozen=True, slots=True)
class Cause:
    """Something that the numbers of a run point at.

    title:     what it is, a clause.  optimizer: whether that is the optimizer's doing, or its settings'.
    evidence:  sentences with numbers and steps.  change: what to change, a line of a config if there is one.
    steps:     where to look.  rule, stage: who found it, and where.
    """

    title: str
    optimizer: Blame
    level: Level
    evidence: tuple[str, ...]
    change: str
    steps: tuple[int, ...] = ()
    rule: str = ""
    stage: str = ""


class Rule(NamedTuple):
    """One question: what it looks at in words, the columns it cannot do without, and the function.

    unless: causes that explain this one; it is not said beside them.
    """

    name: str
    looks: str
    needs: tuple[str, ...]
    find: Callable[[Series], Cause | None]
    unless: tuple[str, ...] = ()


def counted(number: int, noun: str) -> str:
    """1 spike, 3 spikes."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def listed(steps: tuple[int, ...] | list[int], most: int = 5) -> str:
    """Steps in words: at most five of them."""
    shown = ", ".join(f"{step:,}" for step in steps[:most])
    return shown if len(steps) <= most else f"{shown}, ... ({len(steps):,} in all)"
