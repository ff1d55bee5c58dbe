"""How far apart the cores are: how long two threads take to hand a number back and forth.

A virtual machine's cores are placed anew from time to time, on one last-level cache or on two. Side by side
they share a path to memory; far apart each has its own, but what one core has written reaches the other four
times as late. Most ratios of this benchmark depend on it, so every round says how it was (`docs/log.md`).
"""

from __future__ import annotations

import time
from functools import cache

import numpy as np
import torch

from steepest.kernels import available, run_on_all_cores, team
from steepest.kernels.compile import compile_functions

TURNS, TRIES = 1000, 3
"""How often the number goes over, and how often that is timed."""

PATIENCE = 10_000_000
"""How often a thread looks at the number before it gives up: two threads on one core never meet."""

FAR = 150.0
"""Nanoseconds from which cores are far apart: within a cache it takes 50 to 100, between two 180 to 400."""

TEXT = f"""
define void @hand_over(ptr %arguments) {{
start:
  %number.at = getelementptr i64, ptr %arguments, i64 8
  %number = load ptr, ptr %number.at
  %thread = call i32 %number()
  %first = zext i32 %thread to i64
  %ball = getelementptr i64, ptr %arguments, i64 16
  br label %look
look:
  %mine = phi i64 [%first, %start], [%mine, %wait], [%next, %pass]
  %looks = phi i64 [0, %start], [%again, %wait], [%again, %pass]
  %again = add i64 %looks, 1
  %now = load atomic i64, ptr %ball acquire, align 8
  %here = icmp eq i64 %now, %mine
  br i1 %here, label %pass, label %wait
wait:
  %patient = icmp slt i64 %again, {PATIENCE}
  br i1 %patient, label %look, label %end
pass:
  %over = add i64 %mine, 1
  store atomic i64 %over, ptr %ball release, align 8
  %next = add i64 %mine, 2
  %more = icmp slt i64 %next, {TURNS}
  br i1 %more, label %look, label %end
end:
  ret void
}}
"""


def hand_over_ns() -> float | None:
    """Nanoseconds of one hand-over, the least of a few tries; None where two threads cannot be had."""
    if available() is not None or torch.get_num_threads() < 2 or not (number := team().number):
        return None
    room = np.zeros(32, np.int64)  # the number that goes over has a line of the cache to itself
    room[8] = number
    found = []
    for _ in range(TRIES):
        room[16] = 0
        began = time.perf_counter()
        run_on_all_cores(_function(), room.ctypes.data, 2)
        took = time.perf_counter() - began
        if room[16] >= TURNS:  # the other thread came in time
            found.append(1e9 * took / TURNS)
    return min(found, default=None)


@cache
def _function() -> int:
    return compile_functions(TEXT, ["hand_over"])[0]
