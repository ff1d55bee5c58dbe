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

PIECE = 2**17
"""Elements in a piece on a CPU: half a MiB of float32 a list, chosen by `bench/foreach.py`."""


class Bundle:
    """A list of tensors that a rule may use as if it were one tensor."""

    __slots__ = ("tensors",)

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self.tensors = tensors

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Bundle:
        kwargs = kwargs or {}
        whole = FOREACH.get(func)
        if whole is not None:
            return cls(whole(*map(_bare, args), **{k: _bare(v) for k, v in kwargs.items()}))
        count = next(len(a.tensors) for a in (*args, *kwargs.values()) if isinstance(a, Bundle))
        return cls(
            [
                func(*(_item(a, i) for a in args), **{k: _item(v, i) for k, v in kwargs.items()})
                for i in range(count)
            ]
        )

    def __add__(self, other: Any) -> Bundle:
        return Bundle(torch._foreach_add(self.tensors, _bare(other)))

    __radd__ = __add__

    def __sub__(self, other: Any) -> Bundle:
        return Bundle(torch._foreach_sub(self.tensors, _bare(other)))

    def __mul__(self, other: Any) -> Bundle:
        return Bundle(torch._foreach_mul(self.tensors, _bare(other)))

    __rmul__ = __mul__

    def __truediv__(self, other: Any) -> Bundle:
        return Bundle(torch._foreach_div(self.tensors, _bare(other)))

    def __neg__(self) -> Bundle:
        return Bundle(torch._foreach_neg(self.tensors))

    def __gt__(self, other: Any) -> Bundle:
        return self.__torch_function__(torch.gt, (), (self, other))

    def __and__(self, other: Any) -> Bundle:
        return self.__torch_function__(torch.logical_and, (), (self, other))


def _bare(x: Any) -> Any:
    return x.tensors if isinstance(x, Bundle) else x


def _item(x: Any, i: int) -> Any:
    return x.tensors[i] if isinstance(x, Bundle) else x


def _clamp(x: Any, min: Any = None, max: Any = None) -> Any:
    if min is not None:
        x = torch._foreach_clamp_min(x, min)
    return x if max is None else torch._foreach_clamp_max(x, max)


FOREACH: Mapping[Callable[..., Any], Callable[..., Any]] = {
    torch.lerp: torch._foreach_lerp,
    torch.add: torch._foreach_add,
    torch.sqrt: torch._foreach_sqrt,
    torch.sign: torch._foreach_sign,
    torch.clamp: _clamp,
    torch.linalg.vector_norm: torch._foreach_norm,
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
    held: list[list[Tensor]] = [[] for _ in columns]
    count = 0
    for row in zip(*columns, strict=True):
        size = row[0].numel()
        if size > PIECE and scope is Scope.ELEMENT and all(t.is_contiguous() for t in row):
            for cut in zip(*(t.view(-1).split(PIECE) for t in row), strict=True):
                yield [[t] for t in cut]
            continue
        if held[0] and count + size > PIECE:
            yield held
            held, count = [[] for _ in columns], 0
        for column, tensor in zip(held, row, strict=True):
            column.append(tensor)
        count += size
    if held[0]:
        yield held
