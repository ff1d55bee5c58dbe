"""Printing the function that computes, once a step and in float64, what depends on live numbers alone."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch

from steepest.kernels.graph import Type, Value, nearer
from steepest.kernels.llvm import Layout
from steepest.kernels.schedule import Schedule
from steepest.kernels.trace import COMPARISONS, ON_NUMBERS, Untraceable, choose
from steepest.kernels.triton.text import Text, literal, plain_name

ARGUMENTS = "live, steps, constants, control"

FORMS: Mapping[Callable[..., Any], str] = {
    operator.add: "{0} + {1}",
    operator.sub: "{0} - {1}",
    operator.mul: "{0} * {1}",
    operator.truediv: "{0} / {1}",
    operator.pow: "device.power({0}, {1})",
    operator.neg: "-{0}",
    operator.abs: "tl.abs({0})",
    math.sqrt: "tl.sqrt({0})",
    operator.gt: "{0} > {1}",
    operator.ge: "{0} >= {1}",
    operator.lt: "{0} < {1}",
    operator.le: "{0} <= {1}",
    operator.eq: "{0} == {1}",
    operator.ne: "{0} != {1}",
    operator.and_: "({0} != 0.0) & ({1} != 0.0)",
    operator.or_: "({0} != 0.0) | ({1} != 0.0)",
    choose: "tl.where({0} != 0.0, {1}, {2})",
    nearer: "tl.where({0} < 0.5, {0}, {0} - 1.0)",
}
"""What `kernels.trace.ON_NUMBERS` and lerp compute on the host; true is 1.0, as in the table of constants."""

DECISIONS = set(COMPARISONS.values())


class NumbersText(Text):
    """One program a group of hyperparameters."""

    def __init__(self, schedule: Schedule, layout: Layout) -> None:
        super().__init__(schedule, layout)
        self.order = schedule.code.cone(schedule.host, lambda i: False)
        self.live = live_names(schedule)

    def text(self, name: str) -> str:
        with self.block("if tl.load(control) == 0.0:"):
            self.line("return")
        self.line("group = tl.program_id(0)")
        self.line("t = tl.load(steps + group) + 1.0")
        self.line("tl.store(steps + group, t)")
        for i, live in enumerate(self.live):
            self.line(f"{plain_name(live)} = tl.load(live + group * {len(self.live)} + {i})")
        if "h.scale" in self.live:
            self.line(f"{plain_name('h.scale')} *= tl.load(control + 1)")
        for i in self.order:
            v = self.values[i]
            if v.op not in ("literal", "input"):
                self.line(f"h{i} = {self._value(v)}")
        for column, i in enumerate(self.schedule.host):
            at = f"constants + group * {len(self.schedule.host)} + {column}"
            self.line(f"tl.store({at}, {self.operand(i)}.to(tl.float32))")
        return self.function(name, ARGUMENTS)

    def operand(self, i: int) -> str:
        v = self.values[i]
        if v.op == "literal":
            return f"tl.full((), {literal(v.attr, Type.FLOAT)}, tl.float64)"
        name = "t" if v.attr == "h.t" else plain_name(v.attr) if v.op == "input" else f"h{i}"
        return name

    def _value(self, v: Value) -> str:
        if v.op != "host":
            raise Untraceable(f"the GPU printer has no {v.op} of numbers.")
        op, names = v.attr
        if op is ON_NUMBERS[torch.clamp]:
            return self._clamp(v.args, names)
        if op not in FORMS:
            raise Untraceable(f"the GPU printer has no {getattr(op, '__name__', op)} of numbers.")
        form = FORMS[op].format(*map(self.operand, v.args))
        return f"tl.where({form}, 1.0, 0.0).to(tl.float64)" if op in DECISIONS else form

    def _clamp(self, args: tuple[int, ...], names: tuple[str, ...]) -> str:
        split = len(args) - len(names)
        bounds = dict(zip(("min", "max"), args[1:split], strict=False)) | dict(
            zip(names, args[split:], strict=True)
        )
        x = self.operand(args[0])
        for name, beyond in (("min", ">"), ("max", "<")):
            if name in bounds and self.values[bounds[name]].attr is not None:
                bound = self.operand(bounds[name])
                x = f"tl.where({bound} {beyond} {x}, {bound}, {x})"
        return x


def live_names(schedule: Schedule) -> list[str]:
    """The hyperparameters that the table of live numbers holds, in order; t stands in a table of its own."""
    code = schedule.code
    inputs = [code.values[i] for i in code.cone(schedule.host, lambda i: False)]
    names = [str(v.attr) for v in inputs if v.op == "input"]
    return [name for name in dict.fromkeys(names) if name != "h.t"]
