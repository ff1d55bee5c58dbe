"""Several processes and one generation: each writes its own files, and rank 0 makes them count.

They meet in the folder itself. A save goes on in a thread beside training, whose collectives must not be
mixed with others; and all of them have to see one folder in any case, so nothing else is needed. The folder
has a name that every rank works out alone, from a word that was shared once and the number of the save. In
it, each rank leaves a report when its files are on the disk, or when it has failed; rank 0 waits for all
reports before it judges or removes anything. To the others the folder tells the end: it gets a generation's
name, or it goes.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field, ValidationError

from steepest.contract import SteepestError
from steepest.training.checkpoint.disk import Disk, put
from steepest.training.checkpoint.manifest import Damaged, FileFact, Frozen
from steepest.training.checkpoint.read import names_in, read_manifest

PAUSES = (0.01, 0.5)
"""Seconds between two looks at the folder: the first time, and at most; each is half as long again."""
GIVEN_UP = "rank 0 has given it up, and says why"


@dataclass(frozen=True)
class Ranks:
    """Which of the processes of a run this one is.

    session: a word that all of them have and no other start of the run ever had; it keeps what a dead start
    has left apart from what this one writes. Rank 0 makes it up (`uuid.uuid4().hex`) and tells the others.
    """

    rank: int
    world: int
    session: str

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world:
            raise SteepestError(f"rank {self.rank} of {self.world}: ranks count from 0.")
        if not self.session:
            raise SteepestError("the ranks that save together need one word that no other start of them has.")

    def save_id(self, count: int, step: int) -> str:
        """The name of the `count`-th save since the start; the same on all ranks."""
        return hashlib.sha256(f"{self.session}/{count}/{step}".encode()).hexdigest()[:32]


class Report(Frozen):
    """What a rank has written, all of it synced; or why it has not."""

    files: dict[str, FileFact] = Field(default_factory=dict)
    failed: str | None = None


def report_name(rank: int) -> str:
    return f"rank-{rank:05}.json"


def report(disk: Disk, folder: Path, rank: int, told: Report) -> None:
    """Leave a rank's report; it is there whole or not at all, and so is everything that it names."""
    beside = folder / f"{report_name(rank)}.part"
    put(disk, beside, [told.model_dump_json(exclude_defaults=True).encode()])
    disk.replace(beside, folder / report_name(rank))
    disk.sync_folder(folder)


def gather(folder: Path, world: int, patience: float) -> dict[int, Report]:
    """The reports of all ranks but 0, failed or not; raises if one is missing after `patience` seconds."""
    expected = {report_name(rank): rank for rank in range(1, world)}
    missing = set(expected)

    def all_there() -> bool:
        missing.difference_update(os.listdir(folder))
        return not missing

    if not wait(all_there, patience):
        late = sorted(expected[name] for name in missing)
        named = f"rank{'s' * (len(late) > 1)} {', '.join(map(str, late[:5]))}"
        more = f" and {len(late) - 5} more" if len(late) > 5 else ""
        raise SteepestError(f"{named}{more} did not report within {patience:g} s: dead, or the storage hangs")
    return {rank: _read_report(folder / name, rank) for name, rank in expected.items()}


def _read_report(path: Path, rank: int) -> Report:
    try:
        return Report.model_validate_json(path.read_bytes())
    except ValidationError as error:
        why = error.errors()[0]["msg"]
        raise SteepestError(f"rank {rank}: its report cannot be read ({why})") from error


def merge(reports: Mapping[int, Report]) -> dict[str, FileFact]:
    """The files of all ranks; raises with the words of the first that failed."""
    for rank, told in reports.items():
        if told.failed is not None:
            raise SteepestError(f"rank {rank}: {told.failed}")
    return {name: fact for told in reports.values() for name, fact in told.files.items()}


def outcome(folder: Path, temporary: Path, save_id: str, patience: float) -> str:
    """The name that rank 0 has given to a generation; raises if it has given the save up."""
    if not wait(lambda: not temporary.exists(), patience):
        raise SteepestError(f"rank 0 did not end it within {patience:g} s: dead, or the storage hangs")
    for name in reversed(names_in(folder)):
        with suppress(Damaged):
            if read_manifest(folder / name).save_id == save_id:
                return name
    raise SteepestError(GIVEN_UP)


def wait(done: Callable[[], bool], patience: float) -> bool:
    """Whether something has come true, looked at until `patience` seconds have passed."""
    end = time.monotonic() + patience
    pause, longest = PAUSES
    while not done():
        if time.monotonic() >= end:
            return False
        time.sleep(pause)
        pause = min(1.5 * pause, longest)
    return True
