"""The rule over lists of tensors: one call an operation instead of one an operation and tensor.

On a CPU the lists are cut into pieces that stay in cache, so that a chain of a dozen operations moves
each byte to and from memory once; on other devices a launch costs more than a byte, so they are not cut.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from steepest.apply import advance
from steepest.contract import Rule, Scope, Slots, compute_dtype
from steepest.ops import last_use

PIECE = 2**18
"""Elements in a piece on a CPU: one MiB of float32 a list, chosen by `bench/foreach.py`. A rule without
slots needs no temporary, hence no cache, and gets pieces four times as long."""


class Bundle:
    """A list of tensors that a rule may use as if it were one tensor.

    A spent bundle (`ops.last_use`) is computed in place, and so is what comes of it: that is how a new
    parameter lands in the old one's memory without a copy.
    """

    __slots__ = ("spent", "tensors")

    def __init__(self, tensors: Sequence[Tensor], spent: bool = False) -> None:
        self.tensors, self.spent = tensors, spent

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Bundle:
        kwargs = kwargs or {}
        first = args[0]
        if func is last_use:
            return cls(first.tensors, spent=True)
        bare = [_bare(a) for a in args]
        if getattr(first, "spent", False) and func in IN_PLACE:
            IN_PLACE[func](*bare, **kwargs)
            return first  # type: ignore[no-any-return]
        if func in FOREACH:
            return cls(FOREACH[func](*bare, **{k: _bare(v) for k, v in kwargs.items()}))
        count = next(len(a.tensors) for a in (*args, *kwargs.values()) if isinstance(a, Bundle))
        return cls(
            [
                func(*(_item(a, i) for a in args), **{k: _item(v, i) for k, v in kwargs.items()})
                for i in range(count)
            ]
        )

    def _operator(func: Callable[..., Any]) -> Callable[[Any, Any], Bundle]:  # type: ignore[misc]
        def call(self: Bundle, other: Any) -> Bundle:
            return self.__torch_function__(func, (), (self, other))

        return call

    __add__ = __radd__ = _operator(torch.add)
    __sub__ = _operator(torch.sub)
    __mul__ = __rmul__ = _operator(torch.mul)
    __truediv__ = _operator(torch.div)
    __gt__ = _operator(torch.gt)
    __and__ = _operator(torch.logical_and)


def _bare(x: Any) -> Any:
    return x.tensors if isinstance(x, Bundle) else x


def _item(x: Any, i: int) -> Any:
    return x.tensors[i] if isinstance(x, Bundle) else x


def _clamp(x: Any, min: Any = None, max: Any = None) -> Any:
    if min is not None:
        x = torch._foreach_clamp_min(x, min)
    return x if max is None else torch._foreach_clamp_max(x, max)


FOREACH: Mapping[Callable[..., Any], Callable[..., Any]] = {
    torch.add: torch._foreach_add,
    torch.sub: torch._foreach_sub,
    torch.mul: torch._foreach_mul,
    torch.div: torch._foreach_div,
    torch.lerp: torch._foreach_lerp,
    torch.sqrt: torch._foreach_sqrt,
    torch.sign: torch._foreach_sign,
    torch.clamp: _clamp,
    torch.linalg.vector_norm: torch._foreach_norm,
}
IN_PLACE: Mapping[Callable[..., Any], Callable[..., Any]] = {
    torch.add: torch._foreach_add_,
    torch.sub: torch._foreach_sub_,
    torch.mul: torch._foreach_mul_,
}


def run(
    rule: Rule,
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    slots: Mapping[str, Sequence[Tensor]],
    h: Any,
) -> None:
    """One step of every parameter, in place. Low-precision tensors are computed in float32."""
    names = list(slots)
    columns = [params, grads, *slots.values()]
    for p, g, *own in _pieces(columns, rule.scope):
        dtype = compute_dtype(p[0])
        wide = p if p[0].dtype == dtype else [t.to(dtype) for t in p]
        steep = g if g[0].dtype == dtype else [t.to(dtype) for t in g]
        held = Slots(**{name: Bundle(tensors) for name, tensors in zip(names, own, strict=True)})
        new_p, new_slots = advance(rule, Bundle(wide), Bundle(steep), held, h)
        if new_p.tensors is not p:
            torch._foreach_copy_(p, new_p.tensors)
        for name, tensors in zip(names, own, strict=True):
            torch._foreach_copy_(tensors, new_slots[name].tensors)


def _pieces(columns: Sequence[Sequence[Tensor]], scope: Scope) -> Iterator[list[list[Tensor]]]:
    """The lists cut so that each piece holds about PIECE elements of every list.

    A tensor is cut only if the rule works element by element and all its lists lie flat in memory;
    cuts fall on multiples of PIECE, so vector lanes see the same neighbours as in the whole tensor.
    """
    if columns[0][0].device.type != "cpu":
        yield [list(column) for column in columns]
        return
    piece = PIECE if len(columns) > 2 else 4 * PIECE
    held: list[list[Tensor]] = [[] for _ in columns]
    count = 0
    for row in zip(*columns, strict=True):
        size = row[0].numel()
        if size > piece and scope is Scope.ELEMENT and all(t.is_contiguous() for t in row):
            for cut in zip(*(t.view(-1).split(piece) for t in row), strict=True):
                yield [[t] for t in cut]
            continue
        if held[0] and count + size > piece:
            yield held
            held, count = [[] for _ in columns], 0
        for column, tensor in zip(held, row, strict=True):
            column.append(tensor)
        count += size
    if held[0]:
        yield held
