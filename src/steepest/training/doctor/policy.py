"""Causes that only reinforcement learning has."""

from __future__ import annotations

import numpy as np

from steepest.training.doctor.causes import Cause
from steepest.training.doctor.series import Column, Series, smooth

ENOUGH = 20
"""Rows below which nothing is said of a policy."""


def _quarters(column: Column) -> list[float]:
    return [float(np.median(column.part(i / 4, (i + 1) / 4))) for i in range(4)]


def _gain(reward: Column) -> float:
    """Rise of the reward from the first to the last quarter, in deviations of their difference."""
    quarters = _quarters(reward)
    return (quarters[3] - quarters[0]) / max(reward.noise * (8 / len(reward)) ** 0.5, 1e-12)


def collapse(s: Series) -> Cause | None:
    """The reward fell from where it had been."""
    reward = s.get("reward")
    if len(reward) < ENOUGH:
        return None
    trend = smooth(reward.values, max(1, len(reward) // 10))
    best = int(np.argmax(trend))
    fall = float(trend[best] - np.median(trend[-2:]))
    calm = reward.noise / (len(reward) / len(trend)) ** 0.5
    if best >= len(trend) - 2 or fall <= max(5 * calm, 0.1 * abs(float(trend[best])), 1e-6):
        return None
    at = int(reward.steps[min(len(reward) - 1, best * (len(reward) // len(trend)))])
    return Cause(
        "the reward collapsed",
        "perhaps",
        "act",
        (f"the mean reward was {trend[best]:.3g} near step {at:,} and is {trend[-1]:.3g}",),
        s.line("lr", s.peak / 3) if s.peak else "divide the learning rate by 3",
        (at,),
    )


def stuck(s: Series) -> Cause | None:
    """The reward is where it began."""
    reward = s.get("reward")
    if len(reward) < 2 * ENOUGH or abs(_gain(reward)) > 3:
        return None
    quarters = _quarters(reward)
    return Cause(
        "the reward does not rise",
        "perhaps",
        "warn",
        (f"the mean reward was {quarters[0]:.3g} in the first quarter and is {quarters[3]:.3g} in the last",),
        "sample more answers to a prompt and look at them: without a right one among them nothing can "
        "be learned; then " + s.line("lr", s.peak * 2),
        (int(reward.steps[-1]),),
    )


def too_far(s: Series) -> Cause | None:
    """One update changes the policy more than the clipped objective is made for."""
    clips, moved = s.get("clip_fraction"), s.get("kl_old")
    clip = _quarters(clips)[3] if len(clips) >= 8 else 0.0
    kl = _quarters(moved)[3] if len(moved) >= 8 else 0.0
    said = []
    if clip > 0.3:
        said.append(
            f"{clip:.0%} of the tokens are clipped in the last quarter of the steps; below 20% is usual"
        )
    if kl > 0.05:
        said.append(f"KL(old || new) of one update is {kl:.2g}; below 0.02 is usual")
    if not said:
        return None
    return Cause(
        "the policy moves too far in one update",
        "yes",
        "act" if len(said) == 2 else "warn",
        tuple(said),
        f"{s.line('lr', s.peak / 1.5)}, or {s.line('updates', 1)}",
        (s.last,),
    )


def drift(s: Series) -> Cause | None:
    """The policy leaves its reference faster and faster."""
    kl = s.get("kl")
    if len(kl) < ENOUGH:
        return None
    quarters = _quarters(kl)
    if quarters[3] < 0.5 or quarters[3] < 2 * quarters[2]:
        return None
    return Cause(
        "the policy drifts from its reference",
        "perhaps",
        "warn",
        (
            f"KL(policy || reference) doubled in the last quarter of the steps, from {quarters[2]:.3g} to "
            f"{quarters[3]:.3g}",
        ),
        f"{s.line('kl', 0.05)}, or {s.line('lr', s.peak / 2)}",
        (s.last,),
    )


def entropy(s: Series) -> Cause | None:
    """The policy has stopped trying anything else, and is not the better for it."""
    found = s.get("entropy")
    if len(found) < ENOUGH:
        return None
    start, end = float(np.median(found.part(0, 0.1))), float(np.median(found.part(0.75, 1)))
    if start <= 0 or end > 0.2 * start:
        return None
    reward = s.get("reward")
    earned = len(reward) >= ENOUGH and _gain(reward) > 3
    return Cause(
        "the policy's entropy collapsed",
        "perhaps",
        "note" if earned else "warn",
        (
            f"entropy fell from {start:.3g} to {end:.3g} nats a token"
            + ("; the reward rose with it" if earned else ", and the reward did not rise"),
        ),
        f"{s.line('entropy', 0.01)}, or {s.line('lr', s.peak / 2)}",
        (int(found.steps[-1]),),
    )


def no_contrast(s: Series) -> Cause | None:
    """All answers to a prompt get the same reward, so that there is nothing to learn from them."""
    zero = s.get("zero_variance_groups")
    if len(zero) < 8:
        return None
    share = _quarters(zero)[3]
    if share <= 0.5:
        return None
    reward = s.get("reward")
    level = float(np.median(reward.part(0.75, 1))) if len(reward) else float("nan")
    return Cause(
        "most groups of answers have one and the same reward",
        "no",
        "warn",
        (f"{share:.0%} of the groups in the last quarter; the mean reward there is {level:.3g}",),
        f"prompts that are neither solved nor hopeless, or {s.line('group', 16)}",
        (s.last,),
    )


def hacking(s: Series) -> Cause | None:
    """The reward in training rises and the one held out falls, while the policy leaves its reference."""
    reward, held, kl = s.get("reward"), s.get("validation"), s.get("kl")
    if len(reward) < ENOUGH or len(held) < 4 or _gain(reward) < 3:
        return None
    best = int(np.argmax(held.values))
    fall = float(held.values[best] - np.median(held.values[-2:]))
    if best >= len(held) - 2 or fall < max(0.1 * float(np.ptp(held.values)), 3 * held.noise, 1e-6):
        return None
    quarters = _quarters(kl) if len(kl) >= ENOUGH else [0.0] * 4
    away = quarters[3] > 1.5 * quarters[1]
    at = int(held.steps[best])
    said = [
        f"the reward rose, and validation fell from {held.values[best]:.3g} at step {at:,} to "
        f"{held.values[-1]:.3g}"
    ]
    if away:
        said.append(f"KL(policy || reference) rose from {quarters[1]:.3g} to {quarters[3]:.3g}")
    return Cause(
        "the reward is being gamed",
        "no",
        "act" if away else "warn",
        tuple(said),
        f"{s.line('steps', at)}, {s.line('kl', 0.05)}, and read some answers: what does the reward pay for?",
        (at,),
    )
