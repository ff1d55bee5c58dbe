"""Number formats of the forward pass, and the loss scale that float16 needs."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from steepest.contract import SteepestError

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(slots=True)
class LossScale:
    """A loss scale that doubles after `patience` committed steps and halves at every overflow.

    Losses are multiplied by `value` before the backward pass; the optimizer divides by it in its own pass.
    """

    value: float = 2.0**16
    patience: int = 2000
    clean: int = 0

    def observe(self, committed: bool) -> None:
        self.clean = self.clean + 1 if committed else 0
        if not committed:
            self.value = max(self.value / 2, 1.0)
        elif self.clean == self.patience:
            self.value, self.clean = min(self.value * 2, 2.0**24), 0


class Precision:
    """fp32; bf16 and fp16: autocast over float32 weights; pure_bf16: bfloat16 weights, no autocast."""

    def __init__(self, name: str, device: torch.device) -> None:
        self.name, self.device = name, device
        self.scale = LossScale() if name == "fp16" else None

    def cast(self, model: nn.Module) -> nn.Module:
        """The model in the type its weights have."""
        return model.to(torch.bfloat16) if self.name == "pure_bf16" else model

    def region(self) -> AbstractContextManager[Any]:
        """Around every forward pass."""
        if self.name not in AUTOCAST:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=AUTOCAST[self.name])

    def state(self) -> dict[str, Any]:
        return asdict(self.scale) if self.scale else {}

    def load(self, state: dict[str, Any]) -> None:
        """Take over what was saved; a scale that is missing raises, as a new one would be another run's."""
        if self.scale is None:
            return
        if set(state) != set(asdict(self.scale)):
            raise SteepestError(
                "the save holds no loss scale, and float16 cannot go on without the one it had; go back to "
                "an earlier generation."
            )
        self.scale = LossScale(**state)
