"""What a run measures as it goes: losses by step, and what a watcher is told."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from steepest.training.feeds import asking, measured_rows
from steepest.training.world import ALONE, World


class Diverged(Exception):
    """The run cannot go on: its loss or its gradients are no longer finite. Its text says when and what."""


@dataclass(slots=True)
class Curve:
    """Losses (nats per token) by step; tokens and seconds of training so far at each."""

    step: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)

    def add(self, step: int, tokens: int, seconds: float, loss: float) -> None:
        self.step.append(step)
        self.tokens.append(tokens)
        self.seconds.append(round(seconds, 6))
        self.loss.append(loss)

    def retime(self, step: int, seconds: float) -> None:
        """Say otherwise how long it took to this step, if it is there."""
        if step in self.step:
            self.seconds[self.step.index(step)] = round(seconds, 6)

    def tensors(self) -> dict[str, Tensor]:
        """Its columns: steps and tokens as int64, seconds and losses as float64."""
        return {
            "step": torch.tensor(self.step, dtype=torch.int64),
            "tokens": torch.tensor(self.tokens, dtype=torch.int64),
            "seconds": torch.tensor(self.seconds, dtype=torch.float64),
            "loss": torch.tensor(self.loss, dtype=torch.float64),
        }

    @classmethod
    def of(cls, columns: Mapping[str, Tensor]) -> Curve:
        """What `tensors` was made of."""
        return cls(**{name: column.tolist() for name, column in columns.items()})


@dataclass(frozen=True, slots=True)
class Progress:
    """One step, for whoever watches: `steps` done of `of` in stage `stage`, the last training and validation
    loss, and the facts of the objective."""

    steps: int
    of: int
    loss: float
    validation: float | None
    lr: float
    tokens_per_second: float
    stage: str = ""
    facts: Mapping[str, float] = field(default_factory=dict)


@dataclass(slots=True)
class Validation:
    """The fixed batches that every run of a study is measured on; every rank reads its rows of them."""

    batches: Sequence[Any]
    objective: Callable[[nn.Module, Any], tuple[Any, Mapping[str, Any]]]
    world: World = ALONE

    def __call__(self, model: nn.Module) -> float:
        """Mean loss over the weight of all batches (nats a target token), without gradients, in evaluation
        mode."""
        was_training = model.training
        model.eval()
        total, weight = 0.0, 0.0
        with asking(self.world):
            for batch in self.batches:
                rows, counts = measured_rows(batch, self.world)
                loss, facts = self.objective(model, rows)
                if counts:
                    own = float(facts.get("weight", facts["tokens"]))
                    total += loss.item() * own
                    weight += own
        model.train(was_training)
        total, weight = self.world.sum([total, weight]).tolist()
        return total / weight


@dataclass(slots=True)
class Trained:
    """What a finished loop measured. step_ms and optimizer_ms are medians, the first step left out."""

    curve: Curve
    validation: Curve
    step_ms: float
    optimizer_ms: float
