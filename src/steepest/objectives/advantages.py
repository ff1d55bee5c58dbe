"""Advantages: how much better an answer, or a token, was than expected. Pure functions of rewards.

Groups are answers to the same prompt: `group` of them, at least two, one after another in rewards (B,).
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from steepest.contract import AddUp, SteepestError
from steepest.objectives.logprobs import masked_mean


def grpo(rewards: Tensor, group: int, *, scale: bool = True) -> Tensor:
    """Each reward minus its group's mean, divided by the group's standard deviation if `scale`; (B,).

    The deviation is the sample's (group - 1), and 1e-4 is added to it. A group whose rewards are all the same
    gets zeros.  Source: arXiv:2402.03300; without the scale: arXiv:2503.20783.
    """
    groups = _grouped(rewards, group)
    # A mean rounds, and rewards that are all the same would be found to differ from it.
    centred = torch.where(_same(groups), 0.0, groups - groups.mean(1, keepdim=True))
    return (centred / (groups.std(1, keepdim=True) + 1e-4) if scale else centred).flatten()


def rloo(rewards: Tensor, group: int) -> Tensor:
    """Each reward minus the mean of the others of its group; (B,).  Source: arXiv:2402.14740."""
    return grpo(rewards, group, scale=False) * (group / (group - 1))


def zero_variance(rewards: Tensor, group: int) -> int:
    """How many groups have one and the same reward throughout, and so teach nothing."""
    return int(_same(_grouped(rewards, group)).sum())


def gae(
    rewards: Tensor, values: Tensor, targets: Tensor, *, discount: float = 1.0, gae_lambda: float = 0.95
) -> tuple[Tensor, Tensor]:
    """Advantages and returns of every target token; all (B, T), 0 where a token is no target.

    rewards: of each token, with whatever penalty is in them.  values: expected before each token is chosen.
    After a row's last target comes nothing: an answer cut off by its length counts as ended.
    Source: generalised advantage estimation, arXiv:1506.02438.
    """
    if not rewards.shape == values.shape == targets.shape or rewards.dim() != 2:
        raise SteepestError(
            "rewards, values and targets must have one shape (rows, tokens), got "
            f"{tuple(rewards.shape)}, {tuple(values.shape)}, {tuple(targets.shape)}."
        )
    advantages = torch.zeros_like(values)
    running = following = torch.zeros_like(values[:, 0])
    for t in reversed(range(values.shape[1])):
        here = targets[:, t]
        surprise = rewards[:, t] + discount * following - values[:, t]
        running = torch.where(here, surprise + discount * gae_lambda * running, running)
        following = torch.where(here, values[:, t], following)
        advantages[:, t] = torch.where(here, running, 0.0)
    return advantages, torch.where(targets, advantages + values, 0.0)


def whiten(x: Tensor, targets: Tensor, add_up: AddUp | None = None) -> Tensor:
    """x shifted and scaled to mean 0 and standard deviation 1 over the targets; 0 elsewhere.

    add_up: adds up over all who hold other rows of the same batch; None where they are all here.
    """
    mean = partial(_mean_of_all, add_up=add_up) if add_up else masked_mean
    centred = x - mean(x, targets)
    deviation = mean(centred.square(), targets).sqrt()
    return torch.where(targets, centred / (deviation + 1e-8), 0.0)


def _mean_of_all(x: Tensor, where: Tensor, add_up: AddUp) -> Tensor:
    """`masked_mean` over rows of which only some are here."""
    sums = torch.stack([torch.where(where, x, 0.0).sum(), where.sum()]).double()
    add_up(sums)
    return (sums[0] / sums[1].clamp(min=1)).to(x.dtype)


def _grouped(rewards: Tensor, group: int) -> Tensor:
    """Rewards (B,) as (B / group, group)."""
    if group < 2 or rewards.dim() != 1 or len(rewards) % group:
        raise SteepestError(
            f"rewards must be one row of whole groups of at least 2 answers to a prompt; got shape "
            f"{tuple(rewards.shape)} and groups of {group}."
        )
    return rewards.view(-1, group)


def _same(groups: Tensor) -> Tensor:
    """Whether all rewards of a group are the same, (groups, 1)."""
    return (groups == groups[:, :1]).all(1, keepdim=True)
