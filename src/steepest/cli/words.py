"""Numbers as people read them."""

from __future__ import annotations

import time


def clock() -> float:
    """Seconds that only go up."""
    return time.monotonic()


def minutes(seconds: float) -> str:
    """45 s, 3 min, 2 h 10 min."""
    if seconds < 90:
        return f"{max(0, seconds):.0f} s"
    whole = round(seconds / 60)
    return f"{whole} min" if whole < 90 else f"{whole // 60} h {whole % 60} min"


def size(count: float) -> str:
    """Bytes in B, KB, MB or GB of a thousand."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("KB", 1e3)):
        if count >= scale:
            return f"{count / scale:.3g} {unit}"
    return f"{count:.0f} B"


def thousands(count: float) -> str:
    """131,904 stays, millions are shortened."""
    return f"{count / 1e6:.4g} M" if count >= 1e6 else f"{count:,.0f}"
