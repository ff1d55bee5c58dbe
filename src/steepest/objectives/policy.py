"""The clipped policy gradient: one surrogate for GRPO, RLOO and PPO, which differ in their advantages.

A batch is rows as of `completion`, whose targets the policy generated, and, about token t at [:, t]:
"advantages" (B,) or (B, T); "old_logp" (B, T), the log-probabilities the tokens were drawn with;
"reference_logp" (B, T), optional; for PPO also "old_values" and "returns", (B, T).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from steepest.contract import SteepestError
from steepest.objectives.forward import Facts, Reading, fields, read_rows
from steepest.objectives.logprobs import (
    entropy,
    kl_estimate,
    log_probabilities,
    masked_mean,
    mean_of_rows,
)

MEANS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"token": masked_mean, "sequence": mean_of_rows}
"""What the loss is a mean over: every token alike, or every answer alike, whatever its length."""


def policy(
    model: nn.Module,
    batch: Any,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    kl_coef: float = 0.0,
    entropy_coef: float = 0.0,
    normalise: str = "token",
    temperature: float = 1.0,
) -> tuple[Tensor, Facts]:
    """-min(r A, clip(r, 1 - clip_low, 1 + clip_high) A) + kl_coef KL - entropy_coef H, a mean over tokens.

    r is new over old probability of a token and A its advantage. normalise: "token" or "sequence" (a mean of
    the answers' means). The weight is then target tokens, or answers.  temperature: the policy is the model's
    softmax at the temperature that the answers were drawn with.
    Facts: kl (policy || reference; only with a reference), kl_old (old || new), clip_fraction (tokens
    whose gradient the clip has cut off), entropy, ratio.
    Source: arXiv:1707.06347; the KL beside the reward, and "sequence": arXiv:2402.03300 (GRPO); unequal
    clips and "token": arXiv:2503.14476 (DAPO).
    """
    return _surrogate(
        at_temperature(read_rows(model, batch, "policy"), temperature),
        batch,
        clip=(clip_low, clip_high),
        kl_coef=kl_coef,
        entropy_coef=entropy_coef,
        mean=MEANS[normalise],
    )


def ppo(
    model: nn.Module,
    batch: Any,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    kl_coef: float = 0.0,
    entropy_coef: float = 0.0,
    value_coef: float = 0.1,
    value_clip: float = 0.2,
    normalise: str = "token",
    temperature: float = 1.0,
) -> tuple[Tensor, Facts]:
    """`policy`, plus value_coef times half the squared error of the values, by a model with a value head.

    The value of token t is read where the token is chosen, before it is known. It may move by value_clip from
    the old one before the larger of both errors counts.
    Facts: those of `policy`, value_loss, and explained_variance, 1 - var(returns - values) / var(returns) of
    this batch (0 where the returns are all the same).  Source: arXiv:1707.06347, arXiv:1909.08593.
    """
    read = at_temperature(read_rows(model, batch, "policy"), temperature)
    loss, facts = _surrogate(
        read,
        batch,
        clip=(clip_low, clip_high),
        kl_coef=kl_coef,
        entropy_coef=entropy_coef,
        mean=MEANS[normalise],
    )
    values = values_of(read)
    old, returns = (_about(read, batch, name) for name in ("old_values", "returns"))
    clipped = old + (values - old).clamp(-value_clip, value_clip)
    errors = torch.maximum((values - returns).square(), (clipped - returns).square())
    value_loss = MEANS[normalise](errors / 2, read.targets)
    facts["value_loss"] = value_loss.detach()
    facts["explained_variance"] = _explained(values.detach(), returns, read.targets)
    return loss + value_coef * value_loss, facts


def at_temperature(read: Reading, temperature: float) -> Reading:
    """The same with the logits of a softmax at this temperature."""
    return read if temperature == 1.0 else read._replace(logits=read.logits / temperature)


def values_of(read: Reading) -> Tensor:
    """The values (B, T - 1), float32, that stand beside a reading's logits."""
    values = getattr(read.output, "values", None)
    if not isinstance(values, Tensor) or values.shape != read.ids.shape:
        got = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise SteepestError(
            f"ppo needs a model with a value head, whose output has `.values` of shape "
            f"{tuple(read.ids.shape)}, got {got}."
        )
    return values.to(torch.float32)


def _surrogate(
    read: Reading,
    batch: Any,
    *,
    clip: tuple[float, float],
    kl_coef: float,
    entropy_coef: float,
    mean: Callable[[Tensor, Tensor], Tensor],
) -> tuple[Tensor, Facts]:
    (advantages,) = fields(batch, "policy", "advantages")
    if advantages.dim() == 1:
        batch = {**batch, "advantages": advantages[:, None].expand(-1, read.ids.shape[1] + 1)}
    advantages, old_logp = (_about(read, batch, name) for name in ("advantages", "old_logp"))
    # What is no target must not overflow: a gradient of 0 times infinity is not 0.
    logp = torch.where(read.targets, log_probabilities(read.logits, read.ids), 0.0)
    ratio = (logp - old_logp).exp()
    low, high = 1 - clip[0], 1 + clip[1]
    losses = -torch.minimum(ratio * advantages, ratio.clamp(low, high) * advantages)
    cut = ((ratio > high) & (advantages > 0)) | ((ratio < low) & (advantages < 0))
    with torch.set_grad_enabled(torch.is_grad_enabled() and entropy_coef > 0):
        entropies = entropy(read.logits)
    seen = {
        "kl_old": kl_estimate(old_logp, logp),
        "clip_fraction": cut.float(),
        "entropy": entropies,
        "ratio": ratio,
    }
    if "reference_logp" in batch:
        seen["kl"] = kl_estimate(logp, _about(read, batch, "reference_logp"))
    elif kl_coef > 0:
        raise SteepestError(
            "kl_coef above 0 needs reference_logp in the batch; compute it with reference_logprobs, or set "
            "kl_coef: 0."
        )
    if kl_coef > 0:
        losses = losses + kl_coef * seen["kl"]
    if entropy_coef > 0:
        losses = losses - entropy_coef * entropies
    counted = read.targets if mean is masked_mean else read.targets.any(-1)
    facts: Facts = {"tokens": read.tokens, "weight": int(counted.sum())}
    return mean(losses, read.targets), facts | {
        name: mean(x.detach(), read.targets) for name, x in seen.items()
    }


def _about(read: Reading, batch: Any, name: str) -> Tensor:
    """An entry (B, T) of the batch as (B, T - 1), float32: of every token but the first, 0 if no target."""
    (given,) = fields(batch, "policy", name)
    rows, width = read.ids.shape
    if given.shape != (rows, width + 1):
        raise SteepestError(
            f"{name} of a policy batch must have a number for every token, shape {(rows, width + 1)}, "
            f"got {tuple(given.shape)}."
        )
    return torch.where(read.targets, given[:, 1:].to(torch.float32), 0.0)


def _explained(values: Tensor, returns: Tensor, where: Tensor) -> Tensor:
    def variance(x: Tensor) -> Tensor:
        return masked_mean((x - masked_mean(x, where)).square(), where)

    total = variance(returns)
    return torch.where(total > 0, 1 - variance(returns - values) / total, 0.0)
