"""Where a loss jumped, how far, whether it came back, and what rose before it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from steepest.training.doctor.series import Column, Series, noise, runs

WINDOW, BLOCK, LEAST = 32, 8, 8
"""Rows that a row is compared with; rows that are compared with the same ones; the fewest of them."""
SIGMAS = 6.0
SUDDEN = 4
"""Rows in which a spike has risen half of its height."""
LEAD = 16
"""Rows before a spike in which its cause is looked for."""


class Spike(NamedTuple):
    """A stretch of losses far above the ones before it.

    base, top: the loss before, and the highest in it.  back: whether it came back.
    leader:    the norm that rose first ("update_norm", "grad_norm", or ""), at step `lead`, by `factor`.
    """

    start: int
    end: int
    base: float
    top: float
    back: bool
    leader: str = ""
    lead: int = 0
    factor: float = 1.0


def find_spikes(series: Series) -> list[Spike]:
    """Spikes of the training loss by step. One high row by itself is a hard batch, unless a norm rose too."""
    loss = series.loss
    high, base = _above(loss)
    found = []
    for first, last in runs(high, gap=3):
        top = float(loss.values[first : last + 1].max())
        sudden = float(loss.values[first : first + SUDDEN].max())
        if sudden - base[first] < 0.5 * (top - base[first]):
            continue  # it drifted there
        after = loss.values[last + 1 : last + 1 + WINDOW]
        half = base[first] + 0.5 * (top - base[first])
        back = bool(len(after)) and float(np.median(after)) < half
        spike = Spike(int(loss.steps[first]), int(loss.steps[last]), float(base[first]), top, back)
        begin = int(loss.steps[max(0, first - LEAD)])
        rises = [
            r for key in ("update_norm", "grad_norm") if (r := _rise(series.get(key), key, begin, spike))
        ]
        if rises:
            leader, lead, factor = min(rises, key=lambda rise: rise[1])
            spike = spike._replace(leader=leader, lead=lead, factor=factor)
        if rises or last > first:
            found.append(spike)
    return found


def _above(loss: Column) -> tuple[np.ndarray, np.ndarray]:
    """Which rows lie far above the calm rows before them, and that level for every row."""
    values = loss.values
    high, base = np.zeros(len(values), dtype=bool), np.array(values)
    calm: list[float] = []
    for start in range(0, len(values), BLOCK):
        rows = values[start : start + BLOCK]
        if len(calm) >= LEAST:
            before = np.array(calm[-WINDOW:])
            level = float(np.median(before[-LEAST:]))
            limit = max(SIGMAS * noise(before), 0.02 * abs(level))
            high[start : start + BLOCK] = rows > level + limit
            base[start : start + BLOCK] = level
        calm += rows[~high[start : start + BLOCK]].tolist()
        if high[max(0, start - WINDOW) : start + BLOCK].all() and start >= WINDOW:
            calm = values[max(0, start - BLOCK) : start + BLOCK].tolist()  # it stays: the new level
    return high, base


def _rise(norm: Column, key: str, begin: int, spike: Spike) -> tuple[str, int, float] | None:
    """(key, step, factor) of a norm's first value far above its usual ones, by the spike's end."""
    if begin >= spike.start:
        return None
    before = norm.between(-np.inf, begin - 1).values[-2 * WINDOW :]
    near = norm.between(begin, spike.end)
    if len(before) < LEAST or not len(near):
        return None
    usual = float(np.median(before))
    limit = max(usual + SIGMAS * noise(before), 1.5 * usual)
    above = np.flatnonzero(near.values > limit)
    if not len(above):
        return None
    return key, int(near.steps[above[0]]), float(near.values[above].max() / max(usual, 1e-30))
