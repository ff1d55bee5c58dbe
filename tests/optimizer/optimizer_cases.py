"""What the optimizer's tests share: small parameters, seeded gradients, and bitwise snapshots."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Parameter

import steepest

SHAPES = ((4, 3), (3,), (2, 2, 2))
CONSTRUCTORS = ("SGD", "RMSprop", "Adagrad", "Adam", "AdamW", "Adafactor", "LAMB", "LARS", "Lion", "Signum")
WITH_MOMENTUM = {"SGD": {"momentum": 0.9}}
"""Settings under which every constructor keeps some state."""


def parameters(dtype=torch.float64, shapes=SHAPES, seed=0) -> list[Parameter]:
    source = torch.Generator().manual_seed(seed)
    return [Parameter(torch.randn(s, generator=source, dtype=torch.float64).to(dtype)) for s in shapes]


def named(dtype=torch.float64, shapes=SHAPES, seed=0) -> list[tuple[str, Parameter]]:
    return [(f"p{i}", p) for i, p in enumerate(parameters(dtype, shapes, seed))]


def differentiate(params, step: int, scale: float = 1.0) -> None:
    """Gradients that depend on the step and the parameter's place alone."""
    source = torch.Generator().manual_seed(1000 + step)
    for p in params:
        p.grad = (scale * torch.randn(p.shape, generator=source, dtype=torch.float64)).to(p.dtype)


def walk(opt: torch.optim.Optimizer, steps: int, first: int = 0, scheduler: Any = None) -> None:
    for step in range(first, first + steps):
        differentiate(owned(opt), step)
        opt.step()
        if scheduler is not None:
            scheduler.step()


def owned(opt: torch.optim.Optimizer) -> list[Tensor]:
    return [p for group in opt.param_groups for p in group["params"]]


def apart(ours, theirs) -> float:
    """The largest difference between two lists of tensors, relative to the larger value or 1."""
    pairs = list(zip(ours, theirs, strict=True))
    assert pairs
    return max(
        float(((a.detach() - b.detach()).abs() / b.detach().abs().clamp(min=1)).max()) for a, b in pairs
    )


def bits(x: Any) -> Any:
    """Any nest of tensors and values in a form that compares bit for bit, NaN included."""
    if isinstance(x, Tensor):
        flat = x.detach().contiguous().reshape(-1).view(torch.uint8)
        return str(x.dtype), tuple(x.shape), tuple(flat.tolist())
    if isinstance(x, dict):
        return {key: bits(value) for key, value in x.items()}
    return [bits(y) for y in x] if isinstance(x, (list, tuple)) else copy.deepcopy(x)


def snapshot(opt: steepest.Optimizer) -> Any:
    """Everything a step may move: parameters, state, groups, the committed count."""
    state = opt.state_dict()
    for group in state["param_groups"]:
        assert group["steepest"].pop("skipped") == opt.skipped
    return bits([owned(opt), state])


def make(name: str, params: Any, **options: Any) -> steepest.Optimizer:
    return getattr(steepest, name)(params, **{**WITH_MOMENTUM.get(name, {}), **options})


class Tied(nn.Module):
    """An embedding, a linear layer and a norm, with the head tied to the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.proj = nn.Linear(4, 4)
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, 5, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.norm(self.proj(self.embed(tokens))))
