"""Signs of life: every rank says in the store that it is there, beside whatever it does or waits for.

When a rank is gone, only those who were waiting for it hear of it at once; the others still wait for these.
Their signs tell them from the one that is gone.
"""

from __future__ import annotations

from collections.abc import Iterable
from threading import Event, Thread
from typing import Any

BEAT = 1.0
"""Seconds between two signs. A process that was stopped, or is gone, gives none; one that waits does."""


class Pulse:
    """The signs of this rank, given until `stop` by a thread of its own. store: torch's, of all ranks."""

    def __init__(self, store: Any, rank: int) -> None:
        self._store, self._rank, self._over = store, rank, Event()
        self._thread = Thread(target=self._beat, name="pulse", daemon=True)
        self._thread.start()

    def _beat(self) -> None:
        count = 0
        while not self._over.wait(BEAT):
            count += 1
            try:
                self._store.set(_key(self._rank), str(count))
            except RuntimeError:  # the store is gone, and rank 0 with it
                return

    def stop(self) -> None:
        """Give no more signs. An interpreter that ends while a thread is inside torch may abort."""
        self._over.set()
        self._thread.join(2 * BEAT)


def signs(store: Any, ranks: Iterable[int]) -> dict[int, bytes]:
    """The latest sign of each of these ranks, empty where it has given none."""
    return {rank: store.get(_key(rank)) if store.check([_key(rank)]) else b"" for rank in ranks}


def _key(rank: int) -> str:
    return f"pulse/{rank}"
