"""Causes beside the optimizer: the clock, the validation, the data's epochs, and restarts."""

from __future__ import annotations

import numpy as np

from steepest.training.doctor.causes import Cause, counted, listed
from steepest.training.doctor.series import Column, Series, noise, smooth

LONG_MS = 30_000.0
"""Milliseconds of training below which its speed is not worth a word."""
SIDE = 16
"""Rows on either side of a border that are compared."""


def throughput(s: Series) -> Cause | None:
    """Steps that take longer and longer, or stalls between ordinary ones: time, not loss."""
    times = s.get("step_ms")
    if len(times) < 50 or times.values.sum() < LONG_MS:
        return None
    trend = smooth(times.values, len(times) // 10)
    best, end = float(trend.min()), float(trend[-1])
    middle = float(np.median(times.values))
    stalls = times.values > 4 * middle
    waited = float((times.values[stalls] - middle).sum() / times.values.sum())
    if end > 1.4 * best:
        title, where = "steps have become slower", int(times.steps[int(0.9 * len(times))])
        said = f"a step took {best:.3g} ms at its best and takes {end:.3g} ms since about step {where:,}"
        steps: tuple[int, ...] = (where,)
    elif waited > 0.1:
        steps = tuple(times.steps[stalls].tolist())
        title = "training stalls between steps"
        said = (
            f"{counted(len(steps), 'step')} took over four times the usual {middle:.3g} ms, {waited:.0%} "
            f"of all time: {listed(steps)}"
        )
    else:
        return None
    return Cause(
        title,
        "no",
        "warn",
        (f"{said}; the loss by step is not touched by it",),
        "look at where the data is read from, at other programs on the machine, and at its memory",
        steps[:100],
    )


def overfitting(s: Series) -> Cause | None:
    """Validation rises while training falls."""
    held, loss = s.get("validation"), s.loss
    if len(held) < 4 or len(loss) < 8:
        return None
    best = int(np.argmin(held.values))
    rest = held.values[best + 1 :]
    low = float(held.values[best])
    limit = low + max(0.01 * abs(low), 3 * noise(held.values))
    if len(rest) < 2 or rest[-1] <= limit or float(np.median(rest[-2:])) <= limit:
        return None
    at = int(held.steps[best])
    near, end = _around(loss, at), float(np.median(loss.values[-SIDE:]))
    if end > near - loss.noise / SIDE**0.5:
        return None
    return Cause(
        "the model overfits",
        "no",
        "act" if rest[-1] > low + 0.1 * abs(low) else "warn",
        (
            f"validation was {low:.4g} at step {at:,} and is {rest[-1]:.4g} at step "
            f"{int(held.steps[-1]):,}, while training went from {near:.4g} to {end:.4g}",
        ),
        f"{s.line('steps', at)}, more data, or a smaller adapter; the best checkpoint is near step {at:,}",
        (at,),
    )


def _around(column: Column, step: int) -> float:
    """Median of the rows nearest to a step."""
    at = int(np.searchsorted(column.steps, step))
    return float(np.median(column.values[max(0, at - SIDE // 2) : at + SIDE // 2 + 1]))


def _jump(loss: Column, step: int) -> float:
    """How much the loss changes at a step, beyond what chance explains; 0 if it does not."""
    before, after = loss.values[loss.steps <= step][-SIDE:], loss.values[loss.steps > step][:SIDE]
    if min(len(before), len(after)) < 4:
        return 0.0
    calm = max(noise(before), noise(after)) * (1 / len(before) + 1 / len(after)) ** 0.5
    change = float(np.median(after) - np.median(before))
    return change if abs(change) > max(6 * calm, 0.03 * abs(float(np.median(before)))) else 0.0


def epochs(s: Series) -> Cause | None:
    """A jump of the loss where the data begins again."""
    epoch, loss = s.get("epoch"), s.loss
    if len(epoch) < 2 or len(loss) < 2 * SIDE:
        return None
    whole = np.floor(epoch.values - 1e-6)  # the last step of an epoch says 1.0
    borders = [int(epoch.steps[i]) for i in np.flatnonzero(np.diff(whole) > 0)]
    jumps = {step: jump for step in borders if (jump := _jump(loss, step))}
    if not jumps:
        return None
    step, jump = max(jumps.items(), key=lambda item: abs(item[1]))
    down = jump < 0
    return Cause(
        "the loss falls in stairs: the data is being learned by heart"
        if down
        else "the loss jumps up where the data begins again",
        "no",
        "note" if down else "warn",
        (
            f"at the end of an epoch, step {step:,}, the loss changed by {jump:+.3g}; jumps at "
            f"{listed(sorted(jumps))}",
        ),
        "fewer epochs or more data; watch the validation loss"
        if down
        else "shuffle the data, anew in every epoch: easy and hard examples come in blocks",
        tuple(sorted(jumps)),
    )


def restarts(s: Series) -> Cause | None:
    """A jump of the loss or of the rate where the run was continued."""
    loss = s.loss
    resumed = [int(event["step"]) for event in s.events if event.get("kind") == "resume"]
    jumps = {step: jump for step in resumed if (jump := _jump(loss, step)) > 0}
    if not jumps:
        return None
    step, jump = max(jumps.items(), key=lambda item: item[1])
    rates = s.lr
    before, after = rates.values[rates.steps <= step][-1:], rates.values[rates.steps > step][:1]
    said = [f"the run was continued after step {step:,}, and the loss rose by {jump:.3g}"]
    if len(before) and len(after) and abs(after[0] - before[0]) > 0.05 * s.peak:
        said.append(f"the learning rate went from {before[0]:.2g} to {after[0]:.2g} there")
    return Cause(
        "the loss jumped after a restart",
        "perhaps",
        "act",
        tuple(said),
        "look whether the optimizer's state, the schedule and the data's position were restored: "
        "`steepest checkpoint verify`, and the run's journal at that step",
        tuple(sorted(jumps)),
    )
