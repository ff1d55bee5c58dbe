"""The one training loop: batches in, a curve out."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from steepest.contract import SteepestError
from steepest.optimizer import Optimizer


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


@dataclass(frozen=True, slots=True)
class Progress:
    """One step, for whoever watches: `steps` done of `of`, the last training and validation loss."""

    steps: int
    of: int
    loss: float
    validation: float | None
    lr: float
    tokens_per_second: float


@dataclass(slots=True)
class Validation:
    """The fixed batches that every run of a study is measured on."""

    batches: Sequence[Tensor]
    objective: Callable[[nn.Module, Tensor], tuple[Tensor, dict[str, Any]]]

    def __call__(self, model: nn.Module) -> float:
        """Mean nats per token over all targets, without gradients, in evaluation mode."""
        was_training = model.training
        model.eval()
        total, tokens = 0.0, 0
        with torch.inference_mode():
            for batch in self.batches:
                loss, facts = self.objective(model, batch)
                total += loss.item() * facts["tokens"]
                tokens += facts["tokens"]
        model.train(was_training)
        return total / tokens


@dataclass(slots=True)
class Trained:
    """What a finished loop measured. step_ms and optimizer_ms are medians, the first step left out."""

    curve: Curve
    validation: Curve
    step_ms: float
    optimizer_ms: float


def train(
    model: nn.Module,
    optimizer: Optimizer,
    batch_at: Callable[[int], Tensor],
    objective: Callable[[nn.Module, Tensor], tuple[Tensor, dict[str, Any]]],
    validation: Validation,
    *,
    steps: int,
    evals: int,
    guess: float,
    curves: tuple[Curve, Curve],
    watch: Callable[[Progress], None] | None = None,
) -> Trained:
    """Train for `steps` steps; `curves` (training, validation) fill as it goes and survive a `Diverged`.

    guess: nats per token of a uniform guess; a run that ends above it, and above where it began, diverged.
    The clock counts training only: validation is outside it, and the first step, which allocates and
    warms caches, is counted as long as the second.
    """
    curve, validated = curves
    before = validation(model)
    if not math.isfinite(before):
        raise SteepestError(
            f"the loss is {before} before any training; look at the data and the model, not the optimizer."
        )
    validated.add(0, 0, 0.0, before)
    measured = {round((i + 1) * steps / evals) for i in range(evals)} | {steps}
    durations: list[float] = []
    updates: list[float] = []
    tokens, seconds, last = 0, 0.0, before
    for step in range(1, steps + 1):
        rate = float(optimizer.param_groups[0]["lr"])
        start = time.perf_counter()
        loss, facts = objective(model, batch_at(step - 1))
        loss.backward()
        middle = time.perf_counter()
        try:
            optimizer.step()
        except SteepestError as error:
            raise Diverged(f"step {step}: {error}") from error
        optimizer.zero_grad()
        value = loss.item()
        end = time.perf_counter()
        durations.append(end - start)
        updates.append(end - middle)
        tokens += facts["tokens"]
        if step == 2:
            seconds = end - start
            for own in (curve, validated):
                own.retime(1, seconds)
        seconds += end - start
        curve.add(step, tokens, seconds, value)
        if not math.isfinite(value):
            raise Diverged(f"the loss became {value} at step {step}")
        if step in measured:
            last = validation(model)
            validated.add(step, tokens, seconds, last)
            if not math.isfinite(last):
                raise Diverged(f"the validation loss became {last} at step {step}")
        if watch is not None:
            watch(Progress(step, steps, value, last, rate, tokens / seconds))
    if 2 * optimizer.skipped > steps:
        raise Diverged(f"{optimizer.skipped} of {steps} steps were skipped for gradients that are not finite")
    if last > max(before, guess):
        raise Diverged(
            f"the final validation loss {last:.3f} is above both {before:.3f}, before training, and "
            f"{guess:.3f}, a uniform guess"
        )
    warm = slice(1, None) if steps > 1 else slice(None)
    return Trained(
        curve,
        validated,
        step_ms=statistics.median(durations[warm]) * 1e3,
        optimizer_ms=statistics.median(updates[warm]) * 1e3,
    )
