"""From a config to a finished run: what is loaded, what is built, in which order the seeds are drawn."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from steepest.contract import SteepestError
from steepest.data import (
    Batches,
    Corpus,
    Tokenizer,
    bits_per_byte,
    load_corpus,
    load_tokenizer,
    seed_for,
    validation_batches,
)
from steepest.models import build_model
from steepest.objectives import get_objective
from steepest.optimizer import Optimizer, decay_groups
from steepest.rules import find_card
from steepest.training.config import RunConfig
from steepest.training.loop import Curve, Diverged, Progress, Trained, Validation, train


@dataclass(frozen=True)
class Text:
    """A corpus as tokens, loaded once a process and shared by its runs."""

    corpus: Corpus
    tokenizer: Tokenizer
    train: np.ndarray[Any, Any]
    validation: np.ndarray[Any, Any]

    def bits_per_byte(self, nats_per_token: float) -> float:
        """A loss on the validation split, comparable between tokenizers."""
        return bits_per_byte(nats_per_token, len(self.validation), len(self.corpus.validation))


@lru_cache(maxsize=2)
def load_text(data: str, text_key: str, tokenizer: str, model: str, cache: str | None) -> Text:
    """The corpus of a config in tokens."""
    corpus = load_corpus(data, text_key=text_key)
    folder = model if Path(model).is_dir() else None
    if tokenizer == "model" and folder is None:
        raise SteepestError("tokenizer 'model' needs a model folder; for presets use bytes or bpe:4096.")
    coder = load_tokenizer(tokenizer, corpus, model_path=folder, cache=Path(cache) if cache else None)
    return Text(corpus, coder, coder.encode(corpus.train), coder.encode(corpus.validation))


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
    ).to(_device(config.device))
    torch.manual_seed(seed_for(config.seed, "dropout"))
    return Run(config, text, model, build_optimizer(config, model))


def _device(name: str) -> torch.device:
    """The device of this name, once it is known to hold a tensor."""
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise SteepestError(f"device {name!r} cannot be used ({reason}); use cpu.") from None


def run(
    config: RunConfig, *, cache: Path | None = None, watch: Callable[[Progress], None] | None = None
) -> Run:
    """Train as the config says. A run that diverges returns with its reason; bad input raises."""
    out = prepare(config, cache)
    shape = {"batch": config.batch, "length": config.context}
    batches = Batches(out.text.train, **shape, seed=seed_for(config.seed, "data"))
    held_out = validation_batches(
        out.text.validation, batch=32, length=config.context, limit=config.validation_windows
    )
    objective = get_objective(config.objective)

    def batch_at(step: int) -> Tensor:
        return batches.at(step).to(config.device)

    try:
        out.trained = train(
            out.model,
            out.optimizer,
            batch_at,
            objective,
            Validation([b.to(config.device) for b in held_out], objective),
            steps=config.steps,
            evals=config.evals,
            guess=math.log(out.text.tokenizer.vocab_size),
            curves=out.curves,
            watch=watch,
        )
    except Diverged as diverged:
        out.reason = str(diverged)
    return out
