"""The config's own model and optimizer, made as often as asked, with gradients that are drawn."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from steepest.contract import SteepestError
from steepest.data import seed_for
from steepest.models import build_model
from steepest.objectives import OBJECTIVES
from steepest.optimizer import Optimizer
from steepest.rules import find_card
from steepest.training.config import RunConfig, parse_config
from steepest.training.faults.terms import demand
from steepest.training.sources import load_run_tokenizer

RATE = 1e-3


@dataclass(frozen=True)
class Bench:
    """What a check of the library has at hand. given: the config, as plain values.  folder: to write to."""

    given: Mapping[str, Any]
    folder: Path
    seed: int = 0

    @property
    def config(self) -> RunConfig:
        return parse_config(self.given, "the config")

    @property
    def rule(self) -> str:
        """The name of the config's optimizer."""
        return str(self.config.plan()[0].optimizer["name"])

    def model(self) -> nn.Module:
        """The model, always with the same weights."""
        config = self.config
        kind = OBJECTIVES[config.plan()[0].objective_name].model
        size = load_run_tokenizer(config, self.folder / "cache").vocab_size
        seed = seed_for(config.seed, "init")
        named = kind if kind == "seq2seq" else "causal"
        return build_model(config.model, vocab_size=size, context=config.context, seed=seed, kind=named)

    def optimizer(self, params: Any, rule: str | None = None, **options: Any) -> Optimizer:
        """An optimizer of the config's rule, or of another one, with its usual settings."""
        card = find_card(rule or self.rule)
        return Optimizer(params, card.rule, **{**card.settings, "lr": RATE, **options})

    def give_gradients(self, model: nn.Module, step: int) -> None:
        """The gradients of a step, the same for a parameter of the same name and shape."""
        for name, p in model.named_parameters():
            p.grad = drawn(p.shape, f"{self.seed}/{step}/{name}") if p.requires_grad else None

    def train(self, model: nn.Module, optimizer: Optimizer, first: int, last: int) -> None:
        """Steps `first` to `last`."""
        for step in range(first, last + 1):
            self.give_gradients(model, step)
            optimizer.step()
        optimizer.zero_grad()


def ready(bench: Bench) -> str:
    """That the model can be built in a process of the laboratory."""
    return type(bench.model()).__name__


def drawn(shape: torch.Size, name: str) -> Tensor:
    """Normal numbers that depend on the name alone."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed_for(0, name)))


def sentence(act: Callable[[], object], *words: str) -> str:
    """The sentence of a SteepestError that `act` must raise, and that must hold these words."""
    try:
        found = act()
    except SteepestError as error:
        missing = [word for word in words if word.lower() not in str(error).lower()]
        demand(not missing, f"the sentence {str(error)!r} does not say {', '.join(missing)}")
        return str(error)
    demand(False, f"nothing was refused where {' and '.join(words) or 'something'} is wrong: {found!r}")
    raise AssertionError


def same_weights(one: nn.Module, other: nn.Module, words: str) -> None:
    """Raise `Failed` with these words unless two models are equal to the bit."""
    pairs = zip(one.named_parameters(), other.named_parameters(), strict=True)
    odd = [name for (name, p), (_, q) in pairs if not torch.equal(p, q)]
    demand(not odd, f"{words}: {', '.join(odd[:3])}")
