"""Causes that show in single steps and in the parameters: non-finite numbers, clipping, decay, rounding."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping

import numpy as np

from steepest.training.doctor.causes import Blame, Cause, Level, counted, listed
from steepest.training.doctor.series import Series

LONG = 1000
"""Steps after which a threshold that was never reached is one that does nothing."""


def not_finite(s: Series) -> Cause | None:
    """Steps whose loss or gradients were not finite, and steps that were vetoed for it."""
    steps = {int(row["step"]) for row in s.rows if _is_nan(row)}
    vetoes = [event for event in s.events if "finite" in str(event.get("why", event.get("reason", "")))]
    steps |= {int(event["step"]) for event in vetoes}
    if not steps:
        return None
    found = sorted(steps)
    tensors = Counter(str(name) for event in vetoes for name in _names(event))
    share = len(found) / max(1, len(s.rows))
    scaled = s.plan.get("precision") == "fp16"
    level: Level
    blame: Blame
    if scaled and share < 0.01:
        level, blame, change = "note", "no", "nothing: a loss scale tries how far it can go"
    else:
        level = "act" if share > 0.01 or found[-1] >= s.last else "warn"
        blame, change = "perhaps", s.line("precision", "bf16") if scaled else s.line("lr", s.peak / 3)
    evidence = [f"{counted(len(found), 'step')} of {len(s.rows):,} ({share:.2%}) not finite: {listed(found)}"]
    if tensors:
        named = ", ".join(f"{name} ({count:,})" for name, count in tensors.most_common(4))
        evidence.append(f"the tensors in which it was seen, and how often: {named}")
    return Cause(
        "losses or gradients are not finite",
        blame,
        level,
        tuple(evidence),
        change,
        tuple(found[:100]),
    )


def _is_nan(row: Mapping[str, object]) -> bool:
    """Of one of the numbers that every step has; the journal writes null, and says of which keys."""
    said = row.get("nonfinite")
    named = said if isinstance(said, (list, tuple)) else ()
    values = {key: row.get(key) for key in ("loss", "grad_norm", "update_norm")}
    return any(key in named or (isinstance(x, float) and not math.isfinite(x)) for key, x in values.items())


def _names(event: Mapping[str, object]) -> list[object]:
    named = event.get("culprits")
    return list(named) if isinstance(named, (list, tuple, Mapping)) else []


def clipping(s: Series) -> Cause | None:
    """The share of steps, after warm-up, whose gradient was clipped."""
    clipped = s.get("clipped").between(s.warm, s.last)
    if len(clipped) < 100:
        return None
    rate = float((clipped.values > 0).mean())
    norms = s.get("grad_norm").between(s.warm, s.last).values
    if rate > 0.3:
        usual = float(np.quantile(norms, 0.9)) if len(norms) else None
        return Cause(
            "the clip threshold is low: clipping has become part of the learning rate",
            "perhaps",
            "note",
            (
                f"{rate:.0%} of the steps from {int(clipped.steps[0]):,} on were clipped"
                + (f"; nine in ten gradient norms are below {usual:.3g}" if usual is not None else ""),
            ),
            s.line("clip", usual) if usual else "raise the clip threshold",
        )
    if rate < 1e-3 and len(clipped) >= LONG and s.plan.get("clip") is not None:
        top = float(np.quantile(norms, 0.999)) if len(norms) else None
        return Cause(
            "the clip threshold is never reached",
            "no",
            "note",
            (f"{(clipped.values > 0).sum():,} of {len(clipped):,} steps were clipped",),
            s.line("clip", 1.5 * top) if top else "lower the clip threshold",
        )
    return None


def balance(s: Series) -> Cause | None:
    """Weight decay against the updates, layer by layer: 1 is where the norm of the weights stays. It takes
    two half-lives of the squared norm, ln 2 / (lr decay) steps, until that says anything."""
    share, ratio = s.layers("decay_share"), s.layers("update_ratio")
    layers = {
        name: (step, value)
        for name, (step, value) in s.layers("balance").items()
        if name in share
        and name in ratio
        and (s.last - s.start) * share[name][1] * ratio[name][1] > math.log(2)
    }
    off = {name: value for name, (_, value) in layers.items() if not 0.5 <= value <= 2}
    if not off or 2 * len(off) < len(layers):
        return None
    high = sum(value > 2 for value in off.values()) * 2 > len(off)
    decay = (
        s.plan.get("optimizer", {}).get("weight_decay")
        if isinstance(s.plan.get("optimizer"), Mapping)
        else None
    )
    factor = 0.5 if high else 2.0
    change = (
        s.line("weight_decay", decay * factor)
        if isinstance(decay, (int, float)) and decay
        else f"{'halve' if high else 'double'} the weight decay"
    )
    worst = max(off, key=lambda name: abs(math.log(max(off[name], 1e-30))))
    return Cause(
        "weight decay outweighs the updates" if high else "weight decay is too weak for the updates",
        "perhaps",
        "note",
        (
            f"{len(off)} of {len(layers)} layers are out of balance (below 0.5 or above 2; at 1 the norm of "
            f"the weights stays): {worst} has {off[worst]:.2g}",
        ),
        change,
        (max(step for step, _ in layers.values()),),
    )


def lost(s: Series) -> Cause | None:
    """Updates smaller than the last bit of the parameters they go to."""
    layers = s.layers("lost")
    gone = {name: value for name, (_, value) in layers.items() if value > 0.2}
    if not gone:
        return None
    worst = max(gone, key=lambda name: gone[name])
    return Cause(
        "updates are lost to rounding",
        "yes",
        "act" if 2 * len(gone) > len(layers) else "warn",
        (
            f"in {len(gone)} of {len(layers)} layers more than 20% of the updates change nothing; {worst}: "
            f"{gone[worst]:.0%}",
        ),
        s.line("param", "split24"),
        (max(step for step, _ in layers.values()),),
    )


def dead(s: Series) -> Cause | None:
    """Trainable tensors that have no gradient, or do not move, at the latest look."""
    looks = s.layers("dead") | s.layers("grad_norm") | s.layers("update_ratio")
    still = {name: "does not move" for name, (_, x) in s.layers("update_ratio").items() if x == 0}
    still |= {name: "has no gradient" for name, (_, x) in s.layers("grad_norm").items() if x == 0}
    still |= {name: "has no gradient" for name, (_, x) in s.layers("dead").items() if x > 0.5}
    if not still:
        return None
    named = ", ".join(f"{name} {word}" for name, word in sorted(still.items())[:5])
    return Cause(
        "tensors are dead or frozen",
        "no" if "has no gradient" in still.values() else "yes",
        "warn",
        (f"{len(still)} of {len(looks)} tensors: {named}",),
        "freeze what shall not be trained (requires_grad_(False)); else find where the graph is cut, or why "
        "its rate is 0",
        (max(step for step, _ in looks.values()),),
    )


def schedule(s: Series) -> Cause | None:
    """Where the rate stood when the run ended, and whether it had reached its end long before."""
    rates = s.lr.values
    if len(rates) < 24 or s.peak <= 0 or rates.min() > 0.999 * s.peak:
        return None
    floor = float(rates[-1])
    waiting = int(np.argmax(rates[::-1] > 1.01 * floor + 1e-3 * s.peak))
    share = waiting / len(rates)
    if floor < 0.5 * s.peak and share > 0.15:
        at = int(s.lr.steps[-waiting])
        return Cause(
            "the schedule ended before the run",
            "yes",
            "warn",
            (
                f"from step {at:,} to step {s.last:,}, {share:.0%} of the run, the rate stood at "
                f"{floor:.2g}, {floor / s.peak:.1%} of its peak",
            ),
            s.line("steps", at) + ", or a schedule over all steps",
            (at,),
        )
    if s.planned and s.last < s.planned and floor > 0.1 * s.peak:
        return Cause(
            "the run has not come to the end of its schedule",
            "perhaps",
            "note",
            (
                f"at step {s.last:,} of {s.planned:,} the rate is {floor / s.peak:.0%} of its peak; the "
                "loss has most of the decay's fall before it",
            ),
            f"let it end; {s.line('steps', s.last - s.start)} plans a run of this length",
            (s.last,),
        )
    if s.planned and s.last >= s.planned and floor > 0.2 * s.peak:
        return Cause(
            "the learning rate was still high at the end",
            "perhaps",
            "note",
            (f"the last step had {floor / s.peak:.0%} of the peak rate",),
            s.line("final", 0),
            (s.last,),
        )
    return None
