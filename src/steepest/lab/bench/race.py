"""Timing several steps against each other in one run: rounds in rotated order, per-round times kept.

A machine's speed drifts by a fifth within minutes; what runs interleaved drifts together. A virtual one may
change it by half from one second to the next, so what is compared is compared round by round (`ratio`).
"""

from __future__ import annotations

import contextlib
import math
import signal
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import torch

from steepest.contract import SteepestError
from steepest.lab.bench.cores import hand_over_ns

FEWEST, QUICK_FEWEST = 3, 9
"""Rounds that even the slowest takes part in, and the quick."""

QUICK = 0.25
"""Seconds of a quick step. It is taken once more before it is timed: whoever comes after one that has given a
gigabyte of temporaries back, or has left a core asleep, would pay for that."""

SHORTEST = 2e-3
"""Seconds that one measurement lasts at least: quicker steps are repeated and their time divided."""


@dataclass
class Racer:
    """One step to time, and how it went.

    by:    whose it is, "steepest" or a library.
    group: with which others it is compared: "update", "step", "clipped", "telemetry", "probe", "baseline".
    facts: what else is recorded about it.
    """

    name: str
    by: str
    group: str
    build: Callable[[], Callable[[], Any]]
    facts: dict[str, Any] = field(default_factory=dict)
    step: Callable[[], Any] | None = None
    first_ms: float | None = None
    repeats: int = 1
    estimate: float = 0.0
    ms: list[float] = field(default_factory=list)
    turns: list[int] = field(default_factory=list)
    error: str | None = None

    def record(self) -> dict[str, Any]:
        """What is kept: every time and its round, the median and the least; or why there are none."""
        out: dict[str, Any] = {"name": self.name, "by": self.by, "group": self.group, **self.facts}
        if self.error is not None or not self.ms:
            return {**out, "error": self.error or "failed: no round was run."}
        return {
            **out,
            "first_ms": _short(self.first_ms or 0.0),
            "median_ms": _short(statistics.median(self.ms)),
            "min_ms": _short(min(self.ms)),
            "ms": [_short(t) for t in self.ms],
            "turns": self.turns,
        }


def race(
    racers: list[Racer], *, rounds: int, seconds: float, device: str, patience: float
) -> list[float | None]:
    """Build every racer, drop two rounds, and time `rounds` more within about `seconds`. Returns how far
    apart the cores were before each round (`hand_over_ns`; None on a GPU).

    A racer whose rounds would take more than its share takes part in fewer of them, evenly spread, and in
    `FEWEST` at least (`QUICK_FEWEST` where a step is quick). One that cannot be built or fails is left with
    its error, in one line; so is one whose first step takes more than `patience` seconds.
    """
    synchronize = torch.cuda.synchronize if device == "cuda" else lambda: None
    began = time.perf_counter()
    for racer in racers:
        with _reported(racer), _limit(patience):
            racer.step = racer.build()
            racer.first_ms = 1e3 * _time(racer.step, 1, synchronize)
    for racer in _running(racers):
        with _reported(racer):
            once = _time(racer.step, 1, synchronize)
            racer.repeats = max(1, math.ceil(SHORTEST / max(once, 1e-7)))
            racer.estimate = once * racer.repeats
    share = (seconds - (time.perf_counter() - began)) / max(1, len(_running(racers)))
    wanted = {id(r): _rounds(r.estimate, share, rounds) for r in racers}
    apart: list[float | None] = []
    for turn in range(rounds):
        found = hand_over_ns() if device == "cpu" else None
        apart.append(found and round(found))
        field_ = _running(racers)
        start = turn % max(1, len(field_))
        order = field_[start:] + field_[:start]
        for racer in order if turn % 2 else order[::-1]:
            if _takes_part(turn, wanted[id(racer)], rounds):
                with _reported(racer):
                    if racer.estimate < QUICK:
                        racer.step()
                    took = _time(racer.step, racer.repeats, synchronize)
                    racer.ms.append(1e3 * took / racer.repeats)
                    racer.turns.append(turn)
    for racer in racers:
        racer.step = None  # frees its state
    return apart


def ratio(a: Mapping[str, Any], b: Mapping[str, Any]) -> float:
    """How much longer a took than b, both as recorded: the median over the rounds that both took part in."""
    return statistics.median(ratios(a, b).values())


def ratios(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[int, float]:
    """The same for each of these rounds, by its number."""
    other = dict(zip(b["turns"], b["ms"], strict=True))
    return {turn: ms / other[turn] for turn, ms in zip(a["turns"], a["ms"], strict=True) if turn in other}


def _running(racers: list[Racer]) -> list[Any]:
    return [racer for racer in racers if racer.error is None]


def _rounds(estimate: float, share: float, rounds: int) -> int:
    fewest = QUICK_FEWEST if estimate < QUICK else FEWEST
    return max(min(fewest, rounds), min(rounds, int(share / max(estimate, 1e-9))))


def _takes_part(turn: int, wanted: int, rounds: int) -> bool:
    """`wanted` of `rounds` turns, evenly spread."""
    return (turn + 1) * wanted // rounds > turn * wanted // rounds


def _time(step: Callable[[], Any], repeats: int, synchronize: Callable[[], Any]) -> float:
    synchronize()
    start = time.perf_counter()
    for _ in range(repeats):
        step()
    synchronize()
    return time.perf_counter() - start


def error_line(error: BaseException) -> str:
    """An error in one line: "refused" where this library says no, "failed" for anything else."""
    text = " ".join(str(error).split())[:300]
    if isinstance(error, SteepestError):
        return f"refused: {text}"
    return f"failed: {type(error).__name__}: {text}".rstrip(": ")


@contextlib.contextmanager
def _reported(racer: Racer) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        racer.error, racer.step = error_line(error), None


@contextlib.contextmanager
def _limit(seconds: float) -> Iterator[None]:
    """TimeoutError after this long, where signals can be had (the main thread of a POSIX process)."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def late(_number: int, _frame: FrameType | None) -> None:
        raise TimeoutError(f"its first step took more than {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _short(ms: float) -> float:
    """Four significant digits."""
    return float(f"{ms:.4g}")
