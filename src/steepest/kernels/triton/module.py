"""A whole schedule as a module of Triton, and what has to be launched."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from steepest.kernels.llvm import Layout
from steepest.kernels.schedule import Pass, Schedule
from steepest.kernels.triton.folds import FoldText
from steepest.kernels.triton.numbers import NumbersText
from steepest.kernels.triton.passes import PassText

HEAD = '''"""Printed from a rule; see steepest.kernels.triton. Changes here are not read."""

import triton
import triton.language as tl

from steepest.kernels.triton import device
'''


@dataclass(frozen=True, slots=True)
class Launch:
    """One function. A numbers function has a program for every group, a pass for every piece, a gather for
    every stretch of a tensor's vectors, a fold for every tensor.

    width: the sums that a piece of a pass writes.
    """

    name: str
    kind: Literal["numbers", "pass", "gather", "fold"]
    width: int = 0


@dataclass(frozen=True, slots=True)
class Printed:
    """text: of the module.  launches: in their order.  live: the columns of the table of live numbers."""

    text: str
    launches: tuple[Launch, ...]
    live: tuple[str, ...]


def print_triton(schedule: Schedule, layout: Layout) -> Printed:
    """The module of a schedule. Raises `Untraceable` for what Triton has no instruction for."""
    numbers = NumbersText(schedule, layout)
    texts, launches = [HEAD, numbers.text("numbers")], [Launch("numbers", "numbers")]
    totals: list[int] = []
    width = 0
    for number, work in enumerate(schedule.work):
        if isinstance(work, Pass):
            own = PassText(schedule, layout, work)
            totals, width = own.totals, own.width
            texts.append(own.text(f"pass_{number}"))
            launches.append(Launch(f"pass_{number}", "pass", width))
            continue
        fold = FoldText(schedule, layout, work, totals, width)
        if fold.vector_sums:
            texts.append(FoldText(schedule, layout, work, totals, width).gather(f"gather_{number}"))
            launches.append(Launch(f"gather_{number}", "gather"))
        texts.append(fold.text(f"fold_{number}"))
        launches.append(Launch(f"fold_{number}", "fold"))
    return Printed("\n\n".join(texts) + "\n", tuple(launches), tuple(numbers.live))
