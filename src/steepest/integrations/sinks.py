"""Numbers on their way out of training, without training waiting for anybody.

Every sink has a thread and a bounded queue of its own: one that is slow loses lines, which are counted;
one that hangs hangs alone; one that keeps failing is switched off.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import math
import queue
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from steepest.contract import SteepestError, unknown
from steepest.integrations.trackers import TRACKERS, Sink, Told

LOG = logging.getLogger("steepest")
ROOM = 1000
"""Lines that may wait for a sink."""
PATIENCE = 3
"""Errors in a row before a sink is switched off."""

Tell = Callable[[str], None]


class Channel:
    """One sink, its queue and its thread. The sink is made in the thread: its library may take its time.

    dropped: lines that found the queue full or the sink off.  off: why the sink is off; empty if it is not.
    """

    def __init__(
        self, name: str, make: Callable[[], Sink], *, room: int = ROOM, tell: Tell = LOG.warning
    ) -> None:
        self.name, self.dropped, self.off = name, 0, ""
        self._make, self._tell = make, tell
        self._queue: queue.Queue[Callable[[Sink], None] | None] = queue.Queue(room)
        self._thread = threading.Thread(target=self._work, name=f"steepest-{name}", daemon=True)
        self._thread.start()

    def put(self, line: Callable[[Sink], None]) -> None:
        """Hand a line over, or count it as dropped. Never waits."""
        if not self.off:
            with contextlib.suppress(queue.Full):
                self._queue.put_nowait(line)
                return
        self.dropped += 1

    def close(self, timeout: float) -> None:
        """Let the sink finish for so many seconds, then go on without it."""
        if not self.off:
            with contextlib.suppress(queue.Full):
                self._queue.put(None, timeout=timeout / 2)
            self._thread.join(timeout / 2)
        if self._thread.is_alive():
            self._switch_off(f"it did not finish within {timeout:g} s")
        while not self._queue.empty():  # what is left there, nobody will fetch
            self.dropped += self._queue.get() is not None
        if self.dropped:
            why = self.off or "it was too slow, or failed now and then"
            self._tell(f"{self.name} has lost {self.dropped} lines ({why}).")

    def _work(self) -> None:
        try:
            sink = self._make()
        except BaseException as error:  # a library may even call sys.exit
            return self._switch_off(_words(error))
        errors = 0
        while not self.off and (line := self._queue.get()) is not None:
            try:
                line(sink)
                errors = 0
            except Exception as error:
                errors, self.dropped = errors + 1, self.dropped + 1
                if errors >= PATIENCE:
                    self._switch_off(_words(error))
        try:
            sink.close()
        except Exception as error:
            self._switch_off(_words(error))

    def _switch_off(self, why: str) -> None:
        if not self.off:
            self.off = why
            self._tell(f"{self.name} is switched off ({why}); training goes on.")


class Sinks:
    """All sinks of a run. `log`, `finding` and `close` never raise, and only `close` waits, for a while."""

    def __init__(self, channels: Iterable[Channel] = ()) -> None:
        self.channels = tuple(channels)

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """The finite numbers of a step; nested mappings by paths, as in `layers/wte/update_rms`."""
        if self.channels and (numbers := flat_numbers(values)):
            for channel in self.channels:
                channel.put(lambda sink: sink.log(step, numbers))

    def finding(self, finding: Told) -> None:
        """Something that warns, as text or as an alert."""
        for channel in self.channels:
            channel.put(lambda sink: sink.finding(finding))

    @property
    def dropped(self) -> dict[str, int]:
        return {channel.name: channel.dropped for channel in self.channels}

    def close(self, timeout: float = 10.0) -> None:
        """Wait for what is on its way, at most so many seconds for each sink."""
        for channel in self.channels:
            channel.close(timeout)


def open_sinks(
    names: Iterable[str], folder: Path, config: Mapping[str, Any], *, tell: Tell = LOG.warning
) -> Sinks:
    """Sinks by name (`TRACKERS`) for a run in `folder`.

    config: plain values, written where the sink has a place for them.  tell: told in one line of a sink that
    is switched off or lost lines; called from the sink's thread. Raises SteepestError for a name that is
    unknown or a library that is not installed.
    """
    wanted = list(dict.fromkeys(names))
    for name in wanted:
        if name not in TRACKERS:
            raise unknown("sink", name, TRACKERS)
        if importlib.util.find_spec(TRACKERS[name].module) is None:
            raise SteepestError(
                f"the sink {name} needs the package {TRACKERS[name].package}; "
                f"`pip install {TRACKERS[name].package}`, or leave the sink out."
            )
    return Sinks(Channel(name, _opener(name, Path(folder), config), tell=tell) for name in wanted)


def _opener(name: str, folder: Path, config: Mapping[str, Any]) -> Callable[[], Sink]:
    return lambda: TRACKERS[name].open(folder, config)


def flat_numbers(values: Mapping[str, Any], above: str = "") -> dict[str, float]:
    """The finite numbers in nested mappings, by path."""
    out: dict[str, float] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            out |= flat_numbers(value, f"{above}{key}/")
        elif isinstance(value, (int, float)) and math.isfinite(value):
            out[f"{above}{key}"] = float(value)
    return out


def _words(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
