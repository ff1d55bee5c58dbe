"""A stand-in for tensors and live numbers that records what a rule does to it.

It knows no values, so whatever asks for one (an `if`, a `float()`, a loop) fails at once; what is left is a
graph that can be computed again for any values. A kernel compiler reads rules in the same way.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


class Asked(AssertionError):
    """A rule asked a stand-in for its value."""


@dataclass
class Graph:
    """The calls in order; a leaf is a call without a function, known by its name."""

    nodes: list[Node] = field(default_factory=list)

    def leaf(self, name: str, shape: torch.Size | None = None) -> Node:
        return Node(self, None, (), {}, name, shape)

    def evaluate(self, outputs: Mapping[str, Any], leaves: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The values of these nodes for these leaves; no rule is run again."""
        known: dict[int, Any] = {}

        def value(x: Any) -> Any:
            return known[id(x)] if isinstance(x, Node) else x

        for node in self.nodes:
            if node.func is None:
                known[id(node)] = leaves[node.name]
            else:
                kwargs = {k: value(v) for k, v in node.kwargs.items()}
                known[id(node)] = _call(node.func, [value(a) for a in node.args], kwargs)
        return {name: value(node) for name, node in outputs.items()}

    def used(self) -> set[str]:
        """Names of the leaves that some call takes."""
        taken = [x for n in self.nodes for x in (*n.args, *n.kwargs.values()) if isinstance(x, Node)]
        return {n.name for n in taken if n.func is None}


class Node:
    """One recorded call, or a leaf."""

    def __init__(
        self,
        graph: Graph,
        func: Callable[..., Any] | None,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        name: str = "",
        shape: torch.Size | None = None,
    ) -> None:
        self.graph, self.func, self.args, self.kwargs = graph, func, args, kwargs
        self.name, self._shape = name, shape
        graph.nodes.append(self)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Node:
        kwargs = kwargs or {}
        own = next(x for x in (*args, *kwargs.values()) if isinstance(x, Node))
        return Node(own.graph, func, tuple(args), kwargs)

    @property
    def shape(self) -> torch.Size:
        if self._shape is None:
            raise Asked("the shape of an intermediate result")
        return self._shape

    def _asked(self, *_: Any) -> Any:
        raise Asked("a value")

    __bool__ = __float__ = __int__ = __index__ = __iter__ = __len__ = __getitem__ = _asked
    __hash__ = object.__hash__


def _operator(func: Callable[..., Any], swapped: bool = False) -> Callable[..., Node]:
    def call(self: Node, *other: Any) -> Node:
        return Node(self.graph, func, (*other, self) if swapped else (self, *other), {})

    return call


for _name in ("add", "sub", "mul", "truediv", "pow"):
    setattr(Node, f"__{_name}__", _operator(getattr(operator, _name)))
    setattr(Node, f"__r{_name}__", _operator(getattr(operator, _name), swapped=True))
for _name in ("neg", "abs", "gt", "ge", "lt", "le", "eq", "ne", "and_", "or_"):
    setattr(Node, f"__{_name.rstrip('_')}__", _operator(getattr(operator, _name)))


def _call(func: Callable[..., Any], args: list[Any], kwargs: dict[str, Any]) -> Any:
    if func is torch.clamp:  # whose bounds, and what they hold, are all tensors or all numbers
        args = [torch.as_tensor(a, dtype=torch.float64) if isinstance(a, float) else a for a in args]
        kwargs = {k: torch.as_tensor(v, dtype=torch.float64) for k, v in kwargs.items()}
    return func(*args, **kwargs)
