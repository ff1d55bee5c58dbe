"""Causes that show in the loss: the learning rate, its warm-up, spikes, and a loss that does not move."""

from __future__ import annotations

import numpy as np

from steepest.training.doctor.causes import Cause, Level, counted, listed
from steepest.training.doctor.series import Column, Series, noise, smooth
from steepest.training.doctor.spikes import Spike, find_spikes

ENOUGH = 24
"""Rows of loss below which nothing is said of its course."""
REACH = 0.35
"""By what part of their norm all steps together could move weights that are hardly trained: good runs from
fresh weights come to once or twice their norm, those at a tenth of the best rate to a fifth or a third."""


def too_high(s: Series) -> Cause | None:
    """Signs of steps that are too long; none of them is enough alone but a loss that rises.

    In a run whose rate is ten times too high the loss usually does not rise: it stands still until the rate
    decays, the updates are large for the weights, and the weights grow.
    """
    first, last = s.high
    loss = s.loss.between(first, last)
    if len(loss) < ENOUGH:
        return None
    rise, grown = _rise(s, loss), _grown(s)
    signs = [rise, _stall(s, loss), _swing(s, loss), _large(s), grown, _growth(s, first, last)]
    signs = [sign for sign in signs if sign]
    blind = not len(s.ratio) and bool(signs)
    if len(signs) < 2 and not rise and not blind:
        return None
    # Weights that have grown make the same step a smaller part of them: either is enough.
    far = bool(grown) and (_ratio(s) > 1.5e-2 or _factor(s) > 3)
    sure = len(signs) > 2 or bool(rise and len(signs) == 2) or far
    return Cause(
        "the learning rate is too high",
        "yes" if sure else "perhaps",
        "act" if sure else "warn",
        tuple(signs),
        s.line("lr", s.peak / 3) if s.peak else "divide the learning rate by 3",
        (first, last),
    )


def _rise(s: Series, loss: Column) -> str:
    """The loss ends its stretch of high rates above where it had been."""
    width = max(1, len(loss) // 16)
    trend = smooth(loss.values, width)
    low = int(np.argmin(trend))
    rise = float(np.median(trend[-4:]) - trend[low])
    fall = max(float(s.loss.values[0] - trend[low]), abs(float(trend[low])))
    if low >= len(trend) - 4 or rise < max(5 * loss.noise / width**0.5, 0.05 * fall):
        return ""
    where = int(loss.steps[min(len(loss) - 1, low * width)])
    return (
        f"the loss was {trend[low]:.4g} near step {where:,} and {trend[low] + rise:.4g} at step "
        f"{int(loss.steps[-1]):,}, with the rate still high ({s.line('lr', s.peak)} at its peak)"
    )


def _stall(s: Series, loss: Column) -> str:
    """The loss stands still at high rates and falls when they decay. Updates of an ordinary size are no
    reason for that."""
    if len(s.ratio) and _ratio(s) < 5e-3:
        return ""
    start, middle = float(np.median(loss.part(0, 0.1))), float(np.median(loss.part(0.45, 0.55)))
    end = float(np.median(s.loss.part(0.95, 1)))
    later = middle - end
    calm = loss.noise / (0.1 * len(loss)) ** 0.5
    if s.last <= s.high[1] or later < max(5 * calm, 0.05 * abs(middle)) or start - middle > 0.25 * later:
        return ""
    return (
        f"the loss hardly moved at the peak rate, from {start:.4g} to {middle:.4g} by step "
        f"{int(loss.steps[len(loss) // 2]):,}, and fell to {end:.4g} as the rate decayed"
    )


def _grown(s: Series) -> str:
    """The weights became several times as large."""
    factor = _factor(s)
    return f"the norm of the weights grew {factor:.1f} times" if factor > 2 and _large(s) else ""


def _factor(s: Series) -> float:
    """The norm of the weights at the end, by that at the start; 0 if it is not known."""
    norm = s.get("param_norm")
    return float(norm.values[-1] / max(float(norm.values[0]), 1e-30)) if len(norm) else 0.0


def _swing(s: Series, loss: Column) -> str:
    """The loss swings far more at the peak than after it, on the same data."""
    after = s.loss.values[s.loss.steps > s.high[1]]
    quiet = noise(after[len(after) // 2 :])
    if len(after) < 2 * ENOUGH or not quiet or loss.noise < 4 * quiet:
        return ""
    return (
        f"the loss swings {loss.noise / quiet:.1f} times as wide at the peak rate as at the end of the decay"
    )


def _growth(s: Series, first: int, last: int) -> str:
    """The gradients' norm at the end of the high rates, by its lowest before."""
    norm = s.get("grad_norm").between(first, last)
    if len(norm) < ENOUGH:
        return ""
    trend = smooth(norm.values, len(norm) // 8)
    factor = float(trend[-1] / max(float(trend[:-1].min()), 1e-30))
    return f"the gradient norm grew {factor:.1f} times, to {trend[-1]:.3g}" if factor > 3 else ""


def _large(s: Series) -> str:
    """Updates above a hundredth of the weights."""
    ratio = _ratio(s)
    return (
        f"a step moves the weights by {ratio:.1%} of their norm; 0.01% to 0.3% is usual"
        if ratio > 1e-2
        else ""
    )


def _ratio(s: Series) -> float:
    """What part of the weights a step moves at high rates; 0 if it is not known."""
    ratio = s.ratio.between(*s.high)
    return float(np.median(ratio.values)) if len(ratio) else 0.0


def too_low(s: Series) -> Cause | None:
    """The loss falls in proportion to the sum of the rates, as it does only far from a minimum; or goes on
    falling far, with steps that together are short for the weights; or hardly moves with updates below 1e-5
    of them."""
    if not len(s.lr) or s.peak <= 0:
        return None
    loss = s.loss.between(s.warm, int(s.lr.steps[np.flatnonzero(s.lr.values >= 0.3 * s.peak)[-1]]))
    ratio = float(np.median(s.ratio.values)) if len(s.ratio) else None
    path = float("inf") if ratio is None else ratio * (s.last - s.start)
    if len(loss) < ENOUGH or (ratio is not None and ratio > 3e-4 and path > REACH):
        return None
    rates = np.interp(loss.steps, s.lr.steps, s.lr.values)
    done = np.cumsum(rates) / rates.sum()
    ends = [float(np.median(loss.values[np.abs(done - at) <= 0.06])) for at in (0.06, 0.5, 0.94)]
    first, second = ends[0] - ends[1], ends[1] - ends[2]
    calm = loss.noise / (0.12 * len(loss)) ** 0.5
    moved = first + second > max(8 * calm, 0.01 * abs(ends[0]))
    # A rate that is too high also stands and falls in a line, but after a steep fall at the very start.
    early = float(np.median(s.loss.part(0, 0.01))) - ends[0]
    straight = moved and early < 0.5 * (first + second) and second > (0.3 if path < 0.1 else 0.75) * first > 0
    # Fine-tuning has short ways too, and a loss that soon falls slowly.
    far = first + second > max(12 * calm, 0.2 * abs(ends[0])) and second > 0.35 * first
    under_way = far and path <= REACH
    still = not moved and ratio is not None and ratio < 1e-5
    if not straight and not under_way and not still:
        return None
    evidence = [
        f"the loss moved by {first + second:.2g} from {ends[0]:.3g}, in steps {loss.steps[0]:,} to "
        f"{loss.steps[-1]:,}"
        if still
        else f"after warm-up the loss fell by {first:.3g} in the first half of the learning and still by "
        f"{second:.3g} in the second" + (", with no steep fall before" if straight else "")
    ]
    if ratio is not None:
        evidence.append(
            f"a step moves the weights by {ratio:.1e} of their norm (1e-4 to 3e-3 is usual), all steps "
            f"together by {path:.1%} at most"
        )
    sure = straight and path < 0.1
    return Cause(
        "the learning rate is too low, or the run too short",
        "yes" if sure else "perhaps",
        "act" if sure else "warn",
        tuple(evidence),
        s.line("lr", s.peak * (10 if sure else 3)),
        (int(loss.steps[-1]),),
    )


def _early(s: Series) -> int:
    """The last step of the time in which a spike is the warm-up's."""
    start = int(s.rows[0]["step"])
    return start + 2 * (s.warm - start) + max(10, (s.last - start) // 30)


def short_warmup(s: Series) -> Cause | None:
    """A spike inside the warm-up or right after it, and no more of them later."""
    spikes = find_spikes(s)
    early = [spike for spike in spikes if spike.start <= _early(s)]
    if not early or len(spikes) > 2 * len(early):
        return None
    first, start = early[0], int(s.rows[0]["step"])
    rate = float(np.interp(first.start, s.lr.steps, s.lr.values)) / s.peak if s.peak else 1.0
    length = max(s.warm - start, 1)
    return Cause(
        "the warm-up is too short",
        "yes",
        "warn" if all(spike.back for spike in early) else "act",
        (
            f"the loss rose from {first.base:.4g} to {first.top:.4g} at step {first.start:,}, with the rate "
            f"at {rate:.0%} of its peak and a warm-up of {counted(length, 'step')}",
            *_leader(first),
        ),
        s.line("warmup", 3 * max(length, 10)),
        tuple(spike.start for spike in early),
    )


def spikes(s: Series) -> Cause | None:
    """Spikes of the loss after the warm-up, and which norm rose first."""
    found = [spike for spike in find_spikes(s) if spike.start > _early(s)]
    if not found:
        return None
    stayed = [spike for spike in found if not spike.back]
    worst = max(found, key=lambda spike: spike.top - spike.base)
    own = sum(spike.leader == "update_norm" for spike in found)
    given = sum(spike.leader == "grad_norm" for spike in found)
    evidence = [
        f"{counted(len(found), 'spike')} of the loss, at {listed([spike.start for spike in found])}; the "
        f"highest from {worst.base:.4g} to {worst.top:.4g}",
        *_leader(worst),
    ]
    if stayed:
        evidence.append(f"the loss did not come back after {listed([spike.start for spike in stayed])}")
    level: Level = "act" if stayed or len(found) >= 3 else "warn"
    if own > given:
        change = f"{s.line('beta2', 0.95)}, or {s.line('update_clip')}"
    elif given:
        change = f"{s.line('skip', 1)}; look at the batches of these steps"
    else:
        change = f"{s.line('lr', s.peak / 2)} if it goes on" if s.peak else "halve the rate if it goes on"
    return Cause(
        "the loss spikes",
        "yes" if own > given else "perhaps",
        level,
        tuple(evidence),
        change,
        tuple(spike.start for spike in found),
    )


def _leader(spike: Spike) -> tuple[str, ...]:
    """What rose before a spike, in words."""
    if not spike.leader:
        return ()
    name = spike.leader.replace("_norm", " norm").replace("grad ", "gradient ")
    when = f"{spike.start - spike.lead} steps before" if spike.lead < spike.start else "at"
    blame = (
        "large updates came first: the optimizer's second moment was behind"
        if spike.leader == "update_norm"
        else "a large gradient came first"
    )
    return (f"the {name} rose {spike.factor:.1f} times {when} step {spike.start:,}; {blame}",)


def flat(s: Series) -> Cause | None:
    """The loss is where it began."""
    loss = s.loss
    if len(loss) < ENOUGH:
        return None
    start, end = float(np.median(loss.part(0, 0.08))), float(np.median(loss.part(0.9, 1)))
    calm = loss.noise / (0.08 * len(loss)) ** 0.5
    if start - end > max(2 * calm, 0.002 * abs(start)):
        return None
    return Cause(
        "the loss does not fall",
        "perhaps",
        "act",
        (f"the loss was {start:.4g} at the start and is {end:.4g} at step {int(loss.steps[-1]):,}",),
        f"{s.line('lr', s.peak * 3)} and {s.line('lr', s.peak / 3)}, 100 steps each; if neither moves it, "
        "look at the labels, the mask and what is frozen"
        if s.peak
        else "try 3 times and a third of the learning rate; then look at labels, masks and what is frozen",
        (int(loss.steps[-1]),),
    )
