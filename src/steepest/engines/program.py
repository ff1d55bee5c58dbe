"""A traced step made ready to run: every result knows which memory it may be written to.

A result goes straight into the parameter or the slot it ends up in once the old value is not read any more,
else into scratch memory that is free by then: nothing is copied, and a chain of a dozen operations needs
two or three temporaries that stay in cache.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import Any, TypeAlias

import torch
from torch import Tensor

from steepest.contract import Live
from steepest.kernels.trace import Graph, Kind, Node, choose

Values: TypeAlias = list[Any]
"""The values of a graph, by number."""


def _clamp(x: Any, min: Any = None, max: Any = None) -> Any:
    if min is not None:
        x = torch._foreach_clamp_min(x, min)
    return x if max is None else torch._foreach_clamp_max(x, max)


def _clamp_(x: Any, min: Any = None, max: Any = None) -> None:
    if min is not None:
        torch._foreach_clamp_min_(x, min)
    if max is not None:
        torch._foreach_clamp_max_(x, max)


def keep(x: Any, one: Any, out: Any = None) -> Any:
    """What is left of a multiplication by one."""
    return x


LISTS: Mapping[Callable[..., Any], tuple[Callable[..., Any], Callable[..., Any] | None]] = {
    torch.add: (torch._foreach_add, torch._foreach_add_),
    torch.sub: (torch._foreach_sub, torch._foreach_sub_),
    torch.mul: (torch._foreach_mul, torch._foreach_mul_),
    torch.div: (torch._foreach_div, torch._foreach_div_),
    torch.lerp: (torch._foreach_lerp, torch._foreach_lerp_),
    torch.sqrt: (torch._foreach_sqrt, torch._foreach_sqrt_),
    torch.sign: (torch._foreach_sign, torch._foreach_sign_),
    torch.neg: (torch._foreach_neg, torch._foreach_neg_),
    torch.abs: (torch._foreach_abs, torch._foreach_abs_),
    torch.clamp: (_clamp, _clamp_),
    torch.linalg.vector_norm: (torch._foreach_norm, None),
    keep: (keep, keep),
}
"""The same operation on lists of tensors: new, and in place. The first operand must be a list."""


ARITHMETIC = (torch.add, torch.sub, torch.mul, torch.div)


@dataclass(frozen=True, slots=True)
class Step:
    """One operation on tensors.

    home:     where the result is written: 0 the parameter, 1.. the slots, then scratch; None new memory.
    in_place: its first operand is there already.
    dead:     the values not read any more afterwards.
    operands: the values of its arguments, numbers of arithmetic as tensors without dimensions.
    named:    its keyword arguments, which are numbers: known once bound.
    """

    node: Node
    op: Callable[..., Any]
    home: int | None
    in_place: bool
    dead: tuple[int, ...]
    operands: Callable[[Values], tuple[Any, ...]]
    named: Mapping[str, Any]


class Program:
    """A graph with memory assigned. `scratch` is how many temporaries of the parameter's size it needs."""

    def __init__(self, graph: Graph, slots: Iterable[str]) -> None:
        self.graph = graph
        self.columns = ("p", *(f"s.{name}" for name in slots))
        tensors = [n for n in graph.nodes if graph.kinds[n.value] is not Kind.HOST]
        last = _last_reads(graph, tensors)
        homes = {graph.inputs[name]: home for home, name in enumerate(self.columns)}
        homes |= _land(graph, tensors, last, self.columns)
        self.scratch = _share(graph, tensors, last, homes) - len(self.columns)
        made = {n.value for n in tensors}
        self.host = [n for n in graph.nodes if graph.kinds[n.value] is Kind.HOST]
        # torch makes a tensor of a number at every call, which takes longer than the call. Beside a mask
        # alone it must stay a number: that is how the result gets its type.
        floating = [n for n in tensors if n.op in ARITHMETIC and graph.kinds[n.value] is not Kind.OTHER]
        numbers = {i for n in floating for i in n.args if graph.kinds[i] is Kind.HOST}
        self.boxes = {i: len(graph.kinds) + k for k, i in enumerate(sorted(numbers))}
        self.steps = [
            _step(n, i, made, homes, last, self.boxes if n in floating else {}) for i, n in enumerate(tensors)
        ]
        self.copies = [
            (self.columns.index(name), value)
            for name, value in graph.outputs.items()
            if homes.get(value) != self.columns.index(name)
        ]

    def bind(self, h: Live, dtype: torch.dtype) -> tuple[Values, list[Step]]:
        """The values with every number filled in, computed in Python floats, and the steps left to do."""
        values: Values = [None] * (len(self.graph.kinds) + len(self.boxes))
        for i, constant in self.graph.constants.items():
            values[i] = constant
        for name, i in self.graph.inputs.items():
            if name.startswith("h."):
                values[i] = getattr(h, name[2:])
        for node in self.host:
            values[node.value] = node.op(*(values[i] for i in node.args), **_named(node, values))
        for i, box in self.boxes.items():
            values[box] = torch.tensor(values[i], dtype=dtype)
        return values, [
            replace(s, op=keep if _is_idle(s, values) else s.op, named=_named(s.node, values))
            for s in self.steps
        ]

    def run(
        self, values: Values, steps: Sequence[Step], row: Sequence[Tensor], scratch: Sequence[Tensor]
    ) -> None:
        """One step of one tensor, in place.

        values, steps: from `bind`.  row: parameter, gradient, slots.  scratch: temporaries shaped like them.
        """
        memory = [*self._place(values, row), *scratch]
        for step in steps:
            if step.home is None:
                result = step.op(*step.operands(values), **step.named)
            else:
                result = step.op(*step.operands(values), out=memory[step.home], **step.named)
            values[step.node.value] = result
            for i in step.dead:
                values[i] = None
        for home, value in self.copies:
            memory[home].copy_(values[value])

    def run_lists(self, values: Values, steps: Sequence[Step], columns: Sequence[Sequence[Tensor]]) -> None:
        """One step of many tensors, in place, one call an operation."""
        memory = self._place(values, columns)
        count = len(columns[0])
        for step in steps:
            args = [values[i] for i in step.node.args]
            new, in_place = LISTS.get(step.op, (None, None))
            if step.in_place and in_place is not None:
                in_place(*args, **step.named)
                result = args[0]
            elif step.op is choose:
                result = choose(*args)
            elif new is not None and isinstance(args[0], (list, tuple)):
                result = new(*args, **step.named)
            else:
                result = [_one(step.op, args, step.named, i) for i in range(count)]
            if step.home is not None and step.home < len(memory) and result is not memory[step.home]:
                torch._foreach_copy_(memory[step.home], result)
                result = memory[step.home]
            values[step.node.value] = result
            for i in step.dead:
                values[i] = None
        for home, value in self.copies:
            torch._foreach_copy_(memory[home], values[value])

    def _place(self, values: Values, columns: Sequence[Any]) -> list[Any]:
        p, g, *slots = columns
        memory = [p, *slots]
        values[self.graph.inputs["g"]] = g
        for name, column in zip(self.columns, memory, strict=True):
            values[self.graph.inputs[name]] = column
        return memory


def _one(op: Callable[..., Any], args: Sequence[Any], named: Mapping[str, Any], i: int) -> Any:
    """An operation on the i-th tensor of each list."""
    own = [x[i] if isinstance(x, (list, tuple)) else x for x in args]
    return op(*own, **named)


def _named(node: Node, values: Values) -> dict[str, Any]:
    return {name: values[i] for name, i in node.kwargs}


def _last_reads(graph: Graph, tensors: Sequence[Node]) -> dict[int, int]:
    """The position of the last node that reads each value; what is kept is read after the end."""
    last = dict.fromkeys(graph.outputs.values(), len(tensors))
    for position in reversed(range(len(tensors))):
        node = tensors[position]
        # What was chosen is one of the operands itself, so they live as long.
        until = last[node.value] if node.op is choose else position
        for i in node.operands:
            last[i] = max(last.get(i, -1), until)
    return last


def _land(
    graph: Graph, tensors: Sequence[Node], last: Mapping[int, int], columns: Sequence[str]
) -> dict[int, int]:
    """Which values are computed in the parameter's or a slot's own memory: the new value, where the old one
    is not read any more when it comes, and before it whatever it is made from in turn."""
    position = {node.value: i for i, node in enumerate(tensors)}
    landed: dict[int, int] = {}
    for home, name in enumerate(columns):
        value, old = graph.outputs.get(name), graph.inputs[name]
        while (
            value in position
            and value not in landed
            and graph.kinds[value] is graph.kinds[old] is Kind.FULL
            and last.get(old, -1) <= position[value]
        ):
            landed[value] = home
            here = position[value]
            value = next((i for i in tensors[here].args if i in position and last[i] == here), None)
    return landed


def _share(graph: Graph, tensors: Sequence[Node], last: Mapping[int, int], homes: dict[int, int]) -> int:
    """Give the other values of the parameter's size scratch memory (added to `homes`), and take it back at
    their last read: the reading node may already write there. Returns the number of memories."""
    first = count = 1 + max(homes.values())
    free: list[int] = []
    for position, node in enumerate(tensors):
        for i in dict.fromkeys(reversed(node.operands)):
            if last[i] == position and homes.get(i, -1) >= first:
                free.append(homes[i])
        if graph.kinds[node.value] is Kind.FULL and node.value not in homes:
            if not free:
                free.append(count)
                count += 1
            homes[node.value] = free.pop()
    return count


def _step(
    node: Node,
    position: int,
    tensors: Container[int],
    homes: Mapping[int, int],
    last: Mapping[int, int],
    boxes: Mapping[int, int],
) -> Step:
    home = homes.get(node.value)
    args = [boxes.get(i, i) for i in node.args]
    return Step(
        node,
        node.op,
        home,
        in_place=home is not None and homes.get(node.args[0]) == home,
        dead=tuple(i for i in node.operands if last[i] == position and i in tensors),
        operands=itemgetter(*args) if len(args) > 1 else _only(args[0]),
        named={},
    )


def _is_idle(step: Step, values: Values) -> bool:
    """Whether a step would multiply or divide by one what is in its place already: no decay, say."""
    return step.in_place and step.op in (torch.mul, torch.div) and values[step.node.args[1]] == 1


def _only(i: int) -> Callable[[Values], tuple[Any, ...]]:
    return lambda values: (values[i],)
