"""The one training loop: rounds of batches in, a curve out."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from torch import nn

from steepest.contract import SteepestError
from steepest.training.curve import Curve, Diverged, Progress, Trained
from steepest.training.learner import Batch, Learner, Update
from steepest.training.stage_config import Until
from steepest.training.world import Lost


class Feed(Protocol):
    """Where batches come from: a pure function of the position, and of the model where it must write them."""

    def round(self, position: int) -> Sequence[Sequence[Batch]]:
        """The steps of one round, each a list of micro-batches."""
        ...


@dataclass(slots=True)
class Place:
    """How far a stage is: what a checkpoint remembers of the loop beside its curves. Numbers only.

    step: optimizer steps tried in this stage, of which `skipped` were vetoed.  position: rounds read from the
    data, those passed over included.
    tokens, seconds: of training in this stage.  attempt: steps tried in the whole run.
    before: the validation at the start.  last: the latest one.
    """

    step: int = 0
    skipped: int = 0
    position: int = 0
    tokens: int = 0
    seconds: float = 0.0
    attempt: int = 0
    before: float | None = None
    last: float | None = None
    ended: str = ""


@dataclass(slots=True)
class Stage:
    """A stage, built: everything the loop needs.

    validation: of the model, lower is better unless `rising`.  guess: the loss of a uniform guess, if one is
    known: a run that ends above it, and above where it began, diverged.
    skip: positions of the data that are not read (`Place.position`).
    """

    name: str
    learner: Learner
    feed: Feed
    validation: Callable[[nn.Module], float]
    steps: int
    evals: int
    until: Until = field(default_factory=Until)
    guess: float | None = None
    rising: bool = False
    skip: frozenset[int] = frozenset()
    place: Place = field(default_factory=Place)
    curves: tuple[Curve, Curve] = field(default_factory=lambda: (Curve(), Curve()))

    @property
    def model(self) -> nn.Module:
        return self.learner.model


Watch = Callable[[Progress], None]
After = Callable[[Stage, Update], None]
"""Called after every step; what it raises ends the loop."""


def train(
    stage: Stage,
    *,
    watch: Watch | None = None,
    after: After | None = None,
    between: Callable[[Stage], None] | None = None,
) -> Trained:
    """Train a stage from its place to its end; its curves fill as it goes and survive a `Diverged`.

    between: called after every round, when a checkpoint can be taken.
    The clock counts training only: validation is outside it, and the first step, which allocates and
    warms caches, is counted as long as the second.
    """
    place, learner = stage.place, stage.learner
    curve, validated = stage.curves
    if place.before is None:
        place.before = place.last = stage.validation(stage.model)
        if not math.isfinite(place.before):
            raise SteepestError(
                f"the loss is {place.before} before any training; look at the data and the model, not the "
                "optimizer."
            )
        validated.add(0, 0, 0.0, place.before)
    measured = {round((i + 1) * stage.steps / stage.evals) for i in range(stage.evals)} | {stage.steps}
    durations: list[tuple[float, float]] = []
    while place.step < stage.steps and not place.ended:
        while place.position in stage.skip:
            place.position += 1
        steps = stage.feed.round(place.position)
        for micro in steps:
            try:
                update = learner.update(micro, place.attempt)
            except Lost:
                raise
            except SteepestError as error:
                raise Diverged(f"step {place.step + 1}: {error}") from error
            update = _with_facts(update, stage.feed)
            place.step, place.attempt = place.step + 1, place.attempt + 1
            durations.append(update.seconds)
            _count(stage, update)
            if place.step in measured:
                _validate(stage)
            if after is not None:
                after(stage, update)
            if watch is not None:
                rate = place.tokens / place.seconds
                watch(
                    Progress(
                        *(place.step, stage.steps, update.loss, place.last, update.rate, rate),
                        *(stage.name, update.facts),
                    )
                )
            if place.step >= stage.steps:
                break
        place.position += 1
        place.ended = place.ended or _reached(stage)
        if between is not None:
            between(stage)
    if validated.step[-1] != place.step:
        _validate(stage)
    _check_end(stage)
    warm = durations[1:] or durations or [(0.0, 0.0)]
    return Trained(
        curve,
        validated,
        step_ms=statistics.median(whole for whole, _ in warm) * 1e3,
        optimizer_ms=statistics.median(own for _, own in warm) * 1e3,
    )


def _with_facts(update: Update, feed: Feed) -> Update:
    """What the feed knows of its round (rewards, lengths), beside what the objective says."""
    facts = getattr(feed, "facts", None)
    return replace(update, facts={**update.facts, **facts}) if facts else update


def _count(stage: Stage, update: Update) -> None:
    """Add a step to the place and to the curve."""
    place, seconds = stage.place, update.seconds[0]
    place.tokens += update.tokens
    place.skipped += not update.committed
    if place.step == 2:
        place.seconds = seconds
        for own in stage.curves:
            own.retime(1, seconds)
    place.seconds += seconds
    stage.curves[0].add(place.step, place.tokens, place.seconds, update.loss)


def _validate(stage: Stage) -> None:
    place = stage.place
    place.last = stage.validation(stage.model)
    stage.curves[1].add(place.step, place.tokens, place.seconds, place.last)
    if not math.isfinite(place.last):
        raise Diverged(f"the validation became {place.last} at step {place.step}")


def _reached(stage: Stage) -> str:
    """Why the stage ends here, before its last step; empty if it does not."""
    place, until = stage.place, stage.until
    last = place.last if place.last is not None else math.nan
    if until.tokens is not None and place.tokens >= until.tokens:
        return f"{place.tokens:,} tokens"
    if until.minutes is not None and stage.learner.world.share(place.seconds >= 60 * until.minutes):
        return f"{until.minutes:g} minutes"
    if until.loss is not None and not stage.rising and last <= until.loss:
        return f"validation loss {last:.4f}"
    if until.reward is not None and stage.rising and last >= until.reward:
        return f"validation reward {last:.4f}"
    return ""


def _check_end(stage: Stage) -> None:
    """A run that ends in a bad place has diverged, even if every number is finite."""
    place = stage.place
    if 2 * place.skipped > place.step:
        raise Diverged(
            f"{place.skipped} of {place.step} steps were skipped: their loss or gradients are not finite"
        )
    before, last = place.before, place.last
    if stage.guess is None or before is None or last is None:
        return
    if last > max(before, stage.guess):
        raise Diverged(
            f"the final validation loss {last:.3f} is above both {before:.3f}, before training, and "
            f"{stage.guess:.3f}, a uniform guess"
        )
