"""Preferences between two answers: DPO, IPO and ORPO on a policy, Bradley-Terry on a reward model.

A batch is {"chosen": rows, "rejected": rows}, rows as of `completion`, and what the objective names. Its
weight is the number of pairs.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from steepest.contract import SteepestError
from steepest.objectives.forward import Facts, fields, read_rows, rows
from steepest.objectives.logprobs import log_probabilities, masked_sum


class Pairs(NamedTuple):
    """Summed log-probabilities of the targets of both answers, how many they are (at least 1), all (B,), and
    the tokens read."""

    chosen: Tensor
    rejected: Tensor
    chosen_length: Tensor
    rejected_length: Tensor
    tokens: int


def dpo(
    model: nn.Module,
    batch: Any,
    *,
    beta: float = 0.1,
    label_smoothing: float = 0.0,
    reference: str = "cached",
) -> tuple[Tensor, Facts]:
    """-log sigmoid(beta h), where h = log(policy / reference) of the chosen answer minus the rejected.

    label_smoothing: the share of pairs taken to be labelled the wrong way round (cDPO).
    reference: "cached": the batch holds `reference_chosen` and `reference_rejected`, (B,), as
               `reference_logprobs` computes them; "none": a uniform reference, which cancels.
    Facts: chosen_reward and rejected_reward (beta times the log ratios), margin, accuracy, chosen_logp,
    rejected_logp.  Source: arXiv:2305.18290; the smoothing: ericmitchell.ai/cdpo.pdf.
    """
    pairs = read_pairs(model, batch)
    chosen, rejected = _log_ratios(pairs, batch, "dpo", reference)
    logits = beta * (chosen - rejected)
    loss = -(1 - label_smoothing) * F.logsigmoid(logits) - label_smoothing * F.logsigmoid(-logits)
    return loss.mean(), _facts(pairs, beta * chosen, beta * rejected)


def ipo(
    model: nn.Module, batch: Any, *, beta: float = 0.1, reference: str = "cached"
) -> tuple[Tensor, Facts]:
    """(h - 1 / (2 beta))^2, where h is that of `dpo` with log ratios per token.

    Source: arXiv:2310.12036; its authors take the mean over an answer's tokens, not the sum. Facts and
    `reference` as for `dpo`.
    """
    pairs = read_pairs(model, batch)
    chosen, rejected = _log_ratios(pairs, batch, "ipo", reference)
    chosen, rejected = chosen / pairs.chosen_length, rejected / pairs.rejected_length
    loss = (chosen - rejected - 1 / (2 * beta)).square()
    return loss.mean(), _facts(pairs, beta * chosen, beta * rejected)


def orpo(model: nn.Module, batch: Any, *, beta: float = 0.1) -> tuple[Tensor, Facts]:
    """Cross-entropy per token of the chosen answer, minus beta log sigmoid(log odds ratio of the answers).

    Needs no reference: an answer's odds are p / (1 - p), p the geometric mean of its tokens' probabilities.
    Facts: as for `dpo`, and nll, the first term.  Source: arXiv:2403.07691.
    """
    pairs = read_pairs(model, batch)
    chosen, rejected = pairs.chosen / pairs.chosen_length, pairs.rejected / pairs.rejected_length
    loss = -chosen - beta * F.logsigmoid(_log_odds(chosen) - _log_odds(rejected))
    return loss.mean(), {**_facts(pairs, beta * chosen, beta * rejected), "nll": -chosen.detach().mean()}


def reward(model: nn.Module, batch: Any) -> tuple[Tensor, Facts]:
    """-log sigmoid(r(chosen) - r(rejected) - margin): Bradley-Terry.

    model: (ids (B, T), mask (B, T)) to scores (B,).  batch: also `margin`, (B,), if the pairs have any.
    Facts: accuracy, score (mean of both answers), margin (mean difference).
    Source: arXiv:1909.08593; the margin: arXiv:2307.09288.
    """
    ids, mask, _, tokens = _join(batch)
    scores = model(ids, mask)
    if not isinstance(scores, Tensor) or scores.shape != ids.shape[:1]:
        got = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise SteepestError(f"a reward model must return one score a row, shape ({len(ids)},), got {got}.")
    chosen, rejected = scores.to(torch.float32).chunk(2)
    difference = chosen - rejected
    loss = -F.logsigmoid(difference - batch.get("margin", 0.0)).mean()
    return loss, {
        "tokens": tokens,
        "weight": len(chosen),
        "accuracy": (difference > 0).float().mean(),
        "score": scores.detach().float().mean(),
        "margin": difference.detach().mean(),
    }


def read_pairs(model: nn.Module, batch: Any) -> Pairs:
    """Both answers of every pair through a causal model, in one pass."""
    ids, mask, targets, tokens = _join(batch)
    read = read_rows(model, {"ids": ids, "mask": mask, "targets": targets}, "preference")
    chosen, rejected = masked_sum(log_probabilities(read.logits, read.ids), read.targets).chunk(2)
    chosen_length, rejected_length = read.targets.sum(-1).clamp(min=1).chunk(2)
    return Pairs(chosen, rejected, chosen_length, rejected_length, tokens)


def _join(batch: Any) -> tuple[Tensor, Tensor, Tensor, int]:
    """Ids, mask and targets (2B, T) of the chosen rows and, below them, the rejected; and the real tokens."""
    sides = [rows(side, "preference") for side in fields(batch, "preference", "chosen", "rejected")]
    if len(sides[0][0]) != len(sides[1][0]):
        raise SteepestError(
            f"a preference batch has as many chosen as rejected rows, got {len(sides[0][0])} and "
            f"{len(sides[1][0])}."
        )
    width = max(ids.shape[1] for ids, _, _ in sides)
    ids, mask, targets = (
        torch.cat([F.pad(x, (0, width - x.shape[1])) for x in both]) for both in zip(*sides, strict=True)
    )
    return ids, mask, targets, int(mask.sum())


def _log_ratios(pairs: Pairs, batch: Any, kind: str, reference: str) -> tuple[Tensor, Tensor]:
    """log(policy / reference) of the chosen and of the rejected answers."""
    if reference == "none":
        return pairs.chosen, pairs.rejected
    if "reference_chosen" not in batch or "reference_rejected" not in batch:
        raise SteepestError(
            f"{kind} with a cached reference needs reference_chosen and reference_rejected in the batch; "
            "compute them with reference_logprobs, or set reference: none."
        )
    return pairs.chosen - batch["reference_chosen"], pairs.rejected - batch["reference_rejected"]


def _log_odds(logp: Tensor) -> Tensor:
    """log(p / (1 - p)); a certain answer (or an empty one) is held below 1, where the odds are infinite."""
    logp = logp.clamp(max=-1e-6)
    return logp - torch.log(-torch.expm1(logp))


def _facts(pairs: Pairs, chosen_reward: Tensor, rejected_reward: Tensor) -> Facts:
    chosen, rejected = chosen_reward.detach(), rejected_reward.detach()
    return {
        "tokens": pairs.tokens,
        "weight": len(chosen),
        "chosen_reward": chosen.mean(),
        "rejected_reward": rejected.mean(),
        "margin": (chosen - rejected).mean(),
        "accuracy": (chosen > rejected).float().mean(),
        "chosen_logp": pairs.chosen.detach().mean(),
        "rejected_logp": pairs.rejected.detach().mean(),
    }
