"""SIGTERM and SIGINT: the first asks the run to save and stop, the second stops at once."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

WATCHED = (signal.SIGTERM, signal.SIGINT)


class Stopped(SystemExit):
    """A signal has ended the run. `signal` is its number; left alone it ends the process with the exit status
    that shells give for the signal itself, 128 + n."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.signal = number

    def __str__(self) -> str:
        return f"stopped by {signal.Signals(self.signal).name}"


class Stop:
    """Whether a signal has asked for the end, and which."""

    def __init__(self) -> None:
        self.asked: int | None = None

    def check(self) -> None:
        """Raise `Stopped` if it has; called where nothing is half done."""
        if self.asked is not None:
            raise Stopped(self.asked)


@contextmanager
def catching(tell: Callable[[str], None]) -> Iterator[Stop]:
    """Catch both signals while a run lasts. In another thread than the main one nothing is caught: Python
    gives signals to the main thread alone.

    The second signal leaves with the exit status that the signal itself would have had; a generation that is
    being written then is one of those that never became whole, and the one before it stays in force.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def caught(number: int, frame: FrameType | None) -> None:
        if stop.asked is not None:
            os._exit(128 + number)
        stop.asked = number
        tell(f"{signal.Signals(number).name}: saving, then stopping; once more stops at once.")

    before = {number: signal.signal(number, caught) for number in WATCHED}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
