"""Objectives: what a batch asks of a model, as pure functions `(model, batch) -> (loss, facts)`."""

from steepest.objectives.completion import seq2seq, sft
from steepest.objectives.forward import Facts
from steepest.objectives.logprobs import kl_estimate, log_probabilities
from steepest.objectives.next_token import next_token
from steepest.objectives.policy import policy, ppo
from steepest.objectives.preference import dpo, ipo, orpo, reward
from steepest.objectives.reference import reference_logprobs, token_logprobs, token_values
from steepest.objectives.registry import OBJECTIVES, Objective, ObjectiveFn, get_objective

__all__ = [
    "OBJECTIVES",
    "Facts",
    "Objective",
    "ObjectiveFn",
    "dpo",
    "get_objective",
    "ipo",
    "kl_estimate",
    "log_probabilities",
    "next_token",
    "orpo",
    "policy",
    "ppo",
    "reference_logprobs",
    "reward",
    "seq2seq",
    "sft",
    "token_logprobs",
    "token_values",
]
