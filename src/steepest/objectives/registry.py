"""Objectives by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, Literal

from torch import Tensor, nn

from steepest.contract import Hyper, unknown
from steepest.objectives.completion import seq2seq, sft
from steepest.objectives.forward import Facts
from steepest.objectives.next_token import next_token
from steepest.objectives.policy import MEANS, policy, ppo
from steepest.objectives.preference import dpo, ipo, orpo, reward

ObjectiveFn = Callable[[nn.Module, Any], tuple[Tensor, Facts]]
"""A pure function of a model and a batch: the loss to descend (a scalar), and facts to log about it."""


@dataclass(frozen=True)
class Objective:
    """An objective, and what it needs.

    batch:   the kind of batch it reads, as the modules of this room describe them.
    model:   logits (causal, seq2seq), one score a row (scored), or logits and values (valued).
    options: its keyword arguments, with their defaults and the values they may have.
    advantages: of a policy gradient, the kind it was named for: "grpo", "rloo" or "gae".
    """

    name: str
    function: Callable[..., tuple[Tensor, Facts]]
    batch: Literal["text", "completion", "seq2seq", "preference", "policy"]
    model: Literal["causal", "seq2seq", "scored", "valued"]
    options: Mapping[str, Hyper]
    advantages: str = ""


_RANGES: Mapping[str, Mapping[str, Any]] = {
    "beta": {"low": 1e-6},
    "label_smoothing": {"low": 0.0, "high": 0.5, "open_high": True},
    "reference": {"choices": ("cached", "none")},
    "clip_low": {"low": 0.0, "high": 1.0},
    "clip_high": {"low": 0.0},
    "kl_coef": {"low": 0.0},
    "entropy_coef": {"low": 0.0},
    "value_coef": {"low": 0.0},
    "value_clip": {"low": 0.0},
    "normalise": {"choices": tuple(MEANS)},
    "temperature": {"low": 1e-3},
}
"""What an option may be, whichever objective has it; the default stands in the function's signature."""


def _declare(
    function: Callable[..., Any], batch: Any, model: Any, name: str = "", advantages: str = ""
) -> Objective:
    arguments = inspect.signature(function).parameters.values()
    options = {a.name: Hyper(a.default, **_RANGES[a.name]) for a in arguments if a.kind is a.KEYWORD_ONLY}
    return Objective(name or function.__name__, function, batch, model, MappingProxyType(options), advantages)


OBJECTIVES: Mapping[str, Objective] = MappingProxyType(
    {
        objective.name: objective
        for objective in (
            _declare(next_token, "text", "causal"),
            _declare(sft, "completion", "causal"),
            _declare(seq2seq, "seq2seq", "seq2seq"),
            _declare(dpo, "preference", "causal"),
            _declare(ipo, "preference", "causal"),
            _declare(orpo, "preference", "causal"),
            _declare(reward, "preference", "scored"),
            _declare(policy, "policy", "causal", "grpo", "grpo"),
            _declare(policy, "policy", "causal", "rloo", "rloo"),
            _declare(ppo, "policy", "valued", "ppo", "gae"),
        )
    }
)


def get_objective(name: str, **options: Any) -> ObjectiveFn:
    """The objective of this name with these options, the others at their defaults.

    SteepestError offers the nearest one for an unknown name or option, and states the range of a value.
    """
    if name not in OBJECTIVES:
        raise unknown("objective", name, OBJECTIVES)
    objective = OBJECTIVES[name]
    for option, value in options.items():
        if option not in objective.options:
            raise unknown(f"option of {name}", option, objective.options)
        objective.options[option].check(option, value, f"objective {name}")
    return partial(objective.function, **options) if options else objective.function
