"""From a config to a finished run: what is loaded, what is built, in which order the seeds are drawn."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from steepest.data import Batches, seed_for, validation_batches
from steepest.models import build_model
from steepest.objectives import get_objective
from steepest.optimizer import Optimizer, decay_groups
from steepest.rules import find_card
from steepest.training.config import RunConfig
from steepest.training.curve import Curve, Diverged, Progress, Trained, Validation
from steepest.training.feeds import Stream, usable_device
from steepest.training.learner import Learner
from steepest.training.loop import Stage, train
from steepest.training.precision import Precision
from steepest.training.text import Text, load_text


def text_of(config: RunConfig, cache: Path | None = None) -> Text:
    """The text a config trains on."""
    return load_text(
        config.data, config.text_key, config.tokenizer, config.model, str(cache) if cache else None
    )


@dataclass
class Run:
    """A run and what it came to. `trained` is None and `reason` says why if it diverged."""

    config: RunConfig
    text: Text
    model: nn.Module
    optimizer: Optimizer
    curves: tuple[Curve, Curve] = field(default_factory=lambda: (Curve(), Curve()))
    trained: Trained | None = None
    reason: str | None = None

    @property
    def final_loss(self) -> float | None:
        """Nats per token on the validation text after the last step."""
        return self.trained.validation.loss[-1] if self.trained else None


def build_optimizer(config: RunConfig, model: nn.Module) -> Optimizer:
    """The config's optimizer over a model: weight decay on matrices only, lr on its schedule."""
    card = find_card(config.optimizer["name"])
    return Optimizer(
        decay_groups(model),
        card.rule,
        lr=config.schedule.build(config.optimizer["lr"], config.steps),
        max_grad_norm=config.clip,
        **{**card.settings, **config.hyper},
    )


def prepare(config: RunConfig, cache: Path | None = None) -> Run:
    """Load and build everything; the config's mistakes come out here, before any training.

    The weights depend on the model and the seed alone, the order of the data on the seed alone, so
    runs that differ only in the optimizer are paired.
    """
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    text = text_of(config, cache)
    model = build_model(
        config.model,
        vocab_size=text.tokenizer.vocab_size,
        context=config.context,
        seed=seed_for(config.seed, "init"),
    ).to(usable_device(config.device))
    return Run(config, text, model, build_optimizer(config, model))


def stage_of(made: Run) -> Stage:
    """A prepared run as the one stage that it is."""
    config, text = made.config, made.text
    batches = Batches(
        text.train, batch=config.batch, length=config.context, seed=seed_for(config.seed, "data")
    )
    held_out = validation_batches(
        text.validation, batch=32, length=config.context, limit=config.validation_windows
    )
    objective = get_objective(config.objective_name, **config.objective_options)
    device = usable_device(config.device)
    precision = Precision(config.precision, device)
    return Stage(
        "",
        Learner(made.model, made.optimizer, objective, seed=config.seed, precision=precision),
        Stream(batches.at, config.accumulate, device),
        Validation([batch.to(device) for batch in held_out], objective),
        steps=config.steps,
        evals=config.evals,
        until=config.until,
        guess=math.log(text.tokenizer.vocab_size),
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
