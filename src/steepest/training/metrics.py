"""One line of metrics.jsonl: the numbers of a step."""

from __future__ import annotations

from typing import Any

from steepest.training.learner import Update
from steepest.training.loop import Stage


def measured(stage: Stage, update: Update) -> dict[str, Any]:
    """One line of metrics.jsonl."""
    place, optimizer = stage.place, stage.learner.optimizer
    limit = optimizer.max_grad_norm
    values: dict[str, Any] = {
        "step": place.attempt,
        "attempt": place.attempt,
        "committed": update.committed,
        "stage": stage.name,
        "stage_step": place.step,
        "of": stage.steps,
        "loss": update.loss,
        "lr": update.rate,
        "grad_norm": update.norm,
        "clipped": None if limit is None else update.norm > limit,
        "tokens": place.tokens,
        "seconds": round(place.seconds, 4),
        "tokens_per_second": round(place.tokens / place.seconds, 1),
        "step_ms": round(update.seconds[0] * 1e3, 3),
        "eta_seconds": round(place.seconds / place.step * (stage.steps - place.step), 1),
        **update.facts,
    }
    if optimizer.observes and update.committed:
        values |= optimizer.norms()
    if stage.curves[1].step[-1] == place.step:
        values["validation"] = place.last
    return values
