"""What a checkpoint holds, whoever wrote it: all that a conversion needs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor


class Contents(Protocol):
    """A checkpoint, ours or another's. tensors: by group, whole, on the CPU."""

    @property
    def generation(self) -> str: ...
    @property
    def step(self) -> int: ...
    @property
    def tensors(self) -> dict[str, dict[str, Tensor]]: ...
    @property
    def facts(self) -> dict[str, Any]: ...
    @property
    def skipped(self) -> tuple[str, ...]: ...


@dataclass(frozen=True)
class Foreign:
    """A checkpoint that another program wrote; nothing tells whether it is what was meant."""

    generation: str
    step: int
    tensors: dict[str, dict[str, Tensor]]
    facts: dict[str, Any] = field(default_factory=dict)
    skipped: tuple[str, ...] = ()
