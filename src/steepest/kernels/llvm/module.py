"""The text of a whole schedule: its functions in the order in which they run."""

from __future__ import annotations

from steepest.kernels.llvm.folds import FoldPrinter
from steepest.kernels.llvm.passes import PassPrinter
from steepest.kernels.llvm.printer import Layout, Printer
from steepest.kernels.schedule import Pass, Schedule


def print_module(schedule: Schedule, layout: Layout) -> tuple[str, list[str], list[int]]:
    """The text, the names of its functions, and for each how many sums a piece of it writes."""
    texts, names, widths = [], [], []
    declared: set[str] = set()
    totals = list(schedule.opening)
    width = len(totals)
    for number, work in enumerate(schedule.work):
        printer: Printer
        if isinstance(work, Pass):
            name = f"pass_{number}"
            printer = PassPrinter(schedule, layout, work)
            totals, width = printer.totals, len(printer.totals) + len(work.telemetry)
            widths.append(width)
        else:
            name = f"fold_{number}"
            printer = FoldPrinter(schedule, layout, work, totals, width)
            widths.append(0)
        texts.append(printer.text(name))
        names.append(name)
        declared |= printer.declared
    return "\n\n".join([*(f"declare {d}" for d in sorted(declared)), *texts]) + "\n", names, widths
