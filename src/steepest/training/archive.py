"""The generations of a run on all its ranks: written beside training, waited for, found by rank 0."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from pathlib import Path

from steepest.contract import SteepestError
from steepest.training.checkpoint import Loaded, Payload, Ranks, Store
from steepest.training.config import RunConfig
from steepest.training.world import World

WORTH = 10
"""How many times as long as beside training a save waits for a storage that hangs where training stands still
for it (at a border, at the end, after a signal): what was done since would be lost."""


class Archive:
    """The store of a run, and what its ranks have to agree about before they use it.

    keep: how many generations remain.  tell: what to do with words for people, on rank 0.
    """

    def __init__(
        self, config: RunConfig, folder: Path, keep: int, world: World, tell: Callable[[str], None]
    ) -> None:
        self.world, self.tell = world, tell
        self.background = config.checkpoint.background
        # Ranks that wait for a store in turn must not be taken for dead by the others.
        patience = config.timeout if world.size == 1 else config.timeout / 8
        self._looks = round(WORTH * config.timeout / patience)
        ranks = Ranks(world.rank, world.size, world.share(uuid.uuid4().hex))
        self.store = Store(folder / "checkpoints", keep=keep, patience=patience, ranks=ranks)

    def save(self, payload: Callable[[], Payload], step: int, *, keep: bool, wait: bool) -> None:
        """Write a generation, with `wait` until it is on the disk. Raises SteepestError, after which training
        may go on."""
        wait = wait or not self.background
        try:
            if self.world.size > 1 or wait:
                self._await_storage(self._looks if wait else 1)
            self.store.save(payload(), step=step, keep=keep, wait=wait)
        finally:
            if wait:  # who leaves first takes the others along
                self.world.barrier("waiting for a checkpoint")

    def _await_storage(self, looks: int) -> None:
        """Wait, with all ranks, until the save before is over; raises SteepestError after so many looks."""
        for look in range(looks):
            if not self.world.most([self.store.late()])[0]:
                return
            if look == 0 and looks > 1:
                self.tell("the storage hangs; this generation is worth waiting for it")
        raise SteepestError("the one before it is not written yet: the storage hangs.")

    def find(self, find: Callable[[], Loaded | None]) -> Loaded | None:
        """What rank 0 finds; the others read the same generation by its name."""
        found: list[Loaded | None] = []

        def look() -> str | None:
            found.append(find())
            return found[0].generation if found[0] else None

        name = self.world.lead(look)
        return found[0] if self.world.first else self.store.load(name) if name else None

    def close(self) -> None:
        """Let the last generation reach the disk."""
        try:
            self.store.close()
        except SteepestError as error:
            self.tell(str(error))
