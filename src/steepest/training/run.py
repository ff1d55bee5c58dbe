"""A flat config as one run with nothing written: what the lab's trials are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from steepest.data import seed_for
from steepest.models import build_model
from steepest.objectives import OBJECTIVES, get_objective
from steepest.optimizer import Optimizer
from steepest.training.config import RunConfig
from steepest.training.curve import Curve, Diverged, Progress, Trained
from steepest.training.feeds import usable_device
from steepest.training.learner import Learner
from steepest.training.loop import Stage, train
from steepest.training.precision import Precision
from steepest.training.recipe import build_optimizer
from steepest.training.sources import Context, Source, open_source
from steepest.training.text import Text, text_of


@dataclass
class Run:
    """A run and what it came to. `trained` is None and `reason` says why if it diverged."""

    config: RunConfig
    text: Text
    source: Source
    model: nn.Module
    optimizer: Optimizer
    curves: tuple[Curve, Curve] = field(default_factory=lambda: (Curve(), Curve()))
    trained: Trained | None = None
    reason: str | None = None

    @property
    def final_loss(self) -> float | None:
        """Nats per token on the validation text after the last step."""
        return self.trained.validation.loss[-1] if self.trained else None


def prepare(config: RunConfig, cache: Path | None = None) -> Run:
    """Load and build everything; the config's mistakes come out here, before any training.

    The weights depend on the model and the seed alone, the order of the data on the seed alone, so
    runs that differ only in the optimizer are paired.
    """
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    text = text_of(config, cache)
    device = usable_device(config.device)
    model = build_model(
        config.model,
        vocab_size=text.tokenizer.vocab_size,
        context=config.context,
        seed=seed_for(config.seed, "init"),
    ).to(device)
    source = open_source(
        config, OBJECTIVES[config.objective_name], Context(config, text.tokenizer, device, cache, {})
    )
    return Run(config, text, source, model, build_optimizer(config, model))


def stage_of(made: Run) -> Stage:
    """A prepared run as the one stage that it is."""
    config = made.config
    learner = Learner(
        made.model,
        made.optimizer,
        get_objective(config.objective_name, **config.objective_options),
        seed=config.seed,
        precision=Precision(config.precision, usable_device(config.device)),
    )
    return Stage(
        "",
        learner,
        made.source.feed(learner),
        made.source.validation(learner),
        steps=config.steps,
        evals=config.evals,
        until=config.until,
        guess=made.source.guess,
        curves=made.curves,
    )


def run(
    config: RunConfig, *, cache: Path | None = None, watch: Callable[[Progress], None] | None = None
) -> Run:
    """Train as a flat config says, with nothing written. A run that diverges returns with its reason; bad
    input raises."""
    out = prepare(config, cache)
    try:
        out.trained = train(stage_of(out), watch=watch)
    except Diverged as diverged:
        out.reason = str(diverged)
    return out
